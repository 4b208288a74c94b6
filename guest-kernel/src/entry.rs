//! One entry of the shared grant table, version 1, and which entries are free (`public/grant_table.h`).
//!
//! 1. An entry is published by its flags, after domain and frame (release).
//! 2. Access ends by a compare-and-exchange that fails while the hypervisor has marked the entry as in use.
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use alloc::vec::Vec;
use pv_abi::grant::{ENTRY_SIZE, EntryFlags, GrantEntry, RESERVED_ENTRIES};
use pv_abi::{DomId, GrantRef};

/// What a peer may do with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

impl Access {
    const fn flags(self) -> EntryFlags {
        match self {
            Self::ReadOnly => EntryFlags::PERMIT_ACCESS.union(EntryFlags::READONLY),
            Self::ReadWrite => EntryFlags::PERMIT_ACCESS,
        }
    }
}

/// The peer still uses a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InUse;

/// An entry, shared with the hypervisor.
#[repr(C)]
pub struct SharedEntry {
    flags: AtomicU16,
    domid: AtomicU16,
    frame: AtomicU32,
}

const _: () = {
    assert!(size_of::<SharedEntry>() == ENTRY_SIZE);
    assert!(core::mem::offset_of!(SharedEntry, domid) == core::mem::offset_of!(GrantEntry, domid));
    assert!(core::mem::offset_of!(SharedEntry, frame) == core::mem::offset_of!(GrantEntry, frame));
};

impl SharedEntry {
    /// Its flags (`GTF_*`).
    pub fn flags(&self) -> u16 {
        self.flags.load(Ordering::Acquire)
    }

    /// Lets `peer` use the guest frame `gfn`.
    pub fn permit(&self, peer: DomId, gfn: u32, access: Access) {
        self.domid.store(peer.0, Ordering::Relaxed);
        self.frame.store(gfn, Ordering::Relaxed);
        self.flags.store(access.flags().bits(), Ordering::Release);
    }

    /// Ends the permission.
    ///
    /// # Errors
    /// [`InUse`] while a mapping or copy is under way; the permission then stays.
    pub fn end(&self, access: Access) -> Result<(), InUse> {
        match self.flags.compare_exchange(access.flags().bits(), 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(InUse),
        }
    }
}

/// Which references are free. Lowest first; the reserved ones are never given out.
pub struct References {
    taken: Vec<u64>,
}

impl References {
    /// None, until [`References::grow`].
    pub const fn new() -> Self {
        Self { taken: Vec::new() }
    }

    /// Makes `entries` references in all known.
    pub fn grow(&mut self, entries: u32) {
        let words = entries as usize / 64;
        if self.taken.is_empty() && words > 0 {
            self.taken.push((1 << RESERVED_ENTRIES) - 1);
        }
        if words > self.taken.len() {
            self.taken.resize(words, 0);
        }
    }

    /// Takes the lowest free reference.
    pub fn take(&mut self) -> Option<GrantRef> {
        let (index, word) = self.taken.iter_mut().enumerate().find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        u32::try_from(index).ok().map(|index| GrantRef(index * 64 + bit))
    }

    /// Gives a reference back.
    pub fn give_back(&mut self, reference: GrantRef) {
        if let Some(word) = self.taken.get_mut(reference.0 as usize / 64) {
            *word &= !(1 << (reference.0 % 64));
        }
    }
}

impl Default for References {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> SharedEntry {
        SharedEntry { flags: AtomicU16::new(0), domid: AtomicU16::new(0), frame: AtomicU32::new(0) }
    }

    #[test]
    fn access_cannot_end_while_the_peer_reads_or_writes() {
        let entry = entry();
        entry.permit(DomId(2), 0x40123, Access::ReadWrite);
        // Values of public/grant_table.h: GTF_permit_access 1, GTF_reading 8, GTF_writing 16.
        assert_eq!(entry.flags.load(Ordering::Relaxed), 1);
        assert_eq!(entry.domid.load(Ordering::Relaxed), 2);
        assert_eq!(entry.frame.load(Ordering::Relaxed), 0x40123);
        for in_use in [8, 16, 24] {
            entry.flags.store(1 | in_use, Ordering::Relaxed);
            assert_eq!(entry.end(Access::ReadWrite), Err(InUse));
        }
        entry.flags.store(1, Ordering::Relaxed);
        assert_eq!(entry.end(Access::ReadWrite), Ok(()));
        assert_eq!(entry.flags.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_first_free_reference_is_eight() {
        let mut references = References::new();
        assert_eq!(references.take(), None);
        references.grow(512);
        assert_eq!(references.take(), Some(GrantRef(8)));
        assert_eq!(references.take(), Some(GrantRef(9)));
        references.give_back(GrantRef(8));
        assert_eq!(references.take(), Some(GrantRef(8)));
    }

    #[test]
    fn references_run_out_and_grow() {
        let mut references = References::new();
        references.grow(512);
        assert_eq!((0..600).filter_map(|_| references.take()).count(), 504);
        references.grow(1024);
        assert_eq!(references.take(), Some(GrantRef(512)));
    }
}
