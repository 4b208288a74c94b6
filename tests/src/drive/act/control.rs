//! Steps of the control domain: what it does to others.
use hypervisor::pause;
use hypervisor::vcpu::Run as RunState;
use pv_abi::DomId;
use pv_abi::control::Domctl;
use zerocopy::{FromZeros, IntoBytes};

use super::numbers::Numbers;
use super::{Run, code};
use crate::{ARG, number};

/// `XEN_DOMCTL_*`.
const PAUSE: u32 = 3;
const UNPAUSE: u32 = 4;

impl Run {
    /// The CPUs of vCPUs whose domains are paused look up: they stop running them.
    pub(super) fn stop_paused(&self) {
        for id in self.spec.domains.keys() {
            let domain = self.world.domain(*id);
            for vcpu in domain.vcpus.iter().filter(|vcpu| vcpu.run.get() == RunState::Running) {
                pause::holds(&self.world.machine, domain, vcpu);
            }
        }
    }

    /// It pauses a domain or lets it go on; one that is paused mostly the latter.
    pub(super) fn control_step(&mut self, id: u16, n: &mut Numbers<'_>) -> Result<(), String> {
        let to = n.one(&[id, id, id, id, id, id, 1, 2, 0, 9]);
        let pauses =
            n.next() < if self.spec.domains.get(&to).is_some_and(|of| of.pauses != 0) { 0x50 } else { 0xE0 };
        let (what, cmd) = if pauses { ("pauses", PAUSE) } else { ("unpauses", UNPAUSE) };
        self.tell(|| format!("d0 {what} {to}"));
        let wanted = code(&self.spec.pause(to, pauses));
        let arg = Domctl { cmd, interface_version: 0x17, domain: DomId(to), ..Domctl::new_zeroed() };
        self.guest(0, 0).write(ARG, arg.as_bytes());
        let result = self.call(0, 0, number::DOMCTL, [ARG, 0, 0, 0, 0])?;
        if result == wanted { Ok(()) } else { Err(format!("{what} {to}: {result}, specified {wanted}")) }
    }
}
