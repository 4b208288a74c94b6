//! The few most urgent of many interrupts.

use super::lr::MAX_LRS;

/// A candidate for a list register. The lower priority value comes first, then the lower INTID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) priority: u8,
    pub(super) intid: u16,
}

impl Place {
    /// Only the five upper priority bits decide, as in list registers.
    const fn comes_before(self, other: Self) -> bool {
        let (mine, theirs) = (self.priority & 0xf8, other.priority & 0xf8);
        mine < theirs || mine == theirs && self.intid < other.intid
    }
}

/// The most urgent `room` of those offered, in order.
pub(super) struct Queue {
    places: [Place; MAX_LRS],
    room: usize,
    used: usize,
    overflowed: bool,
}

impl Queue {
    pub(super) const fn new(room: usize) -> Self {
        let room = if room < MAX_LRS { room } else { MAX_LRS };
        Self {
            places: [Place { priority: 0xff, intid: u16::MAX }; MAX_LRS],
            room,
            used: 0,
            overflowed: false,
        }
    }

    /// Puts `place` where it belongs; the last one falls out if there is no room. At most 16 steps.
    pub(super) fn offer(&mut self, place: Place) {
        let full = self.used >= self.room;
        self.overflowed |= full;
        let last = self.places.get(self.room.wrapping_sub(1)).copied();
        if full && !last.is_some_and(|last| place.comes_before(last)) {
            return;
        }
        let mut carried = place;
        for slot in self.places.iter_mut().take(self.room) {
            if carried.comes_before(*slot) {
                core::mem::swap(slot, &mut carried);
            }
        }
        if !full {
            self.used = self.used.saturating_add(1);
        }
    }

    /// Whether some had no room.
    pub(super) const fn overflowed(&self) -> bool {
        self.overflowed
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.places.iter().take(self.used).copied()
    }
}
