//! The hypercall stubs: the one place with an `hvc`. Each call is a function with typed arguments and a typed refusal.
//!
//! 1. A structure's address goes to the hypervisor only for the length of the call (`with`): nothing keeps it.
//! 2. Calls that change what is behind this guest's own memory are `unsafe`; the modules that own such memory make them.
#![expect(unsafe_code, reason = "hvc instructions, whose arguments are addresses")]
#![expect(clippy::inline_always, reason = "what is measured contains little but the call")]
use core::arch::asm;

use pv_abi::console::ConsoleOp;
use pv_abi::event::{self, EventOp};
use pv_abi::grant::{self, GrantOp, GrantStatus};
use pv_abi::hvm::{HvmOp, HvmParamArg};
use pv_abi::memory::{AddToPhysmap, MemoryOp};
use pv_abi::multicall::MulticallEntry;
use pv_abi::sched::{self, SchedOp, ShutdownReason};
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo, VcpuOp};
use pv_abi::version::{FeatureInfo, VersionOp};
use pv_abi::{DomId, Errno, GuestHandle, HYPERCALL_TAG, Hypercall, Port};
use zerocopy::{FromBytes, IntoBytes};

use crate::record;

/// Any hypercall: the number in x16, arguments in x0-x4, what x0 returns.
///
/// # Safety
/// The arguments must mean something that does not break the caller's own memory, whatever the answer is.
#[inline(always)]
pub unsafe fn raw(number: u64, args: [u64; 5]) -> i64 {
    let result;
    // SAFETY: the interface clobbers x0-x4 and x16 at most, all listed; memory effects are the caller's promise.
    unsafe {
        asm!(
            "hvc #{tag}",
            tag = const HYPERCALL_TAG,
            inlateout("x16") number => _,
            inlateout("x0") args[0] => result,
            inlateout("x1") args[1] => _,
            inlateout("x2") args[2] => _,
            inlateout("x3") args[3] => _,
            inlateout("x4") args[4] => _,
            options(nostack),
        );
    }
    if record::is_on() {
        record::answer(number, args[0], result);
    }
    result
}

/// A PSCI or SMCCC call: `hvc #0`, the function in x0, arguments in x1-x3, what x0 returns.
///
/// # Safety
/// As [`raw`]; some functions end or start CPUs.
#[inline(always)]
pub unsafe fn smccc(function: u32, args: [u64; 3]) -> i64 {
    let result;
    // SAFETY: SMCCC clobbers x0-x17 at most, all listed; memory effects are the caller's promise.
    unsafe {
        asm!(
            "hvc #0",
            inlateout("x0") u64::from(function) => result,
            inlateout("x1") args[0] => _,
            inlateout("x2") args[1] => _,
            inlateout("x3") args[2] => _,
            lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _, lateout("x8") _, lateout("x9") _,
            lateout("x10") _, lateout("x11") _, lateout("x12") _, lateout("x13") _, lateout("x14") _, lateout("x15") _,
            lateout("x16") _, lateout("x17") _,
            options(nostack),
        );
    }
    result
}

/// A call of the form (cmd, structure).
///
/// # Safety
/// As [`raw`]; what `argument` names (frames, addresses) must be the caller's to change.
unsafe fn with<T: IntoBytes + FromBytes>(call: Hypercall, cmd: u32, argument: &mut T) -> Result<u64, Errno> {
    let address = core::ptr::from_mut(argument).expose_provenance() as u64;
    // SAFETY: the structure is valid for reads and writes during the call; the rest is the caller's promise.
    Errno::check(unsafe { raw(u64::from(call.number()), [u64::from(cmd), address, 0, 0, 0]) })
}

/// Major version in bits 31:16, minor in 15:0 (`XENVER_version`).
///
/// # Errors
/// Those of `xen_version.version` in docs/abi.md.
#[inline(always)]
pub fn xen_version() -> Result<u64, Errno> {
    let (number, cmd) = (u64::from(Hypercall::XenVersion.number()), u64::from(VersionOp::Version.number()));
    // SAFETY: this operation has no argument and touches no memory.
    Errno::check(unsafe { raw(number, [cmd, 0, 0, 0, 0]) })
}

