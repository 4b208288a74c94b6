//! TLB maintenance: of which instructions an invalidation is made, and in what order. The image executes them one by one; the fake machine does what the
//! Arm ARM says of each, so that one that is missing, too narrow, or in the wrong place is seen in tests on the host.
//!
//! Invariants
//! 1. *Before*: a DSB for stores, so that every walk after the invalidation sees what was written to tables (D8.16.3). What is local has nothing written.
//! 2. *Where*: on all CPUs (the Inner Shareable forms), of all ASIDs. Only who enters a CPU forgets there alone ([`crate::vmid`]).
//! 3. *After*: a DSB of the same reach. It waits until no CPU uses what was invalidated: accesses and walks under way are over. Then an ISB, for what
//!    this CPU translates itself (`AT`).
//! 4. By an IPA entries of stage 2 go, and no others. What combines both stages, and walk caches, go with stage 1 of the VMID (D8.14.5), and
//!    after those of stage 2 are gone for certain: before, they could be combined anew.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::addr::{GuestVa, Ipa};

/// An instruction that invalidates, by the address space that `VTTBR_EL2` names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// `TLBI IPAS2E1IS`: what stage 2 alone says of a page, on all CPUs.
    Stage2Page(Ipa),
    /// `TLBI VMALLE1IS`: stage 1, walks and both stages combined; all ASIDs and what is global, on all CPUs.
    Stage1,
    /// `TLBI VAAE1IS`: the same for one address.
    Stage1Address(GuestVa),
    /// `TLBI VMALLS12E1IS`: everything, on all CPUs.
    All,
    /// `TLBI VMALLE1`: as [`Self::Stage1`], on this CPU.
    Stage1Here,
    /// `TLBI VMALLS12E1`: as [`Self::All`], on this CPU.
    AllHere,
    /// `TLBI ASIDE1IS`, which would be too little anywhere: what is of one ASID and not global.
    #[cfg(any(test, feature = "fake", feature = "seeded"))]
    Stage1Asid(u16),
}

/// A barrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barrier {
    /// `DSB ISHST`: stores before it are seen by walks of all CPUs.
    Stores,
    /// `DSB ISH`: that, and invalidations before it are complete on all CPUs.
    Everywhere,
    /// `DSB NSH`: invalidations before it are complete on this CPU.
    Here,
    /// `ISB`.
    Context,
}

/// Who executes them.
pub trait Maintenance {
    /// Executes one that invalidates.
    fn invalidate(&self, what: Tlbi);
    /// Executes a barrier.
    fn wait(&self, barrier: Barrier);
}

/// Forgets what stage 2 says of a page, wherever that has gone into.
#[inline(always)]
pub fn forget_page(by: &impl Maintenance, ipa: Ipa) {
    before(by);
    by.invalidate(Tlbi::Stage2Page(ipa));
    if crate::seeded!("flush-page-alone") {
        return after(by);
    }
    if !crate::seeded!("flush-page-at-once") {
        by.wait(Barrier::Everywhere);
    }
    by.invalidate(Tlbi::Stage1);
    after(by);
}

/// Forgets everything of the address space.
#[inline(always)]
pub fn forget_all(by: &impl Maintenance) {
    before(by);
    by.invalidate(if crate::seeded!("flush-here") { Tlbi::AllHere } else { Tlbi::All });
    after(by);
}

/// Forgets everything of stage 1.
#[inline(always)]
pub fn forget_stage1(by: &impl Maintenance) {
    before(by);
    #[cfg(feature = "seeded")]
    if crate::seeded!("flush-one-asid") {
        by.invalidate(Tlbi::Stage1Asid(0));
        return after(by);
    }
    by.invalidate(if crate::seeded!("flush-stage-1-here") { Tlbi::Stage1Here } else { Tlbi::Stage1 });
    after(by);
}

/// Forgets what stage 1 says of an address.
#[inline(always)]
pub fn forget_address(by: &impl Maintenance, va: GuestVa) {
    before(by);
    by.invalidate(Tlbi::Stage1Address(va));
    after(by);
}

/// Forgets everything of stage 1 that this CPU has. Nothing was written that it must see.
#[inline(always)]
pub fn forget_stage1_here(by: &impl Maintenance) {
    by.invalidate(Tlbi::Stage1Here);
    after_here(by);
}

/// Forgets everything of the address space that this CPU has. Nothing was written that it must see.
#[inline(always)]
pub fn forget_all_here(by: &impl Maintenance) {
    by.invalidate(Tlbi::AllHere);
    after_here(by);
}

#[inline(always)]
fn before(by: &impl Maintenance) {
    if !crate::seeded!("flush-unordered") {
        by.wait(Barrier::Stores);
    }
}

