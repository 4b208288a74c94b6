//! `hvm_op`: parameters of a domain (`arch/arm/hvm.c`). A guest reads them; only whoever built it sets them.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::hvm::{HvmOp, HvmParam, HvmParamArg};
use pv_abi::{Errno, GuestHandle, Port};

use crate::addr::Mfn;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, any_domain, low_u32};
use crate::machine::{Current, Machine};

/// `HVM_PARAM_MONITOR_RING_PFN`: a toolstack's alone, whatever is asked.
const MONITOR_RING_PFN: u32 = 28;

/// A domain's parameters. All zero as Xen has them in a domain without xenstore and PV console; the event interrupt is told by
/// the device tree, and `CALLBACK_IRQ` is 0 as in every domU that Xen itself builds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Params {
    /// Guest frame of the xenstore page; 0 without one.
    pub store_pfn: u64,
    /// Port of xenstore; 0 without one.
    pub store_evtchn: u64,
    /// Guest frame of the console page; 0 without one.
    pub console_pfn: u64,
    /// Port of the console; 0 without one.
    pub console_evtchn: u64,
    /// Frame of its PV console's page, if it has one.
    pub console: Option<Mfn>,
    /// Why the domain will have stopped, when it said so before stopping (`SCHEDOP_shutdown_code`).
    pub shutdown_code: Option<pv_abi::sched::ShutdownReason>,
}

impl Params {
    /// No xenstore and no PV console.
    pub const fn new() -> Self {
        Self {
            store_pfn: 0,
            store_evtchn: 0,
            console_pfn: 0,
            console_evtchn: 0,
            console: None,
            shutdown_code: None,
        }
    }

    /// The port of the PV console.
    pub fn console_port(&self) -> Port {
        Port(low_u32(self.console_evtchn))
    }

    const fn get(&self, param: HvmParam) -> u64 {
        match param {
            HvmParam::CallbackIrq => 0,
            HvmParam::StorePfn => self.store_pfn,
            HvmParam::StoreEvtchn => self.store_evtchn,
            HvmParam::ConsolePfn => self.console_pfn,
            HvmParam::ConsoleEvtchn => self.console_evtchn,
        }
    }
}

/// `hvm_op`.
///
/// # Errors
/// `-EFAULT`, `-ESRCH` for no domain, `-EPERM` for another's or for setting, `-EINVAL` for a parameter that does not exist,
/// `-ENOSYS`.
#[inline(never)]
pub fn hvm_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [op, arg, ..] = *args;
    let op = u32::try_from(op).ok().and_then(HvmOp::from_number).ok_or(Errno::Enosys)?;
    let arg = GuestHandle(arg);
    if op == HvmOp::GuestRequestVmEvent {
        return if arg.is_null() { Ok(0) } else { Err(Errno::Einval.into()) };
    }
    let asked: HvmParamArg = guest_memory::read(machine, current, arg)?;
    let domain = any_domain(machine, current, asked.domid).ok_or(Errno::Esrch)?;
    if domain.id != current.domain.id || asked.index == MONITOR_RING_PFN {
        return Err(Errno::Eperm.into());
    }
    let param = HvmParam::from_number(asked.index).ok_or(Errno::Einval)?;
    match op {
        HvmOp::SetParam | HvmOp::GuestRequestVmEvent => Err(Errno::Eperm.into()),
        HvmOp::GetParam => {
            let value = domain.state.lock().params.get(param);
            guest_memory::write(machine, current, arg, &HvmParamArg { value, ..asked })?;
            Ok(0)
        }
    }
}