/// Features of one submap (`XENVER_get_features`).
///
/// # Errors
/// Those of `xen_version.get_features` in docs/abi.md.
pub fn features(submap: u32) -> Result<u32, Errno> {
    let mut info = FeatureInfo { submap_idx: submap, submap: 0 };
    // SAFETY: the call writes `info` only.
    unsafe { with(Hypercall::XenVersion, VersionOp::GetFeatures.number(), &mut info) }?;
    Ok(info.submap)
}

/// Writes bytes to the hypervisor's console (`CONSOLEIO_write`).
///
/// # Errors
/// Those of `console_io.write` in docs/abi.md.
pub fn console_write(text: &[u8]) -> Result<u64, Errno> {
    let address = text.as_ptr().expose_provenance() as u64;
    let args = [u64::from(ConsoleOp::Write.number()), text.len() as u64, address, 0, 0];
    // SAFETY: the call reads `text` only.
    Errno::check(unsafe { raw(u64::from(Hypercall::ConsoleIo.number()), args) })
}

/// Reads what was typed on the machine's console, while this domain has the keyboard (`CONSOLEIO_read`); returns how many bytes there were.
///
/// # Errors
/// Those of `console_io.read` in docs/abi.md.
pub fn console_read(into: &mut [u8]) -> Result<u64, Errno> {
    let address = into.as_mut_ptr().expose_provenance() as u64;
    let args = [u64::from(ConsoleOp::Read.number()), into.len() as u64, address, 0, 0];
    // SAFETY: the call writes `into` only.
    Errno::check(unsafe { raw(u64::from(Hypercall::ConsoleIo.number()), args) })
}

/// Gives up the CPU for this turn (`SCHEDOP_yield`).
///
/// # Errors
/// Those of `sched_op.yield` in docs/abi.md.
#[inline(always)]
pub fn sched_yield() -> Result<(), Errno> {
    let (number, cmd) = (u64::from(Hypercall::SchedOp.number()), u64::from(SchedOp::Yield.number()));
    // SAFETY: no argument, no memory.
    Errno::check(unsafe { raw(number, [cmd, 0, 0, 0, 0]) }).map(drop)
}

/// Blocks until an event or interrupt is due, and unmasks interrupts (`SCHEDOP_block`): mask them before looking for work, so
/// that none comes between the look and the call.
///
/// # Errors
/// Those of `sched_op.block` in docs/abi.md.
pub fn sched_block() -> Result<(), Errno> {
    let (number, cmd) = (u64::from(Hypercall::SchedOp.number()), u64::from(SchedOp::Block.number()));
    // SAFETY: no argument, no memory.
    Errno::check(unsafe { raw(number, [cmd, 0, 0, 0, 0]) }).map(drop)
}

/// Stops this domain (`SCHEDOP_shutdown`). Returns only if the hypervisor refuses.
///
/// # Errors
/// Those of `sched_op.shutdown` in docs/abi.md.
pub fn shutdown(reason: ShutdownReason) -> Result<(), Errno> {
    let mut argument = sched::Shutdown { reason: reason.number() };
    // SAFETY: the call reads `argument` only.
    unsafe { with(Hypercall::SchedOp, SchedOp::Shutdown.number(), &mut argument) }.map(drop)
}

/// Sets a new watchdog (id 0, answered with its number), or one that is in use again: in so many seconds it ends this domain; 0 cancels it
/// (`SCHEDOP_watchdog`).
///
/// # Errors
/// Those of `sched_op.watchdog` in docs/abi.md.
pub fn watchdog(id: u32, seconds: u32) -> Result<u64, Errno> {
    let mut argument = sched::Watchdog { id, timeout: seconds };
    // SAFETY: the call reads `argument` only.
    unsafe { with(Hypercall::SchedOp, SchedOp::Watchdog.number(), &mut argument) }
}

/// Blocks until one of `ports` is pending or the system time is past `deadline_ns`; 0 waits for ever (`SCHEDOP_poll`).
/// Does not block when one is pending already: no event is missed.
///
/// # Errors
/// Those of `sched_op.poll` in docs/abi.md; `-EINVAL` for more ports than a `u32` counts.
pub fn poll(ports: &[Port], deadline_ns: u64) -> Result<(), Errno> {
    let mut argument = sched::Poll {
        ports: GuestHandle(ports.as_ptr().expose_provenance() as u64),
        nr_ports: u32::try_from(ports.len()).map_err(|_| Errno::Einval)?,
        pad: 0,
        timeout: deadline_ns,
    };
    // SAFETY: the call reads `argument` and `ports` only.
    unsafe { with(Hypercall::SchedOp, SchedOp::Poll.number(), &mut argument) }.map(drop)
}