#[inline(always)]
fn after(by: &impl Maintenance) {
    if !crate::seeded!("flush-unfinished") {
        by.wait(Barrier::Everywhere);
    }
    by.wait(Barrier::Context);
}

#[inline(always)]
fn after_here(by: &impl Maintenance) {
    by.wait(Barrier::Here);
    by.wait(Barrier::Context);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::vec::Vec;

    use super::*;
    use crate::fake::{GuestAccess, RAM, World};
    use crate::hardware::{CpuId, Vmid};

    /// What was executed: `Ok` invalidates.
    #[derive(Default)]
    struct Written(RefCell<Vec<Result<Tlbi, Barrier>>>);

    impl Maintenance for Written {
        fn invalidate(&self, what: Tlbi) {
            self.0.borrow_mut().push(Ok(what));
        }
        fn wait(&self, barrier: Barrier) {
            self.0.borrow_mut().push(Err(barrier));
        }
    }

    #[test]
    fn a_page_of_stage_2_goes_before_what_it_was_combined_into_and_each_is_waited_for() {
        let (by, ipa) = (Written::default(), Ipa::new(0x4567_8000).unwrap());
        forget_page(&by, ipa);
        let expected = [
            Err(Barrier::Stores),
            Ok(Tlbi::Stage2Page(ipa)),
            Err(Barrier::Everywhere),
            Ok(Tlbi::Stage1),
            Err(Barrier::Everywhere),
            Err(Barrier::Context),
        ];
        assert_eq!(*by.0.borrow(), expected);
    }

    /// An address that a guest maps by tables of its own.
    const VA: u64 = 0x1234_5000;
    const TABLES: u64 = RAM + 0x10_0000;
    const PAGE: u64 = RAM + 0x18_0000;

    /// Whether two CPUs, which had a translation that has changed, have it no more after this.
    fn cleans(maintenance: impl FnOnce(&dyn Fn(Tlbi), &dyn Fn(Barrier))) -> bool {
        cleans_of(None, maintenance)
    }

    fn cleans_of(other: Option<Vmid>, maintenance: impl FnOnce(&dyn Fn(Tlbi), &dyn Fn(Barrier))) -> bool {
        let world = World::new(1);
        let (hw, domain) = (&world.machine.hw, world.domain(1));
        for (level, shift) in [(0, 39), (1, 30), (2, 21), (3, 12)] {
            let next = if level == 3 { PAGE } else { TABLES + (level + 1) * 4096 };
            let at = TABLES + level * 4096 + (VA >> shift & 511) * 8;
            world.guest_write(1, at, &(next | 1 << 10 | 0b11).to_le_bytes());
        }
        for cpu in [1, 0] {
            hw.run_on(CpuId(cpu));
            hw.guest_access(domain.vmid, domain.stage2_root, TABLES, VA, GuestAccess::Write).unwrap();
        }
        assert_eq!(hw.stale_translation(), None);
        world.guest_write(1, TABLES + 3 * 4096 + (VA >> 12 & 511) * 8, &0_u64.to_le_bytes());
        assert!(hw.stale_translation().is_some());
        let by = hw.maintains(other.unwrap_or(domain.vmid));
        maintenance(&|what| by.invalidate(what), &|barrier| by.wait(barrier));
        hw.stale_translation().is_none()
    }

    #[test]
    fn an_invalidation_takes_what_its_instruction_says_and_when_it_has_been_waited_for() {
        let page = Ipa::new(PAGE).unwrap();
        let address = |va| Tlbi::Stage1Address(GuestVa::new(va));
        for (what, barrier, expected) in [
            (Tlbi::Stage1, Barrier::Everywhere, true),
            (Tlbi::All, Barrier::Everywhere, true),
            (address(VA), Barrier::Everywhere, true),
            (address(VA + 0x1000), Barrier::Everywhere, false),
            (Tlbi::Stage2Page(page), Barrier::Everywhere, false),
            // It is for all ASIDs.
            (Tlbi::Stage1Asid(0), Barrier::Everywhere, false),
            // Only here, or only known to be done here.
            (Tlbi::Stage1Here, Barrier::Here, false),
            (Tlbi::AllHere, Barrier::Everywhere, false),
            (Tlbi::Stage1, Barrier::Here, false),
            (Tlbi::Stage1, Barrier::Stores, false),
            (Tlbi::Stage1, Barrier::Context, false),
        ] {
            let found = cleans(|invalidate, wait| {
                invalidate(what);
                wait(barrier);
            });
            assert_eq!(found, expected, "{what:?}, {barrier:?}");
        }
        assert!(!cleans_of(Some(Vmid(77)), |invalidate, wait| {
            invalidate(Tlbi::All);
            wait(Barrier::Everywhere);
        }));
    }
}
