//! Names of address spaces in the TLB (`VTTBR_EL2.VMID`), and what a CPU forgets when a vCPU enters it.
//!
//! A domain's name never changes. There are [`COUNT`] of them, so with more domains some share one. (Generations, which give names out anew when they have
//! run out, would stop all CPUs and have them forget everything then; who shares a name costs something only where both run on one CPU.)
//!
//! Invariants
//! 1. A CPU's TLB holds by one name translations of one domain at most: of the one whose vCPU entered there last.
//! 2. Of stage 1 it holds by one name translations of one vCPU at most: each has tables and ASIDs of its own choice, as CPUs have (translations that are
//!    not shared between CPUs, Arm ARM D8.16.5).
//! 3. What is flushed by a name, on all CPUs, is forgotten for each domain that has it: too much at worst.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::{AtomicU16, Ordering};

use crate::hardware::Vmid;
use crate::vcpu::VcpuIndex;

/// VMIDs that every CPU has (a Cortex-A72's have eight bits), without 0, which no guest uses.
pub const COUNT: usize = 255;

/// The name of a domain, by its place in the order of building.
pub fn of(place: usize) -> Vmid {
    Vmid(u16::try_from(place % COUNT).unwrap_or(0).wrapping_add(1))
}

/// The TLB of one CPU, where the entering vCPU's name is in `VTTBR_EL2` already and nothing is walked.
pub trait LocalTlb {
    /// Forgets what this CPU has by this name of stage 1, and of both stages combined.
    fn forget_stage1(&self, vmid: Vmid);
    /// Forgets all that this CPU has by this name.
    fn forget_all(&self, vmid: Vmid);
}

/// Which vCPU entered a CPU last by each name, plus 1; 0 at first: zeros need no room in the image.
#[derive(Debug)]
pub struct LastHere([AtomicU16; COUNT + 1]);

const NOBODY: u16 = 0;

impl LastHere {
    /// Nobody was here.
    #[allow(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self([const { AtomicU16::new(NOBODY) }; COUNT + 1])
    }

    /// A vCPU enters, of a domain with this name: what another left goes. `is_sibling` says whether a vCPU is of the same domain.
    #[inline(always)]
    pub fn enter(
        &self,
        tlb: &impl LocalTlb,
        vmid: Vmid,
        vcpu: VcpuIndex,
        is_sibling: impl FnOnce(VcpuIndex) -> bool,
    ) {
        let own = vcpu.0.wrapping_add(1);
        let last = self.0.get(usize::from(vmid.0)).map_or(NOBODY, |last| last.swap(own, Ordering::Relaxed));
        if last == own || last == NOBODY {
            return;
        }
        if is_sibling(VcpuIndex(last.wrapping_sub(1))) {
            tlb.forget_stage1(vmid);
        } else {
            tlb.forget_all(vmid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::vec::Vec;

    use super::*;
    use crate::addr::Ipa;
    use crate::fake::{FakeHardware, GuestAccess, RAM, World};

    /// The TLB of the fake machine, as that of one CPU.
    struct OneCpu<'w>(&'w FakeHardware, RefCell<Vec<&'static str>>);

    impl LocalTlb for OneCpu<'_> {
        fn forget_stage1(&self, vmid: Vmid) {
            crate::tlb::forget_stage1_here(&self.0.maintains(vmid));
            self.1.borrow_mut().push("stage 1");
        }
        fn forget_all(&self, vmid: Vmid) {
            crate::tlb::forget_all_here(&self.0.maintains(vmid));
            self.1.borrow_mut().push("all");
        }
    }

    /// A vCPU of a domain enters the CPU.
    fn enter(world: &World, here: &LastHere, tlb: &OneCpu<'_>, id: u16, vcpu: u32) {
        let domain = world.domain(id);
        let index = domain.vcpu(vcpu).unwrap().index;
        here.enter(tlb, domain.vmid, index, |last| domain.vcpus.iter().any(|vcpu| vcpu.index == last));
    }

    #[test]
    fn two_domains_of_one_name_never_meet_each_others_translations() {
        const AT: u64 = RAM + 0x10_0000;
        let world = World::of_one_name(3);
        let (here, tlb) = (LastHere::new(), OneCpu(&world.machine.hw, RefCell::default()));
        assert_eq!(world.domain(1).vmid, world.domain(2).vmid);
        for round in 0..3 {
            for id in [1, 2, 3] {
                enter(&world, &here, &tlb, id, 0);
                if round == 0 {
                    world.guest_write(id, AT, &u64::from(id).to_le_bytes());
                }
                assert_eq!(world.guest_read::<8>(id, AT), u64::from(id).to_le_bytes(), "round {round}");
                // What is there for one of them is not for another.
                let missing = Ipa::new(RAM + (64 << 20)).unwrap();
                let (hw, domain) = (&world.machine.hw, world.domain(id));
                assert!(hw.guest_read(domain.vmid, domain.stage2_root, missing, &mut [0]).is_err());
            }
        }
        assert_eq!(*tlb.1.borrow(), ["all"; 8], "all but the first time");
        world.check();
    }

    #[test]
    fn siblings_never_meet_each_others_stage_1() {
        const VA: u64 = 0x1234_5000;
        const TABLES: u64 = RAM + 0x10_0000;
        const PAGES: [u64; 2] = [RAM + 0x18_0000, RAM + 0x19_0000];
        let world = World::new(2);
        let (here, tlb) = (LastHere::new(), OneCpu(&world.machine.hw, RefCell::default()));
        let (hw, domain) = (&world.machine.hw, world.domain(1));
        let put = |level: u64, shift: u32, entry: u64| {
            let at = TABLES + level * 4096 + (VA >> shift & 511) * 8;
            world.guest_write(1, at, &(entry | 1 << 10 | 0b11).to_le_bytes());
        };
        for (level, shift) in [(0, 39), (1, 30), (2, 21)] {
            put(level, shift, TABLES + (level + 1) * 4096);
        }
        // What this base and address mean is each vCPU's own choice.
        let reach = |vcpu: u32| {
            enter(&world, &here, &tlb, 1, vcpu);
            put(3, 12, PAGES[vcpu as usize]);
            hw.guest_access(domain.vmid, domain.stage2_root, TABLES, VA, GuestAccess::Read).unwrap().frame()
        };
        let due = PAGES.map(|page| {
            let gfn = Ipa::new(page).unwrap().frame();
            crate::stage2::lookup(hw, domain.stage2_root, gfn).unwrap().mfn
        });
        assert_eq!([reach(0), reach(1), reach(0)], [due[0], due[1], due[0]]);
        assert_eq!(*tlb.1.borrow(), ["stage 1"; 2]);
        enter(&world, &here, &tlb, 2, 0);
        assert_eq!(reach(0), due[0]);
        assert_eq!(*tlb.1.borrow(), ["stage 1"; 2], "nobody else was here by that name");
    }

    #[test]
    fn names_begin_anew_when_they_have_run_out() {
        assert_eq!((of(0), of(254), of(255), of(256)), (Vmid(1), Vmid(255), Vmid(1), Vmid(2)));
    }
}