macro_rules! event_calls {
    ($($(#[$doc:meta])* $row:literal: $name:ident($op:ident, $Argument:ty);)*) => {
        $($(#[$doc])*
        ///
        /// # Errors
        #[doc = concat!("Those of `", $row, "` in docs/abi.md.")]
        pub fn $name(argument: &mut $Argument) -> Result<(), Errno> {
            // SAFETY: event channel calls read and write their argument only.
            unsafe { with(Hypercall::EventChannelOp, EventOp::$op.number(), argument) }.map(drop)
        })*
    };
}

event_calls! {
    /// Makes a port that a remote domain may bind to.
    "event_channel_op.alloc_unbound": event_alloc_unbound(AllocUnbound, event::AllocUnbound);
    /// Connects a new port to a remote unbound one.
    "event_channel_op.bind_interdomain": event_bind_interdomain(BindInterdomain, event::BindInterdomain);
    /// Binds a new port to a virtual interrupt.
    "event_channel_op.bind_virq": event_bind_virq(BindVirq, event::BindVirq);
    /// Makes a port that notifies one's own vCPU.
    "event_channel_op.bind_ipi": event_bind_ipi(BindIpi, event::BindIpi);
    /// Chooses the vCPU that a port notifies.
    "event_channel_op.bind_vcpu": event_bind_vcpu(BindVcpu, event::BindVcpu);
    /// Closes a port.
    "event_channel_op.close": event_close(Close, event::PortArg);
    /// Describes a port.
    "event_channel_op.status": event_status(Status, event::Status);
    /// Unmasks a port and notifies if it is pending.
    "event_channel_op.unmask": event_unmask(Unmask, event::PortArg);
    /// Chooses the queue of a port, with FIFO queues.
    "event_channel_op.set_priority": event_set_priority(SetPriority, event::SetPriority);
    /// Closes all ports of a domain.
    "event_channel_op.reset": event_reset(Reset, event::Reset);
}

/// Gives a vCPU its control block for FIFO queues.
///
/// # Errors
/// Those of `event_channel_op.init_control` in docs/abi.md.
///
/// # Safety
/// The hypervisor writes there from now on: the memory must be only atomics, and stay.
pub unsafe fn event_init_control(argument: &mut event::InitControl) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { with(Hypercall::EventChannelOp, EventOp::InitControl.number(), argument) }.map(drop)
}

/// Adds a page to the array of FIFO queues.
///
/// # Errors
/// Those of `event_channel_op.expand_array` in docs/abi.md.
///
/// # Safety
/// As [`event_init_control`].
pub unsafe fn event_expand_array(array_gfn: u64) -> Result<(), Errno> {
    let mut argument = event::ExpandArray { array_gfn };
    // SAFETY: the caller's promise.
    unsafe { with(Hypercall::EventChannelOp, EventOp::ExpandArray.number(), &mut argument) }.map(drop)
}

/// Raises the event at the other end of `port`.
///
/// # Errors
/// Those of `event_channel_op.send` in docs/abi.md.
#[inline(always)]
pub fn event_send(port: Port) -> Result<(), Errno> {
    let mut argument = event::PortArg { port };
    // SAFETY: the call reads `argument` only.
    unsafe { with(Hypercall::EventChannelOp, EventOp::Send.number(), &mut argument) }.map(drop)
}

/// A grant-table call on one element.
///
/// # Errors
/// Those of the operation (`grant_table_op` in docs/abi.md); what became of the element is in its `status`.
///
/// # Safety
/// As [`raw`]; frames and addresses that the element names must be the caller's to change.
#[inline(always)]
pub unsafe fn grant<T: IntoBytes + FromBytes>(op: GrantOp, element: &mut T) -> Result<u64, Errno> {
    let address = core::ptr::from_mut(element).expose_provenance() as u64;
    let args = [u64::from(op.number()), address, 1, 0, 0];
    // SAFETY: the element is valid during the call; the rest is the caller's promise.
    Errno::check(unsafe { raw(u64::from(Hypercall::GrantTableOp.number()), args) })
}

/// Frames that this domain's grant table has and may have.
///
/// # Errors
/// Those of `grant_table_op.query_size` in docs/abi.md; `-EINVAL` for a status that is no success.
pub fn grant_query_size() -> Result<grant::QuerySize, Errno> {
    let mut query = grant::QuerySize { dom: DomId::SELF, ..Default::default() };
    // SAFETY: the call writes `query` only.
    unsafe { grant(GrantOp::QuerySize, &mut query) }?;
    if GrantStatus::from_value(query.status) == GrantStatus::Okay { Ok(query) } else { Err(Errno::Einval) }
}

/// Places a shared frame at a guest frame number (`XENMEM_add_to_physmap`).
///
/// # Errors
/// Those of `memory_op.add_to_physmap` in docs/abi.md.
///
/// # Safety
/// Whatever was at `argument.gpfn` disappears: nothing may refer to it.
pub unsafe fn add_to_physmap(argument: &mut AddToPhysmap) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { with(Hypercall::MemoryOp, MemoryOp::AddToPhysmap.number(), argument) }.map(drop)
}

/// A number of pages of this domain: what it has (`XENMEM_current_reservation`), or may have (`XENMEM_maximum_reservation`).
///
/// # Errors
/// Those of `memory_op.current_reservation` and `memory_op.maximum_reservation` in docs/abi.md.
pub fn reservation(op: MemoryOp) -> Result<u64, Errno> {
    // SAFETY: these operations read their argument only.
    unsafe { with(Hypercall::MemoryOp, op.number(), &mut { DomId::SELF }) }
}

/// Moves a vCPU's `vcpu_info` into guest memory.
///
/// # Errors
/// Those of `vcpu_op.register_vcpu_info` in docs/abi.md.
///
/// # Safety
/// The hypervisor writes there from now on: the memory must be only atomics, and stay.
pub unsafe fn register_vcpu_info(vcpu: u32, argument: &mut RegisterVcpuInfo) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { vcpu_op(VcpuOp::RegisterVcpuInfo, vcpu, argument) }
}

