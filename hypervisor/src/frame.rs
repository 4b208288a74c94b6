//! The frame table: one [`FrameEntry`] for each 4 KiB frame between the lowest and the highest RAM address.
//!
//! Every frame has one owner, one [`Role`] and a count. An entry is one 64-bit word (owner, role, order, count) and two links,
//! all atomics, so that the table is shared without a lock and read anywhere.
//!
//! Invariants
//! 1. A frame has exactly one owner and one role at a time. Owner and role change only between [`Role::Free`] and another role
//!    (a domain's frame goes through [`Role::Limbo`] on its way back), only at count zero, and only under the frame allocator's lock (rank 30): [`crate::frame_alloc`] is the one that does it.
//!    The roles of a domain's RAM ([`Role::is_ram`]) change among each other under the owner's domain lock ([`crate::pagetable`]).
//!    One change is made with a count: data of a domain that is dying becomes an *orphan*, data of nobody ([`DomId::XEN`]), and counts the mappings
//!    that others have of it.
//! 2. `count` is how many references others hold: of data, stage-2 entries of other domains, grants in use, words that the hypervisor
//!    writes; of a table, links from other tables and roots in use; of text, executable leaves. It changes only while the role is one of
//!    these, under the owner's domain lock (rank 20), never wraps, and a frame with a count does not change owner or role.
//! 3. The links of a free frame belong to the free lists (rank 30). `next` of a frame that its owner maps (RAM, [`Role::Shared`]) is its
//!    *home*: the guest frame number where its owner's stage 2 was last told to map it. It is written under the owner's
//!    lock, and only a hint: who needs the truth looks stage 2 up.
//! 4. `order` has a meaning in the first frame of a free block only; everywhere else it is [`NO_ORDER`].
//! 5. Frames that are not RAM have the role [`Role::NotRam`] for ever.
//! 6. `prev` of a frame of role [`Role::Validating`] or [`Role::Releasing`] is how far that is ([`FrameTable::progress`]), of an orphan whose it was
//!    last.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pv_abi::DomId;

use crate::addr::{Gfn, Mfn};
use crate::domain::MAX_DOMAINS;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// A hole between two banks of RAM.
    NotRam = 0,
    /// In the free lists; nobody's.
    Free = 1,
    /// The hypervisor's own: image, boot storage with the frame table.
    Hypervisor = 2,
    /// A domain's RAM.
    Data = 3,
    /// A stage-2 table, charged to the domain it translates for.
    Stage2Table = 4,
    /// The hypervisor's, shown to its domain: shared info, grant table.
    Shared = 5,
    /// The hypervisor's, charged to a domain: what it remembers of the domain's grants.
    DomainTable = 6,
    /// Left a domain, nobody's, and not free before every CPU has left the hypervisor.
    Limbo = 7,
    /// A domain's page table of level 0, checked (and so on to level 3).
    Table0 = 8,
    /// Of level 1.
    Table1 = 9,
    /// Of level 2.
    Table2 = 10,
    /// Of level 3.
    Table3 = 11,
    /// Executable at a domain's EL1.
    KernelText = 12,
    /// Executable at a domain's EL0.
    UserText = 13,
    /// On its way from data to a table.
    Validating = 14,
    /// On its way from a table to data.
    Releasing = 15,
}

impl Role {
    /// Every role, index = number.
    pub const ALL: [Self; 16] = [
        Self::NotRam,
        Self::Free,
        Self::Hypervisor,
        Self::Data,
        Self::Stage2Table,
        Self::Shared,
        Self::DomainTable,
        Self::Limbo,
        Self::Table0,
        Self::Table1,
        Self::Table2,
        Self::Table3,
        Self::KernelText,
        Self::UserText,
        Self::Validating,
        Self::Releasing,
    ];

    /// A domain's RAM, whatever it uses it for.
    #[inline]
    pub const fn is_ram(self) -> bool {
        match self {
            Self::Data
            | Self::Table0
            | Self::Table1
            | Self::Table2
            | Self::Table3
            | Self::KernelText
            | Self::UserText
            | Self::Validating
            | Self::Releasing => true,
            Self::NotRam
            | Self::Free
            | Self::Hypervisor
            | Self::Stage2Table
            | Self::Shared
            | Self::DomainTable
            | Self::Limbo => false,
        }
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Free,
            2 => Self::Hypervisor,
            3 => Self::Data,
            4 => Self::Stage2Table,
            5 => Self::Shared,
            6 => Self::DomainTable,
            7 => Self::Limbo,
            8 => Self::Table0,
            9 => Self::Table1,
            10 => Self::Table2,
            11 => Self::Table3,
            12 => Self::KernelText,
            13 => Self::UserText,
            14 => Self::Validating,
            15 => Self::Releasing,
            // Nothing else is ever stored.
            _ => Self::NotRam,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::NotRam => 0,
            Self::Free => 1,
            Self::Hypervisor => 2,
            Self::Data => 3,
            Self::Stage2Table => 4,
            Self::Shared => 5,
            Self::DomainTable => 6,
            Self::Limbo => 7,
            Self::Table0 => 8,
            Self::Table1 => 9,
            Self::Table2 => 10,
            Self::Table3 => 11,
            Self::KernelText => 12,
            Self::UserText => 13,
            Self::Validating => 14,
            Self::Releasing => 15,
        }
    }
}

