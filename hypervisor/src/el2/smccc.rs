//! Calls of guests by the SMC calling convention (`hvc #0`, `smc #0`): PSCI, as the portable half decodes it.
use hypervisor::psci::{self, Request};
use hypervisor::vgic::VcpuShared;
use hypervisor::{pagetable, sched, sched_op};

use super::context::Frame;
use super::percpu::PerCpu;
use super::speculation;

/// Serves a call. Registers beyond the result stay as they are (SMCCC 2.6).
pub fn call(cpu: &'static PerCpu, frame: &mut Frame) {
    let (Some(machine), Some(current)) = (cpu.machine.get(), cpu.current.get()) else { return };
    let [x0, x1, x2, x3, ..] = frame.x;
    match psci::decode(current.domain, speculation::training(), [x0, x1, x2, x3]) {
        Request::Return(value) => frame.set(0, value.cast_unsigned()),
        Request::Nothing => {}
        Request::Untrain => speculation::forget(),
        Request::CpuOn { vcpu, entry, context } => {
            let started = current.domain.vcpu(vcpu).is_some_and(|vcpu| {
                let bases = |state: &mut _| pagetable::start(machine, current.domain, state, vcpu);
                super::arch_vcpu(vcpu.index)
                    .is_some_and(|arch| arch.start_at(entry, context, bases, || sched::start(machine, vcpu)))
            });
            let value = if started { psci::SUCCESS } else { psci::ALREADY_ON };
            frame.set(0, value.cast_unsigned());
        }
        Request::CpuOff => {
            cpu.going_off.set(true);
            current.reschedule.set(true);
        }
        Request::Suspend => {
            frame.set(0, psci::SUCCESS.cast_unsigned());
            sched::block(machine, current, None, || {
                current.domain.gic_of(current.vcpu).is_some_and(VcpuShared::has_mail)
            });
        }
        Request::End(reason) => {
            frame.set(0, psci::INTERNAL_FAILURE.cast_unsigned());
            sched_op::shut_down(machine, current, reason);
        }
    }
}