/// Registers where the vCPU's run state is published.
///
/// # Errors
/// Those of `vcpu_op.register_runstate_memory_area` in docs/abi.md.
///
/// # Safety
/// The hypervisor writes there from now on: the memory must be only atomics, and stay.
pub unsafe fn register_runstate(vcpu: u32, argument: &mut RegisterRunstate) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { vcpu_op(VcpuOp::RegisterRunstateMemoryArea, vcpu, argument) }
}

/// # Safety
/// As [`raw`].
unsafe fn vcpu_op<T>(op: VcpuOp, vcpu: u32, argument: &mut T) -> Result<(), Errno> {
    let address = core::ptr::from_mut(argument).expose_provenance() as u64;
    let args = [u64::from(op.number()), u64::from(vcpu), address, 0, 0];
    // SAFETY: the caller's promise.
    Errno::check(unsafe { raw(u64::from(Hypercall::VcpuOp.number()), args) }).map(drop)
}

/// Reads a parameter of this domain (`HVMOP_get_param`).
///
/// # Errors
/// Those of `hvm_op.get_param` in docs/abi.md.
pub fn hvm_get_param(index: u32) -> Result<u64, Errno> {
    let mut argument = HvmParamArg { domid: DomId::SELF, pad: 0, index, value: 0 };
    // SAFETY: the call writes `argument` only.
    unsafe { with(Hypercall::HvmOp, HvmOp::GetParam.number(), &mut argument) }?;
    Ok(argument.value)
}

/// Several calls in one.
///
/// # Errors
/// Those of `multicall.multicall` in docs/abi.md; each entry's answer is in the entry.
///
/// # Safety
/// As [`raw`], for each entry.
pub unsafe fn multicall(calls: &mut [MulticallEntry]) -> Result<u64, Errno> {
    let address = calls.as_mut_ptr().expose_provenance() as u64;
    let args = [address, calls.len() as u64, 0, 0, 0];
    // SAFETY: the entries are valid during the call; the rest is the caller's promise.
    Errno::check(unsafe { raw(u64::from(Hypercall::Multicall.number()), args) })
}
