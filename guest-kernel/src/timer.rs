//! The virtual timer: sleeping.
//!
//! 1. The timer is armed only by its owner, one deadline at a time; its interrupt disarms it.
use core::time::Duration;

use aarch64_cpu::registers::{CNTV_CTL_EL0, CNTV_CVAL_EL0, Writeable};

use crate::cpu;
use crate::interrupt::{self, Intid, NoController};
use crate::time::{self, Instant};

/// Makes the timer's interrupt come at `deadline`, once.
pub fn arm(deadline: Instant) {
    CNTV_CVAL_EL0.set(deadline.ticks());
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
    cpu::synchronize();
}

/// Makes the timer's interrupt not come.
pub fn disarm() {
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
    cpu::synchronize();
}

/// Sleeps in the hypervisor.
///
/// # Errors
/// [`NoController`] before [`interrupt::start`].
pub fn sleep(duration: Duration) -> Result<(), NoController> {
    let deadline = time::now().after(duration);
    interrupt::enable(Intid::TIMER, disarm)?;
    interrupt::wait_until(|| {
        let done = time::now() >= deadline;
        if done {
            disarm();
        } else {
            arm(deadline);
        }
        done
    });
    Ok(())
}
