//! The end: power off when the last domain has ended (a deliberate difference from Xen, which waits for its console). Where the control
//! domain's own end was a reboot the machine is reset instead, as Xen's is by its dom0.
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use hypervisor::domain::Life;
use hypervisor::machine::Machine;
use pv_abi::DomId;
use pv_abi::sched::ShutdownReason;
use smccc::{Hvc, Smc, psci};

use super::arm::Arm;
use super::{board, bug, console};

static ENDED: AtomicBool = AtomicBool::new(false);
static CONDUIT: AtomicU8 = AtomicU8::new(NONE);
const NONE: u8 = 0;
const BY_SMC: u8 = 1;
const BY_HVC: u8 = 2;

/// How to reach the firmware.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Conduit {
    /// `smc #0`.
    Smc,
    /// `hvc #0`: only below another hypervisor.
    Hvc,
}

/// Says how the firmware is called.
pub fn set_conduit(conduit: Conduit) {
    CONDUIT.store(if conduit == Conduit::Smc { BY_SMC } else { BY_HVC }, Ordering::Relaxed);
}

/// Powers the machine off when no domain lives any more; the first CPU that sees it does.
pub fn check(machine: &Machine<Arm>) {
    if machine.reaper.alive() != 0 {
        return;
    }
    // Another CPU may still be telling of the last one's end; it looks here itself afterwards.
    if machine.sched.ending.load(Ordering::Acquire) != 0 || ENDED.swap(true, Ordering::AcqRel) {
        return;
    }
    defmt::info!("all domains ended");
    let control = machine.domain(DomId(0));
    if control.is_some_and(|control| control.life.get() == Life::Shutdown(ShutdownReason::Reboot)) {
        defmt::info!("the control domain rebooted: reset");
        leave(Power::Reset);
    }
    leave(Power::Off);
}

/// Powers the machine off, or stops this CPU for ever where nobody can.
pub fn power_off() -> ! {
    leave(Power::Off)
}

/// How the machine ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Without power.
    Off,
    /// From the beginning.
    Reset,
}

fn leave(power: Power) -> ! {
    // What was written is out before the power goes.
    console::drain();
    match (CONDUIT.load(Ordering::Relaxed), power) {
        (BY_SMC, Power::Off) => drop(psci::system_off::<Smc>()),
        (BY_HVC, Power::Off) => drop(psci::system_off::<Hvc>()),
        (BY_SMC, Power::Reset) => drop(psci::system_reset::<Smc>()),
        (BY_HVC, Power::Reset) => drop(psci::system_reset::<Hvc>()),
        _ => {}
    }
    board::leave(power);
    defmt::warn!("nothing here switches power: halted");
    bug::halt()
}

/// Starts another CPU at a physical address; false when the firmware refuses.
pub fn cpu_on(mpidr: u64, entry: u64) -> bool {
    match CONDUIT.load(Ordering::Relaxed) {
        BY_SMC => psci::cpu_on::<Smc>(mpidr, entry, 0).is_ok(),
        BY_HVC => psci::cpu_on::<Hvc>(mpidr, entry, 0).is_ok(),
        _ => false,
    }
}
