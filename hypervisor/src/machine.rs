//! Everything at once: the hardware, the frames, the domains, the scheduler. One exists; it is made at boot and never moves.
use core::cell::Cell;

use pv_abi::DomId;

use crate::console::keyboard::Keyboard;
use crate::domain::{Domain, Stage};
use crate::frame_alloc::Frames;
use crate::hardware::{CpuId, Hardware};
use crate::life::{Plans, Reaper};
use crate::sched::Scheduler;
use crate::vcpu::{Vcpu, VcpuIndex};
use crate::wallclock::WallClock;

/// The whole machine. In the order of C: what is asked for most is near its beginning, where one instruction reaches it.
#[repr(C)]
pub struct Machine<H: Hardware> {
    /// What is below.
    pub hw: H,
    /// The domains, ascending ids; those that were refused at boot leave a gap.
    pub domains: &'static [Domain],
    /// Every vCPU of the machine, by [`VcpuIndex`], with its domain.
    pub vcpus: &'static [(&'static Domain, &'static Vcpu)],
    /// The id of the first: 0 with a control domain, else 1.
    pub first_id: u16,
    /// Run queues.
    pub sched: Scheduler,
    /// Who lives, and who is to be taken back from.
    pub reaper: Reaper,
    /// What time it is.
    pub wall_clock: WallClock,
    /// What is typed.
    pub keyboard: Keyboard,
    /// Every frame of RAM: owners, roles, counts, free lists.
    pub frames: Frames,
    /// How domains are built anew.
    pub plans: Plans,
}

impl<H: Hardware> Machine<H> {
    /// The domain with this id.
    #[inline(always)]
    pub fn domain(&self, id: DomId) -> Option<&Domain> {
        match self.domains.get(usize::from(id.0.wrapping_sub(self.first_id))) {
            Some(domain) if domain.id == id => Some(domain),
            _ => self.behind_gap(id),
        }
    }

    /// The domain with this id, unless nothing of it is there any more.
    pub fn present(&self, id: DomId) -> Option<&Domain> {
        self.domain(id).filter(|domain| !matches!(domain.life.stage(), Stage::Dead | Stage::Building))
    }

    /// The domain with this id where refused ones have left a gap.
    #[cold]
    #[inline(never)]
    fn behind_gap(&self, id: DomId) -> Option<&Domain> {
        let found = self.domains.binary_search_by(|domain| domain.id.cmp(&id)).ok()?;
        self.domains.get(found)
    }

    /// The vCPU with this index, with its domain.
    #[inline]
    pub fn vcpu(&self, index: VcpuIndex) -> Option<(&Domain, &Vcpu)> {
        self.vcpus.get(usize::from(index.0)).copied()
    }
}

/// Who makes a hypercall, and what the call asks of the CPU afterwards.
pub struct Current<'a> {
    /// The caller's domain.
    pub domain: &'a Domain,
    /// The caller.
    pub vcpu: &'a Vcpu,
    /// The CPU it runs on.
    pub cpu: CpuId,
    /// Set when another vCPU may have to run before the caller goes on: the image then asks the scheduler.
    pub reschedule: &'a Cell<bool>,
}