/// Why a frame cannot be what the caller wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The table has no such frame.
    NoFrame,
    /// It is another's.
    WrongOwner,
    /// It is used for something else.
    WrongRole,
    /// It has as many references as an entry can count.
    TooManyReferences,
    /// It has references.
    Referenced,
    /// It has no reference to give back.
    NotReferenced,
    /// Others changed the entry at the same time, against invariant 2.
    Contended,
}

/// `order` of every frame that is not the first of a free block.
pub const NO_ORDER: u8 = 0xFF;
/// No frame, no home.
pub(crate) const NO_LINK: u32 = u32::MAX;
/// References that an entry can count.
pub const MAX_COUNT: u32 = 0x7FFF_FFFF;
/// Machine addresses have at most this many bits: what a stage-2 descriptor holds without `FEAT_LPA`.
const MACHINE_BITS: u32 = 48;
/// Tries of a compare-and-exchange that only a fault of ours can make fail (invariant 2).
const TRIES: u32 = 64;

const OWNER_SHIFT: u32 = 48;
const ROLE_SHIFT: u32 = 40;
/// The bits of a word that count.
const COUNT: u64 = 0xFFFF_FFFF;

/// An entry's word, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameState {
    /// Whose it is; [`DomId::XEN`] for the hypervisor's and the free.
    pub owner: DomId,
    /// What for.
    pub role: Role,
    /// Binary logarithm of the frames in the free block that starts here, or [`NO_ORDER`].
    pub order: u8,
    /// References.
    pub count: u32,
}

impl FrameState {
    /// A frame that nobody refers to.
    pub(crate) const fn unreferenced(owner: DomId, role: Role) -> Self {
        Self { owner, role, order: NO_ORDER, count: 0 }
    }

    /// owner `[63:48]`, role `[47:40]`, order `[39:32]`, count `[31:0]`.
    #[inline]
    fn pack(self) -> u64 {
        u64::from(self.owner.0) << OWNER_SHIFT
            | u64::from(self.role.bits()) << ROLE_SHIFT
            | u64::from(self.order) << 32
            | u64::from(self.count)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "each field is cut to its width")]
    const fn unpack(word: u64) -> Self {
        Self {
            owner: DomId((word >> OWNER_SHIFT) as u16),
            role: Role::from_bits((word >> ROLE_SHIFT) as u8),
            order: (word >> 32) as u8,
            count: word as u32,
        }
    }
}

/// What is known of one frame.
#[derive(Debug)]
#[repr(C)]
pub struct FrameEntry {
    word: AtomicU64,
    next: AtomicU32,
    prev: AtomicU32,
}

const _: () = assert!(size_of::<FrameEntry>() == 16);

impl FrameEntry {
    /// A frame that is not RAM: what every entry starts as.
    pub const fn new() -> Self {
        // FrameState { owner: XEN, role: NotRam, order: NO_ORDER, count: 0 }, packed by hand because `pack` is not const.
        Self {
            word: AtomicU64::new((DomId::XEN.0 as u64) << 48 | (NO_ORDER as u64) << 32),
            next: AtomicU32::new(NO_LINK),
            prev: AtomicU32::new(NO_LINK),
        }
    }

    /// The entry as it is now.
    #[inline]
    pub fn state(&self) -> FrameState {
        FrameState::unpack(self.word.load(Ordering::Acquire))
    }

    /// Whether the entry is this now: one comparison of words.
    #[inline]
    pub(crate) fn is(&self, state: FrameState) -> bool {
        self.word.load(Ordering::Acquire) == state.pack()
    }

    /// Replaces the state, if it is still `from`.
    pub(crate) fn change(&self, from: FrameState, to: FrameState) -> bool {
        self.change_word(from.pack(), to.pack())
    }

