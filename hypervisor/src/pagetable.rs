//! Paravirtual page tables: in a domain configured `pv` the hypervisor guarantees the integrity of the guest's own address spaces, even against
//! its kernel. `mmu_update`, `update_va_mapping`, `mmuext_op`.
//!
//! A frame of the domain has one role ([`Role`]): data (stage 2: read, write, never execute), table of a level (read), kernel or user
//! text (read, execute). A root and the tables below it are made from the bottom: a page becomes a table by a *pin* that checks its
//! 512 entries; an entry may link only what is a table of the next level already, or execute only what is text already. So no table links
//! itself, one of its level or above, chains have four links, and nothing here recurses. Who links or executes holds a *count* on
//! the frame; a frame goes back to data by an *unpin*, at count zero.
//!
//! Invariants
//! 1. Roles, counts, roots and the entries of tables change under the domain's lock (rank 20) only. The guest cannot write a table: stage 2.
//! 2. Every entry of a table is empty or passed `entry::decode` and `entry::hold`, and holds what it names for as long as it is there. Entries
//!    hold guest frame numbers, and what has a role other than data is never moved, replaced or taken away
//!    ([`Kind::is_held_in_place`]).
//! 3. *To become table or text*: count zero; stage 2 to read-only; flushed on all CPUs, so that no vCPU writes by an older
//!    translation; no CPU at EL2 still writes by an older look-up ([`Shared::writes`]; what is written outside it is referred to);
//!    cleaned and invalidated to the point of coherency, since a non-cacheable alias of the guest's may have put other bytes there than
//!    EL2 sees (XSA-402); only then is it read and checked.
//! 4. *To become data again*: count zero, so no entry names it; stage-1 translations and walk caches of all CPUs are flushed *before* stage
//!    2 lets it be written. (An entry that goes is flushed before the lock is let go, so a frame never loses its last count with a
//!    translation left; a root that a vCPU has left may still be in walk caches: this flush is for it.) ASIDs do not matter:
//!    flushes take all of a VMID's.
//! 5. Until its first root for the upper half is installed the domain is trusted with itself: it boots with the MMU off, runs by whatever
//!    tables it likes. Installing ends that, once: every frame but text loses execution in stage 2, the roots are checked ones, and the controls are
//!    fixed ([`control`]). From then on only `mmuext_op` changes roots, and a vCPU that comes on starts with the MMU on.
//! 6. Data mappings are not counted: whatever they say, stage 2 has the last word. This is the first wall behind the second: a fault in the
//!    role logic harms the guest itself, domains are kept apart by stage 2 alone.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
mod batch;
mod check;
pub mod control;
mod entry;
mod extended;
mod role;
mod root;
mod update;

pub(crate) use check::check;
pub use entry::Level;
pub use extended::mmuext_op;
pub use root::{Bases, Half, start};
pub use update::{mmu_update, update_va_mapping};

use core::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{Gfn, Mfn};
use crate::domain::{Domain, DomainState};
use crate::lock::{Lock, rank};
#[allow(unused_imports, reason = "for the text above")]
use crate::{frame::Role, stage2::Kind};
use control::Controls;

/// Whether roles are checked and enforced. A build for a test does not: pins change nothing, any page of the domain's own can be changed as a table,
/// with any entry, and is a root; controls are free. What a guest then does is to itself, and no other domain may notice (invariant 6).
pub const CHECKED: bool = !cfg!(feature = "one-wall");

/// vCPUs that a domain may have.
pub const MAX_VCPUS: usize = 8;

/// Beside the domain's lock.
#[derive(Debug)]
pub struct Shared {
    /// Held by a CPU at EL2 from looking up a page of the domain's for writing, be it for whom it was granted to, to the end of the write, and around the change of stage 2 that
    /// makes a page read-only (invariant 3). Rank 25: inside the domain's lock. At most a page is written under it.
    pub writes: Lock<(), { rank::WRITES }>,
    installed: AtomicBool,
}

impl Shared {
    /// Of a domain that is still trusted with itself.
    pub const fn new() -> Self {
        Self { writes: Lock::new(()), installed: AtomicBool::new(false) }
    }

    /// Whether the trust has ended (invariant 5).
    #[inline]
    pub fn is_installed(&self) -> bool {
        self.installed.load(Ordering::Acquire)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// A domain that is dying forgets its roots; its frames are freed after. Its lock is held.
pub(crate) fn forget(domain: &Domain, state: &mut DomainState) {
    if let (Some(shared), Some(paging)) = (domain.paging(), &mut state.paging) {
        *paging = Paging::new();
        shared.installed.store(false, Ordering::Release);
    }
}

/// A root that a vCPU uses, or will.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its frame; it has a count for this.
    pub mfn: Mfn,
    /// Where it is for the guest.
    pub gfn: Gfn,
    /// The ASID that goes with it.
    pub asid: u16,
}

/// Under the domain's lock.
#[derive(Debug)]
pub struct Paging {
    /// Roots of each vCPU: lower half, upper half.
    roots: [[Option<Root>; 2]; MAX_VCPUS],
    /// What a vCPU that comes on starts with: the roots that ended the trust.
    first: [Option<Root>; 2],
    /// Fixed when the trust ended.
    controls: Controls,
    /// How far [`crate::stage2::Stage2::forbid_execution`] is.
    forbidden: Gfn,
    /// No kernel text any more.
    sealed: bool,
    /// Where a page became data last: its block may be joined when one elsewhere does. (Who pins and unpins time and again does not split and
    /// join as often.)
    left: Option<Gfn>,
}

impl Paging {
    /// Of a domain that is still trusted with itself.
    pub fn new() -> Self {
        Self {
            roots: [[None; 2]; MAX_VCPUS],
            first: [None; 2],
            controls: Controls::default(),
            forbidden: Gfn::default(),
            sealed: false,
            left: None,
        }
    }

    /// The controls that were fixed.
    pub const fn controls(&self) -> Controls {
        self.controls
    }
}

impl Default for Paging {
    fn default() -> Self {
        Self::new()
    }
}
