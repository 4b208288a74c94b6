//! What must hold of the queues when no CPU is in the scheduler, for tests and models.
use core::sync::atomic::Ordering::Relaxed;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::Scheduler;
use crate::hardware::{CpuId, Hardware};
use crate::machine::Machine;
use crate::vcpu::{Run, Vcpu};

/// Whether invariant 1 holds of every vCPU, the tables of every queue are in order, what others see of them is true, and every moment of a vCPU is in one of its states.
///
/// # Errors
/// What does not hold.
pub fn queues<H: Hardware>(machine: &Machine<H>) -> Result<(), String> {
    let sched = &machine.sched;
    for (number, cpu) in sched.cpus.iter().enumerate() {
        let queue = cpu.queue.lock();
        queue.ready.check().map_err(|wrong| format!("CPU {number}: {wrong} in the queue"))?;
        queue.timers.check().map_err(|wrong| format!("CPU {number}: {wrong} among the timers"))?;
        if cpu.first.load(Relaxed) != cpu.clock.of_pool(queue.ready.first_key()) {
            return Err(format!("CPU {number}: others see another first"));
        }
    }
    let now = machine.hw.counter();
    for (domain, vcpu) in
        machine.domains.iter().flat_map(|domain| domain.vcpus.iter().map(move |vcpu| (domain, vcpu)))
    {
        let queued = sched.queued(vcpu);
        let (run, home, parked) = (vcpu.run.get(), vcpu.home.get(), vcpu.share.parked.load(Relaxed));
        let expected = if run == Run::Runnable && !parked { Vec::from([home]) } else { Vec::new() };
        if queued != expected {
            return Err(format!("{:?} is {run:?} at home on {home:?} and queued on {queued:?}", vcpu.index));
        }
        let waits = sched.cpu(home).is_some_and(|cpu| {
            cpu.queue.lock().timers.entries().iter().any(|entry| entry.vcpu == vcpu.index)
        });
        if run == Run::Runnable && parked && !waits {
            return Err(format!("{:?} waits for an allowance and nobody for it", vcpu.index));
        }
        let all = vcpu.runstate.total(now);
        if domain.life.is_running() && all != now {
            return Err(format!("{:?} was in some state for {all} of {now} ticks", vcpu.index));
        }
    }
    Ok(())
}

impl Scheduler {
    /// The CPUs in whose queue a vCPU waits.
    pub fn queued(&self, vcpu: &Vcpu) -> Vec<CpuId> {
        let waits = |number: &u8| {
            let queue = self.cpu(CpuId(*number)).map(|cpu| cpu.queue.lock());
            queue.is_some_and(|queue| queue.ready.entries().iter().any(|entry| entry.vcpu == vcpu.index))
        };
        (0..u8::try_from(self.cpus.len()).unwrap_or(0)).filter(waits).map(CpuId).collect()
    }

    /// When a CPU looks, as others know it; 0 when it was told and has not looked yet.
    pub fn looks(&self, cpu: CpuId) -> u64 {
        self.cpu(cpu).map_or(u64::MAX, |cpu| cpu.queue.lock().look)
    }

    /// Whether a CPU that has nothing to do could run a vCPU now.
    pub fn could_run<H: Hardware>(&self, machine: &Machine<H>, cpu: CpuId, vcpu: &Vcpu) -> bool {
        vcpu.run.get() == Run::Runnable
            && vcpu.on.get().is_none_or(|on| on == cpu)
            && self.allows(vcpu, cpu)
            && !vcpu.share.parked.load(Relaxed)
            && self.allowance(machine, vcpu, machine.hw.counter()).is_ok()
    }
}