    #[inline]
    fn change_word(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    pub(crate) fn prev(&self) -> u32 {
        self.prev.load(Ordering::Relaxed)
    }

    pub(crate) fn set_next(&self, link: u32) {
        self.next.store(link, Ordering::Relaxed);
    }

    pub(crate) fn set_prev(&self, link: u32) {
        self.prev.store(link, Ordering::Relaxed);
    }
}

impl Default for FrameEntry {
    fn default() -> Self {
        Self::new()
    }
}

/// Owners that are counted apart: the hypervisor, and domains 0 to [`MAX_DOMAINS`].
const OWNERS: usize = MAX_DOMAINS.wrapping_add(2);

/// The table and its counters.
#[derive(Debug)]
pub struct FrameTable {
    base: Mfn,
    entries: &'static [FrameEntry],
    /// Frames by owner (0 the hypervisor and free, else the domain's id and 1) and role.
    totals: [[AtomicU64; Role::ALL.len()]; OWNERS],
    /// Frames of RAM by owner that its stage 2 maps in blocks; all others of its RAM are in pages. Changed under the owner's lock.
    in_blocks: [AtomicU64; OWNERS],
    /// Orphans by whose they were last. Changed under the allocator's lock.
    orphans: [AtomicU64; OWNERS],
    /// Counters of fewer bits, for tests of what happens when they are full.
    #[cfg(any(test, feature = "fake"))]
    most: AtomicU32,
}

impl FrameTable {
    /// A table of frames `base..base + entries.len()`, none of them RAM until [`crate::frame_alloc::Frames::give`] or
    /// [`FrameTable::claim`] says so. `None` when the table is empty, or would name frames beyond 48-bit addresses or more of
    /// them than a link can.
    #[expect(clippy::large_stack_arrays, reason = "once, at boot, on the boot's stack")]
    pub fn new(base: Mfn, entries: &'static [FrameEntry]) -> Option<Self> {
        let count = u64::try_from(entries.len()).ok()?;
        let end = base.get().checked_add(count)?;
        let fits = end <= 1 << MACHINE_BITS.wrapping_sub(pv_abi::PAGE_SHIFT) && count < u64::from(NO_LINK);
        (fits && count != 0).then_some(Self {
            base,
            entries,
            totals: [const { [const { AtomicU64::new(0) }; Role::ALL.len()] }; OWNERS],
            in_blocks: [const { AtomicU64::new(0) }; OWNERS],
            orphans: [const { AtomicU64::new(0) }; OWNERS],
            #[cfg(any(test, feature = "fake"))]
            most: AtomicU32::new(MAX_COUNT),
        })
    }

    /// References that an entry can count from here on.
    #[cfg(any(test, feature = "fake"))]
    pub fn count_to(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// References that an entry can count.
    #[cfg(any(test, feature = "fake"))]
    pub fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }

