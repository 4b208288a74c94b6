//! Which vCPU is in this CPU: the scheduler's decision carried out, and idling.
#![expect(unsafe_code, reason = "names that the assembly calls, and WFI")]

use core::arch::asm;

use hypervisor::domain::{Fault, Life};
use hypervisor::life;
use hypervisor::machine::{Current, Machine};
use hypervisor::pause::{self, Hold};
use hypervisor::sched::{self, Idled};
use hypervisor::sched_op;
use hypervisor::vcpu::{Run, Vcpu};
use hypervisor::vgic::{PrivateIntid, Raised, Serviced, VcpuMask};

use super::arm::Arm;
use super::context::{self, ArchVcpu, Frame};
use super::gic::{self, HardwareLrs};
use super::percpu::{self, PerCpu};
use super::{console, finish, passthrough, regs, report, speculation, timer, trap};

/// Chooses who runs next on this CPU; its general registers are in the frame, if it is the one whose these were, or where they were kept
/// (vectors.S loads them from there). Idles until there is somebody.
#[unsafe(no_mangle)]
extern "C" fn switch_entry(frame: &mut Frame) -> *const Frame {
    let cpu = percpu::this();
    let Some(machine) = cpu.machine.get() else { return frame };
    let mut first = true;
    // Each turn either returns to a guest or waits for an interrupt.
    loop {
        cpu.reschedule.set(false);
        #[cfg(feature = "selfcheck")]
        super::stop::here();
        console::pump();
        attend(cpu);
        report::rest(cpu);
        let now = timer::now();
        sched::pass(machine, cpu.id, now);
        let soon = life::attend(machine, cpu.id, now, cpu.loaded().map(|arch| arch.domain));
        let running = cpu.loaded().and_then(|arch| settle(machine, cpu, arch, frame, &mut first));
        let choice = machine.sched.choose(machine, cpu.id, now, running);
        timer::interrupt_at(console::deadline(machine, cpu.id, choice.look.min(soon)));
        if let Some(next) = choice.next {
            let mut registers: *const Frame = frame;
            if running.is_none_or(|running| !core::ptr::eq(running, next)) {
                registers = switch_to(machine, cpu, next, frame, first);
                attend(cpu);
                // What was asked of the scheduler meanwhile.
                report::look_again(cpu);
            }
            #[cfg(feature = "selfcheck")]
            super::stretch::end();
            return registers;
        }
        // The registers stay in the CPU while it idles; `loaded` says whose they are.
        if first {
            if let Some(arch) = cpu.loaded() {
                context::keep(arch, frame);
            }
            first = false;
        }
        finish::check(machine);
        #[cfg(feature = "selfcheck")]
        super::stretch::end();
        idle(machine, cpu);
    }
}

/// What becomes of the loaded vCPU; itself when it wants to go on.
fn settle(
    machine: &'static Machine<Arm>,
    cpu: &'static PerCpu,
    arch: &'static ArchVcpu,
    frame: &mut Frame,
    fresh: &mut bool,
) -> Option<&'static Vcpu> {
    let lives = arch.domain.life.is_running();
    if !lives {
        if !*fresh {
            // It was idling with this one: its general registers are in memory.
            context::recall_into(arch, frame);
        }
        report::tell(machine, cpu, arch, frame);
    }
    if cpu.going_off.replace(false) {
        // Its registers leave the CPU before `Offline` is published: from then on CPU_ON writes them (context.rs, invariant 1).
        contain_serror(machine, cpu, arch);
        leave(cpu, arch);
        sched::go_off(machine, arch.vcpu);
        return None;
    }
    if !lives {
        // Nothing of a domain that has ended stays in a CPU: what it had will be others'.
        if machine.sched.is_partition(cpu.id) {
            defmt::info!("CPU {=u8}: {=u64} interrupts and traps", cpu.id.0, cpu.counts.exits.get());
        }
        contain_serror(machine, cpu, arch);
        leave(cpu, arch);
        if arch.vcpu.run.get() == Run::Running {
            arch.vcpu.run.set(Run::Offline);
        }
        return None;
    }
    if !machine.sched.allows(arch.vcpu, cpu.id) {
        if core::mem::take(fresh) {
            context::keep(arch, frame);
        }
        contain_serror(machine, cpu, arch);
        leave(cpu, arch);
        machine.sched.put_out(machine, arch.vcpu);
        return None;
    }
    match arch.vcpu.run.get() {
        Run::Running => match pause::stops(machine, arch.domain, arch.vcpu) {
            Hold::None => return Some(arch.vcpu),
            Hold::Paused => {}
            Hold::TakenBack => sched::resume(machine, None, arch.vcpu),
        },
        Run::Blocked => {
            if *fresh {
                // Before the SPSR can be another's.
                let deaf = arch.vcpu.is_polling() && regs::spsr_el2::read() & regs::SPSR_I != 0;
                arch.deaf_to.set(deaf.then(|| in_flight(arch)));
            }
            if due(arch) {
                sched::unblock(machine, cpu.id, arch.vcpu, if *fresh { Idled::No } else { Idled::Yes });
            }
        }
        Run::Runnable | Run::Offline | Run::Paused => {}
    }
    None
}

