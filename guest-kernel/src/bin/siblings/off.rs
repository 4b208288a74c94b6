//! What is left of a vCPU that went off.
#![expect(unsafe_code, reason = "registers where run states are told")]
extern crate alloc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{cpu, hypercall, smp};
use pv_abi::vcpu::RegisterRunstate;

use super::{Failed, ok};

/// `RUNSTATE_offline` of Xen's `public/vcpu.h`.
const OFFLINE: u64 = 3;

static CAME: AtomicU32 = AtomicU32::new(0);

fn came() {
    CAME.fetch_add(1, Ordering::SeqCst);
}

pub(crate) fn check() -> Result<(), Failed> {
    let Some(other) = smp::cpu(1) else { return Ok(()) };
    let Some(sgi) = Intid::sgi(5) else { return Ok(()) };
    smp::start(other, move || {
        let _ = interrupt::enable(sgi, came);
        cpu::mask_interrupts();
        let _ = interrupt::send_to_self(sgi);
        cpu::synchronize();
    })?
    .join();
    smp::start(other, move || {
        let _ = interrupt::enable(sgi, came);
        for _ in 0..10 {
            let _ = hypercall::sched_yield();
        }
    })?
    .join();
    ok("what was pending when a vCPU went off is not when it comes back", CAME.load(Ordering::SeqCst) == 0)?;
    run_state(other)
}

/// `struct vcpu_runstate_info`: state, when it began, four times.
#[repr(C, align(64))]
struct Area([AtomicU64; 6]);

fn run_state(other: smp::Cpu) -> Result<(), Failed> {
    static AREA: Area = Area([const { AtomicU64::new(u64::MAX) }; 6]);
    let mut argument = RegisterRunstate { addr: (&raw const AREA).expose_provenance() as u64 };
    // SAFETY: static, and of atomics only.
    unsafe { hypercall::register_runstate(other.number(), &mut argument) }?;
    smp::start(other, || ())?.join();
    let state = || AREA.0[0].load(Ordering::Acquire) & 0xffff_ffff;
    // It is told when its registers have left the CPU, which is before PSCI says so.
    ok("a vCPU that went off is told as such", state() == OFFLINE)
}
