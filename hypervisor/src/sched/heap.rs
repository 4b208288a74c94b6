//! A queue of vCPUs ordered by a number, in fixed tables: a binary heap that knows where each vCPU stands.
//!
//! Invariants
//! 1. A vCPU is in it at most once; `places` says where, [`NOWHERE`] if it is not.
//! 2. No entry's key is smaller than that of the entry above it.
//! 3. `first` is the smallest key, `u64::MAX` when there is none: it is asked for far more often than it changes.
//!
//! Every operation takes at most log2(n) steps, and none allocates.
use crate::domain_build::Storage;
use crate::vcpu::VcpuIndex;

const NOWHERE: u16 = u16::MAX;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// What orders it.
    pub(super) key: u64,
    /// Whose it is.
    pub(super) vcpu: VcpuIndex,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Heap {
    entries: &'static mut [Entry],
    places: &'static mut [u16],
    len: usize,
    first: u64,
}

impl Default for Heap {
    /// Without room.
    fn default() -> Self {
        Self { entries: &mut [], places: &mut [], len: 0, first: u64::MAX }
    }
}

impl Heap {
    /// An empty one with room for vCPUs `0..vcpus`; `None` when there is no storage.
    pub(super) fn new(storage: &impl Storage, vcpus: usize) -> Option<Self> {
        Some(Self {
            entries: storage.slice(vcpus, |_| Entry { key: 0, vcpu: VcpuIndex(0) })?,
            places: storage.slice(vcpus, |_| NOWHERE)?,
            ..Self::default()
        })
    }

    /// How many vCPUs it has room for.
    pub(super) fn room(&self) -> usize {
        self.entries.len()
    }

    /// All entries, in no order but that the first has the smallest key.
    #[inline]
    pub(super) fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    /// The smallest key; `u64::MAX` when it is empty.
    #[inline]
    pub(super) const fn first_key(&self) -> u64 {
        self.first
    }

    /// Puts a vCPU in, or gives it another key.
    #[inline(never)]
    pub(super) fn put(&mut self, vcpu: VcpuIndex, key: u64) {
        let entry = Entry { key, vcpu };
        match self.place(vcpu) {
            Some(at) => self.settle(at, entry),
            None if self.len < self.entries.len() && usize::from(vcpu.0) < self.places.len() => {
                let at = self.len;
                self.len = at.wrapping_add(1);
                self.rise(at, entry);
            }
            // There is room for each vCPU once, and for no other.
            None => {}
        }
    }

    /// Takes a vCPU out; false if it was not in.
    pub(super) fn remove(&mut self, vcpu: VcpuIndex) -> bool {
        let Some(at) = self.place(vcpu) else { return false };
        self.take(at);
        true
    }

