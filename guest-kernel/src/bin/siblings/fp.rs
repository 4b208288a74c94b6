//! Floating-point and SIMD registers: each vCPU keeps its own, whoever else uses them meanwhile.
#![expect(unsafe_code, reason = "floating-point registers, which this target's compiler does not use")]
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_kernel::smp::Cpu;
use guest_kernel::{hypercall, timer};

use super::meet::{Meeting, on_all};
use super::{Failed, ok};

static WRONG: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);
static MEETING: Meeting = Meeting::new();

pub(crate) fn check(rounds: u32) -> Result<(), Failed> {
    on_all(move |cpu| {
        allow();
        let seed = u64::from(cpu.number() + 1) << 32;
        for round in 0..rounds {
            let mut values = Registers::from(seed | u64::from(round) << 16);
            values.set();
            // Others use theirs: while this one gives its CPU away, while it sleeps, and while it waits.
            for _ in 0..4 {
                let _ = hypercall::sched_yield();
            }
            if round % 4 == 0 {
                let _ = timer::sleep(core::time::Duration::from_micros(300));
            }
            MEETING.wait();
            let before = values;
            values.get();
            if values != before {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
        }
    })?;
    ok("floating-point registers are each vCPU's own", WRONG.load(Ordering::SeqCst) == 0)?;
    // A vCPU that went off and comes back has none of its old ones.
    on_all(|cpu| {
        if cpu != Cpu::FIRST {
            allow();
            let mut values = Registers::from(u64::MAX);
            values.get();
            if values != Registers::default() {
                LEFT.fetch_add(1, Ordering::SeqCst);
            }
        }
    })?;
    ok("a vCPU that starts has none", LEFT.load(Ordering::SeqCst) == 0)
}

/// `CPACR_EL1.FPEN`: no traps at EL1 (Arm ARM D19.2.30).
fn allow() {
    // SAFETY: lets this code use registers that no other code of this guest uses.
    unsafe {
        asm!("msr cpacr_el1, {}", "isb", in(reg) 3_u64 << 20, options(nomem, nostack, preserves_flags));
    };
}

/// v0 to v31, `FPCR` and `FPSR`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(16))]
struct Registers {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

impl From<u64> for Registers {
    fn from(seed: u64) -> Self {
        let value = |n: usize| u128::from(seed | n as u64) << 64 | u128::from(!seed ^ n as u64);
        // FPCR.RMode, bits 23:22; FPSR's cumulative flags, bits 4:0.
        Self { v: core::array::from_fn(value), fpcr: (seed >> 32 & 3) << 22, fpsr: seed >> 16 & 0x1f }
    }
}

macro_rules! each_pair {
    ($what:literal) => {
        concat!(
            $what,
            " q0, q1, [{0}]\n",
            $what,
            " q2, q3, [{0}, #32]\n",
            $what,
            " q4, q5, [{0}, #64]\n",
            $what,
            " q6, q7, [{0}, #96]\n",
            $what,
            " q8, q9, [{0}, #128]\n",
            $what,
            " q10, q11, [{0}, #160]\n",
            $what,
            " q12, q13, [{0}, #192]\n",
            $what,
            " q14, q15, [{0}, #224]\n",
            $what,
            " q16, q17, [{0}, #256]\n",
            $what,
            " q18, q19, [{0}, #288]\n",
            $what,
            " q20, q21, [{0}, #320]\n",
            $what,
            " q22, q23, [{0}, #352]\n",
            $what,
            " q24, q25, [{0}, #384]\n",
            $what,
            " q26, q27, [{0}, #416]\n",
            $what,
            " q28, q29, [{0}, #448]\n",
            $what,
            " q30, q31, [{0}, #480]\n",
        )
    };
}

impl Registers {
    fn set(&self) {
        // SAFETY: reads `self`; no compiled code uses these registers.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd", each_pair!("ldp"),
                "msr fpcr, {1}", "msr fpsr, {2}",
                in(reg) self.v.as_ptr(), in(reg) self.fpcr, in(reg) self.fpsr, options(nostack, preserves_flags),
            );
        }
    }

    fn get(&mut self) {
        // SAFETY: writes `self`.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd", each_pair!("stp"),
                "mrs {1}, fpcr", "mrs {2}, fpsr",
                in(reg) self.v.as_mut_ptr(), out(reg) self.fpcr, out(reg) self.fpsr, options(nostack, preserves_flags),
            );
        }
    }
}

/// `DISR_EL1` is a register for deferred errors that the hypervisor keeps for the guest (`VDISR_EL2`): what one vCPU left there, the next does
/// not find.
pub(crate) fn deferred_errors_are_own() -> Result<bool, Failed> {
    static FOUND: AtomicU32 = AtomicU32::new(0);
    on_all(|_| {
        for _ in 0..20 {
            let left: u64;
            // SAFETY: a register that only says which errors were deferred.
            unsafe { asm!("mrs {}, S3_0_C12_C1_1", out(reg) left, options(nomem, nostack, preserves_flags)) };
            if left != 0 {
                FOUND.fetch_add(1, Ordering::SeqCst);
            }
            // SAFETY: as above; nothing between this and the end of the turn takes an error.
            unsafe {
                asm!("msr S3_0_C12_C1_1, {}", in(reg) 0x8000_0001_u64, options(nomem, nostack, preserves_flags));
            };
            MEETING.wait();
            // SAFETY: as above.
            unsafe { asm!("msr S3_0_C12_C1_1, xzr", options(nomem, nostack, preserves_flags)) };
        }
    })?;
    Ok(FOUND.load(Ordering::SeqCst) == 0)
}
