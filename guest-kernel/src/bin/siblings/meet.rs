//! All vCPUs at work at the same time, and where they wait for each other.
extern crate alloc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_kernel::hypercall;
use guest_kernel::smp::{self, Cpu, StartError, Started};

/// Runs `work` on all vCPUs, on this one too, and waits for all.
pub(crate) fn on_all(work: impl Fn(Cpu) + Send + Clone + 'static) -> Result<(), StartError> {
    let started: Result<Vec<Started>, StartError> = smp::all()
        .skip(1)
        .map(|cpu| {
            let work = work.clone();
            smp::start(cpu, move || work(cpu))
        })
        .collect();
    work(Cpu::FIRST);
    started?.into_iter().for_each(Started::join);
    Ok(())
}

/// A place that nobody leaves before all have come. What was done before it is seen after it.
pub(crate) struct Meeting {
    come: AtomicU32,
    times: AtomicU32,
}

impl Meeting {
    pub(crate) const fn new() -> Self {
        Self { come: AtomicU32::new(0), times: AtomicU32::new(0) }
    }

    /// Waits for all.
    pub(crate) fn wait(&self) {
        let time = self.times.load(Ordering::Acquire);
        if self.come.fetch_add(1, Ordering::AcqRel) + 1 == smp::count() {
            self.come.store(0, Ordering::Relaxed);
            self.times.fetch_add(1, Ordering::Release);
            return;
        }
        while self.times.load(Ordering::Acquire) == time {
            // There may be fewer CPUs than vCPUs.
            let _ = hypercall::sched_yield();
        }
    }
}
