//! Ends: power off, restart, crash.
use pv_abi::sched::ShutdownReason;

use crate::{cpu, hypercall};

/// Ends this domain normally.
pub fn power_off() -> ! {
    end(ShutdownReason::Poweroff)
}

/// Asks for this domain to be started again.
pub fn reboot() -> ! {
    end(ShutdownReason::Reboot)
}

/// Ends this domain as crashed.
pub fn crash() -> ! {
    end(ShutdownReason::Crash)
}

fn end(reason: ShutdownReason) -> ! {
    cpu::mask_interrupts();
    loop {
        // Returns only if the hypervisor refuses, which leaves nothing to do but wait.
        let _ = hypercall::shutdown(reason);
        cpu::wait_for_interrupt();
    }
}