/// Takes the loaded vCPU out with nobody to follow. Its tables may become data from now on, by siblings or where it goes on: this CPU must not walk them any
/// more, not even speculatively, else the TLB would have them again after the flush that lets them be written.
fn leave(cpu: &'static PerCpu, arch: &'static ArchVcpu) {
    context::save(cpu, arch);
    context::leave_address_space();
    cpu.unload();
}

/// Whether the loaded vCPU, which is blocked, has an interrupt to go on for: one to take, masked or not. A poll with interrupts masked is ended, as in Xen, by
/// those that come later only: by its timer's, or by others' wakers, who do not ask here.
fn due(arch: &ArchVcpu) -> bool {
    if let Some(before) = arch.deaf_to.get() {
        return in_flight(arch) & !before != 0;
    }
    let mask = gic::priority_mask();
    arch.with_gic(|gic| gic.has_deliverable(arch.shared, &HardwareLrs, mask))
}

/// The loaded vCPU's interrupts that stand for physical ones.
fn in_flight(arch: &ArchVcpu) -> u32 {
    arch.with_gic(|gic| gic.hw_in_flight(&HardwareLrs))
}

fn switch_to(
    machine: &'static Machine<Arm>,
    cpu: &'static PerCpu,
    next: &'static Vcpu,
    frame: &Frame,
    fresh: bool,
) -> *const Frame {
    let Some(arch) = super::arch_vcpu(next.index) else { return frame };
    hypervisor::runstate::switched(machine, cpu.loaded().map(|loaded| loaded.vcpu), next);
    if let Some(loaded) = cpu.loaded() {
        if core::ptr::eq(loaded, arch) {
            return if fresh { frame } else { context::recall(arch) };
        }
        if fresh {
            context::keep(loaded, frame);
        }
        contain_serror(machine, cpu, loaded);
        context::save(cpu, loaded);
        machine.sched.offer(machine, loaded.vcpu);
    }
    if cpu.loaded().is_none_or(|loaded| loaded.domain.id != arch.domain.id) {
        speculation::forget();
    }
    let registers = context::load(cpu, arch);
    cpu.set_loaded(arch);
    cpu.set_current(Current {
        domain: arch.domain,
        vcpu: arch.vcpu,
        cpu: cpu.id,
        reschedule: &cpu.reschedule,
    });
    registers
}

/// An SError that the leaving vCPU caused and nobody took yet would be taken for the next one's: take it here, with the vector that
/// counts, and end the domain that it belongs to. The barrier makes everything it did complete first (Arm ARM D1.3.5), its TLB and cache
/// maintenance too: a vCPU that goes on elsewhere completes it with a DSB there, which waits for that CPU's own only (Arm ARM B2.3.12).
fn contain_serror(machine: &Machine<Arm>, cpu: &'static PerCpu, leaving: &ArchVcpu) {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", "isb", options(nostack, preserves_flags)) };
    if regs::isr_el1::read() & ISR_A == 0 {
        return;
    }
    let before = cpu.serrors.get();
    // SAFETY: unmasks SErrors for a moment; vectors.S counts and returns.
    unsafe { asm!("msr daifclr, #4", "isb", "msr daifset, #4", "isb", options(nostack, preserves_flags)) };
    if cpu.serrors.get() != before {
        sched_op::end_on(machine, cpu.id, leaving.domain, Life::Destroyed(Fault::SystemError));
    }
}

