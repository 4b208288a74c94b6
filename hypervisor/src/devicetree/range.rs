//! Ranges of physical addresses, and sorted sets of them.
//!
//! 1. A [`PhysRange`] is never empty and never wraps.
//! 2. The ranges of a [`RangeSet`] ascend, do not overlap and do not touch.
use heapless::Vec;

/// A range of physical addresses, at least one byte long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysRange {
    start: u64,
    end: u64,
}

impl PhysRange {
    /// `size` bytes from physical address `start`; none when that is empty or passes the end of the address space.
    pub fn new(start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        (size != 0).then_some(Self { start, end })
    }

    /// The first physical address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The physical address behind the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes in the range.
    pub const fn size(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether some byte is in both ranges.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The smallest range that holds both.
    fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// At most `N` ranges, sorted and merged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeSet<const N: usize> {
    ranges: Vec<PhysRange, N>,
}

impl<const N: usize> RangeSet<N> {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The ranges in ascending order.
    pub fn as_slice(&self) -> &[PhysRange] {
        &self.ranges
    }

    /// Sum of all sizes, in bytes.
    pub fn total(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// Adds `range`, merging it with what it overlaps or touches.
    ///
    /// # Errors
    /// Gives the range back when `N` separate ranges are in the set already; the set is unchanged.
    #[inline(never)]
    pub fn insert(&mut self, range: PhysRange) -> Result<(), PhysRange> {
        let mut merged = Vec::new();
        let mut new = Some(range);
        for old in &self.ranges {
            let next = match new {
                Some(pending) if old.end < pending.start => *old,
                Some(pending) if pending.end < old.start => {
                    merged.push(pending).map_err(|_| range)?;
                    new = None;
                    *old
                }
                Some(pending) => {
                    new = Some(pending.hull(*old));
                    continue;
                }
                None => *old,
            };
            merged.push(next).map_err(|_| range)?;
        }
        if let Some(pending) = new {
            merged.push(pending).map_err(|_| range)?;
        }
        self.ranges = merged;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(start, end - start).unwrap()
    }

    #[test]
    fn empty_and_wrapping_ranges_do_not_exist() {
        assert_eq!(PhysRange::new(0x1000, 0), None);
        assert_eq!(PhysRange::new(u64::MAX, 2), None);
        assert!(PhysRange::new(u64::MAX - 1, 1).is_some());
    }

    #[test]
    fn inserted_ranges_are_sorted_and_merged() {
        let mut set: RangeSet<4> = RangeSet::new();
        for (start, end) in [(8, 10), (0, 2), (4, 6), (2, 3), (5, 8)] {
            set.insert(range(start, end)).unwrap();
        }
        assert_eq!(set.as_slice(), [range(0, 3), range(4, 10)]);
        assert_eq!(set.total(), 9);
    }

    #[test]
    fn a_range_that_covers_all_swallows_all() {
        let mut set: RangeSet<3> = RangeSet::new();
        for (start, end) in [(1, 2), (3, 4), (5, 6), (0, 9)] {
            set.insert(range(start, end)).unwrap();
        }
        assert_eq!(set.as_slice(), [range(0, 9)]);
    }

    #[test]
    fn a_full_set_refuses_and_stays_as_it_was() {
        let mut set: RangeSet<2> = RangeSet::new();
        set.insert(range(10, 11)).unwrap();
        set.insert(range(20, 21)).unwrap();
        let before = set.clone();
        assert_eq!(set.insert(range(15, 16)), Err(range(15, 16)));
        assert_eq!(set.insert(range(0, 1)), Err(range(0, 1)));
        assert_eq!(set.insert(range(30, 31)), Err(range(30, 31)));
        assert_eq!(set, before);
        set.insert(range(11, 20)).unwrap();
        assert_eq!(set.as_slice(), [range(10, 21)]);
    }
}
