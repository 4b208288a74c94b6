//! What a toolstack may change: weights, caps, affinities. Each takes effect at the next look of the CPUs that it concerns.
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use super::pool::{CpuMask, Joins, Kind};
use super::{Scheduler, bit};
use crate::domain::Domain;
use crate::hardware::{CpuId, Hardware};
use crate::machine::Machine;
use crate::vcpu::{Run, Vcpu};

/// Gives each vCPU of a domain a weight (1 to 65535; 256 is usual): CPU time is shared in this ratio.
pub fn set_weight(domain: &Domain, weight: u16) {
    for vcpu in domain.vcpus {
        vcpu.share.set_weight(weight);
    }
}

/// Limits a domain's vCPUs together to so many per cent of one CPU; 0 lifts the limit.
pub fn set_cap(domain: &Domain, percent: u32) {
    domain.cap.set(percent);
    for vcpu in domain.vcpus {
        vcpu.share.capped.store(percent != 0, Relaxed);
    }
}

/// Lets a vCPU run on these CPUs of its pool only; false, and nothing changes, when there are none, or its CPU is its own.
pub fn set_affinity<H: Hardware>(machine: &Machine<H>, vcpu: &Vcpu, cpus: CpuMask) -> bool {
    let sched = &machine.sched;
    let Some(pool) = sched.pool_of(vcpu) else { return false };
    let allowed = pool.cpus & cpus;
    if allowed == 0 || pool.kind == Kind::Partition {
        return false;
    }
    vcpu.allowed.store(allowed, Relaxed);
    // A CPU that is just choosing it publishes so before it looks where it may run (`Scheduler::decide`).
    fence(SeqCst);
    let home = vcpu.home.get();
    if allowed & bit(home) == 0 {
        sched.move_on(machine, vcpu);
        // One that runs, or is in that CPU otherwise, is put out by the CPU itself ([`Scheduler::put_out`]).
        machine.hw.kick(home);
    } else {
        sched.offer(machine, vcpu);
    }
    true
}

impl Scheduler {
    /// Whether a vCPU may run on a CPU.
    #[inline]
    pub fn allows(&self, vcpu: &Vcpu, cpu: CpuId) -> bool {
        vcpu.allowed.load(Relaxed) & bit(cpu) != 0
    }

    /// A vCPU whose registers have just left a CPU where it may not run any more goes to another.
    pub fn put_out<H: Hardware>(&self, machine: &Machine<H>, vcpu: &Vcpu) {
        match vcpu.run.get() {
            Run::Running => {
                super::account(machine, vcpu);
                crate::runstate::enter(machine, vcpu, Run::Runnable);
                vcpu.run.set(Run::Runnable);
                self.enqueue(machine, None, vcpu, None);
            }
            Run::Runnable => self.move_on(machine, vcpu),
            Run::Blocked | Run::Offline | Run::Paused => {}
        }
    }

    /// A vCPU of a domain that has ended goes off, if it waits for a CPU and its registers are in none.
    pub fn take_off<H: Hardware>(&self, machine: &Machine<H>, vcpu: &Vcpu) {
        let Some(cpu) = self.cpu(vcpu.home.get()) else { return };
        let mut queue = cpu.queue.lock();
        if vcpu.run.get() == Run::Runnable && vcpu.on.get().is_none() {
            let parked = vcpu.share.parked.load(Relaxed) && queue.timers.remove(vcpu.index);
            if parked || queue.ready.remove(vcpu.index) {
                vcpu.share.parked.store(false, Relaxed);
                cpu.publish(&queue);
                crate::runstate::enter(machine, vcpu, Run::Offline);
                vcpu.run.set(Run::Offline);
            }
        }
    }

    /// Takes a vCPU that waits in its home's queue, and whose registers are in memory, to a CPU where it may run.
    fn move_on<H: Hardware>(&self, machine: &Machine<H>, vcpu: &Vcpu) {
        let Some(cpu) = self.cpu(vcpu.home.get()) else { return };
        let mut queue = cpu.queue.lock();
        let taken = vcpu.on.get().is_none() && queue.ready.remove(vcpu.index);
        cpu.publish(&queue);
        drop(queue);
        if taken {
            self.enqueue(machine, None, vcpu, Some(Joins::Wakes));
        }
    }
}