    #[cfg(not(any(test, feature = "fake")))]
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "as the other")]
    const fn most(&self) -> u32 {
        MAX_COUNT
    }

    /// The first frame of the table.
    pub const fn base(&self) -> Mfn {
        self.base
    }

    /// The number of the frame behind the last one.
    pub fn end(&self) -> u64 {
        self.base.get().wrapping_add(self.entries.len() as u64)
    }

    /// The entry of a frame.
    #[inline]
    pub fn entry(&self, mfn: Mfn) -> Option<&FrameEntry> {
        self.entries.get(usize::try_from(mfn.get().checked_sub(self.base.get())?).ok()?)
    }

    /// A frame's state.
    #[inline]
    pub fn state(&self, mfn: Mfn) -> Option<FrameState> {
        Some(self.entry(mfn)?.state())
    }

    /// Every frame with its state; for the self-check.
    pub fn states(&self) -> impl Iterator<Item = (Mfn, FrameState)> + '_ {
        let frames = (self.base.get()..self.end()).filter_map(Mfn::new);
        frames.zip(self.entries.iter().map(FrameEntry::state))
    }

    /// Every frame's word, to be compared with what it was at another time; for tests.
    #[cfg(any(test, feature = "fake"))]
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().map(|entry| entry.word.load(Ordering::Acquire))
    }

    /// Takes a reference to a data frame of `owner`. The caller holds `owner`'s lock.
    ///
    /// # Errors
    /// The frame is no data frame of `owner`'s, or is referred to [`MAX_COUNT`] times.
    #[inline]
    pub fn reference(&self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        self.reference_as(mfn, owner, Role::Data)
    }

    /// Takes a reference to a frame of `owner` that has this role. The caller holds `owner`'s lock.
    ///
    /// # Errors
    /// The frame is no such frame, or is referred to [`MAX_COUNT`] times.
    #[inline(always)]
    pub fn reference_as(&self, mfn: Mfn, owner: DomId, role: Role) -> Result<(), FrameError> {
        let entry = self.entry(mfn).ok_or(FrameError::NoFrame)?;
        for _ in 0..TRIES {
            let word = entry.word.load(Ordering::Acquire);
            if word >> OWNER_SHIFT != u64::from(owner.0) {
                return Err(FrameError::WrongOwner);
            }
            if word >> ROLE_SHIFT & 0xFF != u64::from(role.bits()) {
                return Err(FrameError::WrongRole);
            }
            if word & COUNT >= u64::from(self.most()) && !crate::seeded!("xsa-249") {
                return Err(FrameError::TooManyReferences);
            }
            // The count is below its limit, so that nothing is carried out of it.
            if entry.change_word(word, word.wrapping_add(1)) {
                return Ok(());
            }
        }
        Err(FrameError::Contended)
    }

    /// Gives a reference back. The caller holds the owner's lock.
    ///
    /// # Errors
    /// There was no reference: a fault of the caller's, and nothing is changed.
    #[inline]
    pub fn release(&self, mfn: Mfn) -> Result<(), FrameError> {
        let entry = self.entry(mfn).ok_or(FrameError::NoFrame)?;
        for _ in 0..TRIES {
            let word = entry.word.load(Ordering::Acquire);
            // Nothing is borrowed from beyond a count that is not zero.
            if word & COUNT == 0 {
                return Err(FrameError::NotReferenced);
            }
            if entry.change_word(word, word.wrapping_sub(1)) {
                return Ok(());
            }
        }
        Err(FrameError::Contended)
    }

    /// Where the frame's owner last mapped it (invariant 3): a hint.
    #[inline]
    pub fn home(&self, mfn: Mfn) -> Option<Gfn> {
        let entry = self.entry(mfn)?;
        let role = entry.state().role;
        let link = entry.next();
        if (role.is_ram() || role == Role::Shared) && link != NO_LINK {
            Gfn::new(u64::from(link))
        } else {
            None
        }
    }

    /// Gives a frame of a domain's RAM another role among those of RAM. It has no reference, and the caller holds the owner's lock.
    ///
    /// # Errors
    /// It is not `owner`'s, has not the role `from`, or has a reference.
    pub fn retype(&self, mfn: Mfn, owner: DomId, from: Role, to: Role) -> Result<(), FrameError> {
        if !from.is_ram() || !to.is_ram() {
            return Err(FrameError::WrongRole);
        }
        self.transit(mfn, FrameState::unreferenced(owner, from), FrameState::unreferenced(owner, to))
    }

    /// Makes a table or text frame of a domain that is dying data without a count, so that it can be freed. Its vCPUs are off for good, and its
    /// translations flushed; the counts are those of its own tables.
    pub(crate) fn forget_role(&self, mfn: Mfn, owner: DomId) {
        if let Some(state) = self.state(mfn)
            && state.owner == owner
            && state.role.is_ram()
            && state.role != Role::Data
        {
            // Nobody else changes it: the domain makes no calls.
            let _ = self.transit(mfn, state, FrameState::unreferenced(owner, Role::Data));
        }
    }

    /// Frames of RAM that a domain has, whatever it uses them for.
    pub fn ram_total(&self, owner: DomId) -> u64 {
        let ram = Role::ALL.into_iter().filter(|role| role.is_ram());
        ram.fold(0, |sum, role| sum.wrapping_add(self.total(owner, role)))
    }

    /// Frames of RAM that a domain's stage 2 maps in blocks.
    pub fn in_blocks(&self, owner: DomId) -> u64 {
        self.in_blocks.get(row(owner)).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Frames of a domain's former lives that others still have mapped.
    pub fn orphans(&self, last: DomId) -> u64 {
        self.orphans.get(row(last)).map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    /// A frame is an orphan from now on; it was this domain's. Under the allocator's lock.
    pub(crate) fn orphaned(&self, mfn: Mfn, last: DomId) {
        if let (Some(entry), Some(counter)) = (self.entry(mfn), self.orphans.get(row(last))) {
            entry.set_prev(u32::from(last.0));
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An orphan has no mappings any more. Under the allocator's lock.
    pub(crate) fn let_go(&self, mfn: Mfn) {
        let last = self.entry(mfn).and_then(|entry| u16::try_from(entry.prev()).ok());
        if let (Some(entry), Some(last)) = (self.entry(mfn), last) {
            entry.set_prev(NO_LINK);
            if let Some(counter) = self.orphans.get(row(DomId(last))) {
                counter.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Notes how many frames of RAM a domain's stage 2 maps in blocks. The caller holds the owner's lock.
    pub(crate) fn set_in_blocks(&self, owner: DomId, frames: u64) {
        if let Some(counter) = self.in_blocks.get(row(owner)) {
            counter.store(frames, Ordering::Relaxed);
        }
    }

    /// How far a change of roles is (invariant 6).
    pub fn progress(&self, mfn: Mfn) -> u32 {
        self.entry(mfn).map_or(0, FrameEntry::prev)
    }

    /// Notes how far a change of roles is; [`NO_LINK`] when it is over. The caller holds the owner's lock.
    pub(crate) fn set_progress(&self, mfn: Mfn, progress: u32) {
        if let Some(entry) = self.entry(mfn) {
            entry.set_prev(progress);
        }
    }

    /// Notes where the frame's owner maps it. The caller holds the owner's lock. Ignored for frames without a home.
    #[inline]
    pub fn set_home(&self, mfn: Mfn, home: Option<Gfn>) {
        if let Some(entry) = self.entry(mfn)
            && (entry.state().role.is_ram() || entry.state().role == Role::Shared)
        {
            entry.set_next(home.and_then(|gfn| u32::try_from(gfn.get()).ok()).unwrap_or(NO_LINK));
        }
    }

    /// [`Self::set_home`] of a frame that has just become RAM, or a page that is shown.
    #[inline]
    pub(crate) fn settle(&self, mfn: Mfn, home: Gfn) {
        if let (Some(entry), Ok(link)) = (self.entry(mfn), u32::try_from(home.get())) {
            entry.set_next(link);
        }
    }

    /// Boot: a frame of RAM that the hypervisor uses itself (image, tables, modules).
    ///
    /// # Errors
    /// The frame is known already, or does not exist.
    pub fn claim(&self, mfn: Mfn) -> Result<(), FrameError> {
        self.transit(
            mfn,
            FrameState::unreferenced(DomId::XEN, Role::NotRam),
            FrameState::unreferenced(DomId::XEN, Role::Hypervisor),
        )
    }

    /// Frames of `owner` ([`DomId::XEN`] for the hypervisor's and the free) that have this role.
    pub fn total(&self, owner: DomId, role: Role) -> u64 {
        self.counter(owner, role).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Changes a frame's owner and role and keeps the totals. Under the allocator's lock (invariant 1).
    pub(crate) fn transit(&self, mfn: Mfn, from: FrameState, to: FrameState) -> Result<(), FrameError> {
        let entry = self.entry(mfn).ok_or(FrameError::NoFrame)?;
        if !entry.change(from, to) {
            return Err(FrameError::WrongRole);
        }
        if let Some(counter) = self.counter(from.owner, from.role)
            && from.role != Role::NotRam
        {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(counter) = self.counter(to.owner, to.role) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// [`Self::transit`] of a frame that cannot fail; its links are cut. Under the allocator's lock.
    #[inline]
    pub(crate) fn transit_single(&self, mfn: Mfn, from: FrameState, to: FrameState) {
        if self.transit(mfn, from, to).is_ok()
            && let Some(entry) = self.entry(mfn)
        {
            entry.set_next(NO_LINK);
            entry.set_prev(NO_LINK);
        }
    }

    /// [`Self::transit`] of neighbours that are all `from`; their links are cut. Under the allocator's lock.
    pub(crate) fn transit_block(&self, numbers: Range<u64>, from: FrameState, to: FrameState) {
        let index =
            |number: u64| usize::try_from(number.saturating_sub(self.base.get())).unwrap_or(usize::MAX);
        let entries = self.entries.get(index(numbers.start)..index(numbers.end)).unwrap_or(&[]);
        let mut changed: u64 = 0;
        for entry in entries {
            changed = changed.wrapping_add(u64::from(entry.change(from, to)));
            entry.set_next(NO_LINK);
            entry.set_prev(NO_LINK);
        }
        if let Some(counter) = self.counter(from.owner, from.role)
            && from.role != Role::NotRam
        {
            counter.fetch_sub(changed, Ordering::Relaxed);
        }
        if let Some(counter) = self.counter(to.owner, to.role) {
            counter.fetch_add(changed, Ordering::Relaxed);
        }
    }

    fn counter(&self, owner: DomId, role: Role) -> Option<&AtomicU64> {
        self.totals.get(row(owner))?.get(usize::from(role.bits()))
    }
}

/// An owner's place in the totals.
fn row(owner: DomId) -> usize {
    if owner == DomId::XEN { 0 } else { usize::from(owner.0).wrapping_add(1) }
}

#[cfg(test)]
mod tests;