    /// Takes out the entry with the smallest key.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let first = self.entries().first().copied()?;
        self.take(0);
        Some(first)
    }

    /// Puts a vCPU in that is not, and takes out the entry with the smallest key: its own, if that is smaller than all others'.
    pub(super) fn exchange(&mut self, vcpu: VcpuIndex, key: u64) -> Entry {
        let entry = Entry { key, vcpu };
        let Some(first) = self.entries().first().copied().filter(|first| first.key <= key) else {
            return entry;
        };
        if let Some(place) = self.places.get_mut(usize::from(first.vcpu.0)) {
            *place = NOWHERE;
        }
        // As often as not it was alone.
        if self.len == 1 {
            self.write(0, entry);
        } else {
            self.sink(0, entry);
        }
        first
    }

    /// What is wrong with it, if something is.
    #[cfg(any(test, feature = "fake"))]
    pub(super) fn check(&self) -> Result<(), &'static str> {
        for (at, entry) in self.entries().iter().enumerate() {
            if self.place(entry.vcpu) != Some(at) {
                return Err("a place is not where its entry is");
            }
            if self.above(at).is_some_and(|(_, above)| above.key > entry.key) {
                return Err("a key is smaller than the one above");
            }
        }
        if self.first != self.entries().first().map_or(u64::MAX, |first| first.key) {
            return Err("another key is said to be the first");
        }
        let placed = self.places.iter().filter(|place| **place != NOWHERE).count();
        if placed == self.len { Ok(()) } else { Err("there are more places than entries") }
    }

    fn place(&self, vcpu: VcpuIndex) -> Option<usize> {
        self.places
            .get(usize::from(vcpu.0))
            .filter(|place| **place != NOWHERE)
            .map(|place| usize::from(*place))
    }

    #[inline(never)]
    fn take(&mut self, at: usize) {
        let (Some(gone), Some(last)) = (self.entries.get(at).copied(), self.entries().last().copied()) else {
            return;
        };
        self.len = self.len.wrapping_sub(1);
        if let Some(place) = self.places.get_mut(usize::from(gone.vcpu.0)) {
            *place = NOWHERE;
        }
        if at < self.len {
            self.settle(at, last);
        } else if at == 0 {
            self.first = u64::MAX;
        }
    }

    fn write(&mut self, at: usize, entry: Entry) {
        if let (Some(slot), Some(place)) =
            (self.entries.get_mut(at), self.places.get_mut(usize::from(entry.vcpu.0)))
        {
            *slot = entry;
            *place = u16::try_from(at).unwrap_or(NOWHERE);
        }
        if at == 0 {
            self.first = entry.key;
        }
    }

    /// Puts an entry where it belongs, above or below `at`, whose own entry is given up.
    fn settle(&mut self, at: usize, entry: Entry) {
        if self.above(at).is_some_and(|(_, above)| above.key > entry.key) {
            self.rise(at, entry);
        } else {
            self.sink(at, entry);
        }
    }

    fn above(&self, at: usize) -> Option<(usize, Entry)> {
        let above = at.checked_sub(1)? / 2;
        Some((above, *self.entries.get(above)?))
    }

    #[inline(never)]
    fn rise(&mut self, mut at: usize, entry: Entry) {
        while let Some((above, other)) = self.above(at)
            && other.key > entry.key
        {
            self.write(at, other);
            at = above;
        }
        self.write(at, entry);
    }

    #[inline(never)]
    fn sink(&mut self, mut at: usize, entry: Entry) {
        loop {
            let left = at.wrapping_mul(2).wrapping_add(1);
            let mut below = match self.entries().get(left) {
                Some(other) => (left, *other),
                None => break,
            };
            let right = left.wrapping_add(1);
            if let Some(other) = self.entries().get(right).filter(|other| other.key < below.1.key) {
                below = (right, *other);
            }
            if below.1.key >= entry.key {
                break;
            }
            self.write(at, below.1);
            at = below.0;
        }
        self.write(at, entry);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fake::{LeakedStorage, Random};

    #[test]
    fn a_heap_gives_what_a_sorted_map_gives_whatever_was_done_before() {
        let mut random = Random::new(7);
        let mut heap = Heap::new(&LeakedStorage, 40).unwrap();
        let mut model = BTreeMap::<u16, u64>::new();
        for _ in 0..20_000 {
            let vcpu = u16::try_from(random.below(40)).unwrap();
            match random.below(5) {
                4 if !model.contains_key(&vcpu) => {
                    let key = random.below(60);
                    model.insert(vcpu, key);
                    let taken = heap.exchange(VcpuIndex(vcpu), key);
                    assert_eq!(Some(&taken.key), model.values().min());
                    assert_eq!(
                        model.remove(&taken.vcpu.0),
                        Some(taken.key),
                        "and it was in, or is the new one"
                    );
                    assert!(
                        taken.vcpu.0 != vcpu || model.values().all(|other| *other > key),
                        "its own only when all others' are larger"
                    );
                }
                0 | 1 => {
                    let key = random.below(60);
                    heap.put(VcpuIndex(vcpu), key);
                    model.insert(vcpu, key);
                }
                2 => assert_eq!(heap.remove(VcpuIndex(vcpu)), model.remove(&vcpu).is_some()),
                _ => {
                    let least = model.values().min().copied();
                    let popped = heap.pop();
                    assert_eq!(popped.map(|entry| entry.key), least);
                    if let Some(entry) = popped {
                        assert_eq!(model.remove(&entry.vcpu.0), least, "and it was in");
                    }
                }
            }
            assert_eq!(heap.first_key(), model.values().min().copied().unwrap_or(u64::MAX));
            assert_eq!(heap.check(), Ok(()));
            let all: BTreeMap<u16, u64> =
                heap.entries().iter().map(|entry| (entry.vcpu.0, entry.key)).collect();
            assert_eq!(all, model);
        }
    }

    #[test]
    fn a_heap_without_room_stays_empty() {
        let mut heap = Heap::default();
        heap.put(VcpuIndex(0), 3);
        assert_eq!((heap.first_key(), heap.check()), (u64::MAX, Ok(())));
    }

    #[test]
    fn a_vcpu_that_nobody_made_room_for_is_not_taken() {
        let mut heap = Heap::new(&LeakedStorage, 1).unwrap();
        heap.put(VcpuIndex(1), 5);
        heap.put(VcpuIndex(0), 3);
        heap.put(VcpuIndex(0), 4);
        assert!(!heap.remove(VcpuIndex(7)));
        assert_eq!((heap.entries().len(), heap.first_key()), (1, 4));
    }
}