/// `ISR_EL1.A`: an SError is pending.
const ISR_A: u64 = 1 << 8;

/// Takes what other CPUs raised for the loaded vCPU, and gives its interrupts the long way when that was asked for.
#[inline]
pub fn attend(cpu: &'static PerCpu) {
    if let Some(arch) = cpu.loaded()
        && (cpu.service.get() || arch.shared.has_mail())
    {
        attend_now(cpu, arch);
    }
}

#[inline(never)]
fn attend_now(cpu: &'static PerCpu, arch: &'static ArchVcpu) {
    let raised = arch.with_gic(|gic| gic.take_remote(arch.shared, &mut HardwareLrs));
    let wanted = match raised {
        Some(Raised::NeedsService) => true,
        Some(Raised::Placed | Raised::Held) | None => false,
    };
    if cpu.service.replace(false) || wanted {
        service(cpu, arch);
    }
}

#[cold]
#[inline(never)]
fn service(cpu: &'static PerCpu, arch: &'static ArchVcpu) {
    let mut state = arch.domain.state.lock();
    let done = arch.with_gic(|gic| gic.service(&mut state.gic, arch.domain.gic, &mut HardwareLrs));
    passthrough::release(&mut state.gic);
    drop(state);
    serviced(cpu, arch, &done);
}

/// Does what a service of the virtual GIC asks the image for.
pub fn serviced(cpu: &'static PerCpu, arch: &'static ArchVcpu, done: &Serviced) {
    gic::request_maintenance(done.maintenance);
    gic::deactivate_all(done.deactivate);
    kick_vcpus(cpu, arch, done.kick);
}

/// Tells vCPUs of the same domain to look at their interrupts.
pub fn kick_vcpus(cpu: &'static PerCpu, arch: &'static ArchVcpu, vcpus: VcpuMask) {
    let (Some(machine), Some(current)) = (cpu.machine.get(), cpu.current.get()) else { return };
    for number in vcpus.iter() {
        let Some(vcpu) = arch.domain.vcpus.get(number.get()) else { continue };
        sched::wake(machine, current, vcpu);
        sched::tell(machine, cpu.id, vcpu);
    }
}

/// Sends a software-generated interrupt of the loaded vCPU to vCPUs of its domain.
#[inline(always)]
pub fn send_sgi(cpu: &'static PerCpu, arch: &'static ArchVcpu, irq: PrivateIntid, targets: VcpuMask) {
    let (Some(machine), Some(current)) = (cpu.machine.get(), cpu.current.get()) else { return };
    for number in targets.iter() {
        if number.get() == arch.vcpu.number as usize {
            gic::raise_loaded(cpu, irq);
        } else if let Some(vcpu) = arch.domain.vcpus.get(number.get()) {
            sched::raise(machine, current, vcpu, irq);
        }
    }
}

/// Waits for an interrupt and serves it. Interrupts are masked: WFI ends when one is pending (Arm ARM D1.7.2), so none is lost
/// between the look at the queue and the wait.
fn idle(machine: &'static Machine<Arm>, cpu: &'static PerCpu) {
    // A loaded vCPU's own timer runs in the hardware; the others have their deadlines with the scheduler, and EL2's timer is set.
    if let Some(arch) = cpu.loaded() {
        // One that is pending would end the wait at once, for ever.
        contain_serror(machine, cpu, arch);
    }
    #[cfg(feature = "selfcheck")]
    if cpu.loaded().is_none() && !context::is_left() {
        super::bug::found("tables of nobody are still walked");
    }
    cpu.counts.idle_waits.add();
    // SAFETY: waits; changes nothing.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
    #[cfg(feature = "selfcheck")]
    super::stretch::waited();
    trap::interrupt(cpu);
}

/// The deadline of a vCPU that is taken out of the CPU while blocked: its own, or its timer's if that is earlier. Not called for a timer
/// whose interrupt would not be delivered: it would wake the vCPU for nothing.
pub fn note_timer(cpu: &PerCpu, vcpu: &Vcpu, ctl: u64, cval: u64) {
    if vcpu.run.get() == Run::Blocked
        && let (Some(at), Some(machine)) = (timer::guest_deadline(ctl, cval), cpu.machine.get())
    {
        sched::note_deadline(machine, vcpu, at);
        // The scheduler has chosen already, and has not counted with this one.
        timer::interrupt_by(at);
    }
}
