//! What the control domain is told of a domain (`getdomaininfo` in Xen's `common/domctl.c`).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::control::{DomainInfo, flags};

use crate::addr::Gfn;
use crate::domain::{Domain, Life, Stage};
use crate::hardware::Hardware;
use crate::machine::Machine;
use crate::stage2::IPA_BITS;
use crate::vcpu::Run;

/// No guest frame.
const NOWHERE: u64 = u64::MAX;

/// What is told of a domain. At most eight vCPUs are looked at.
pub(super) fn of<H: Hardware>(machine: &Machine<H>, domain: &Domain) -> DomainInfo {
    let (now, frequency) = (machine.hw.counter(), machine.hw.counter_frequency());
    let mut cpu_time: u64 = 0;
    let mut online: u32 = 0;
    let mut set = flags::BLOCKED;
    for vcpu in domain.vcpus {
        cpu_time = cpu_time.saturating_add(vcpu.runstate.ran(frequency, now));
        let run = vcpu.run.get();
        if run != Run::Offline {
            online = online.saturating_add(1);
        }
        match run {
            Run::Offline | Run::Blocked => {}
            Run::Running => set = set & !flags::BLOCKED | flags::RUNNING,
            Run::Runnable | Run::Paused => set &= !flags::BLOCKED,
        }
    }
    if online == 0 {
        set = 0;
    }
    let reason = match domain.life.get() {
        Life::Running | Life::Destroyed(_) => flags::NO_REASON,
        Life::Shutdown(reason) => {
            set |= flags::SHUTDOWN;
            reason.number()
        }
    };
    if matches!(domain.life.stage(), Stage::Dying | Stage::Building) {
        set |= flags::DYING;
    }
    if domain.pauses.any() {
        set |= flags::PAUSED;
    }
    let memory = domain.state.lock().memory;
    DomainInfo {
        domain: domain.id,
        flags: set | flags::HAP | reason << flags::REASON_SHIFT,
        tot_pages: memory.frames,
        max_pages: memory.max_frames,
        shared_info_frame: machine.frames.table.home(domain.shared_info).map_or(NOWHERE, Gfn::get),
        cpu_time,
        nr_online_vcpus: online,
        max_vcpu_id: u32::try_from(domain.vcpus.len()).unwrap_or(0).wrapping_sub(1),
        gpaddr_bits: u8::try_from(IPA_BITS).unwrap_or(0),
        ..DomainInfo::default()
    }
}
