//! `vcpu_op`: where a vCPU's shared areas are; and `vm_assist`.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering;

use pv_abi::shared::VcpuInfo;
use pv_abi::vcpu::{ASSIST_RUNSTATE_UPDATE_FLAG, AssistOp, RegisterRunstate, RegisterVcpuInfo, VcpuOp};
use pv_abi::{Errno, GuestHandle, PAGE_SHIFT, PAGE_SIZE};

use crate::addr::{FrameAddr, Gfn};
use crate::domain::Domain;
use crate::evtchn;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, low_u32};
use crate::machine::{Current, Machine};
use crate::runstate;
use crate::stage2;
use crate::vcpu::Vcpu;

/// `vm_assist`: the one assistance there is marks updates of run-state areas.
///
/// # Errors
/// `-EINVAL` for another assistance, `-ENOSYS` for another command.
#[inline(never)]
pub fn vm_assist(current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, what, ..] = *args;
    if low_u32(what) != ASSIST_RUNSTATE_UPDATE_FLAG {
        return Err(Errno::Einval.into());
    }
    let op = AssistOp::from_number(low_u32(cmd)).ok_or(Errno::Enosys)?;
    current.domain.marks_runstate.store(op == AssistOp::Enable, Ordering::Relaxed);
    Ok(0)
}

/// `vcpu_op`.
///
/// # Errors
/// `-ENOENT` for no such vCPU, then `-EINVAL` for an operation that is not on ARM, then each operation's.
#[inline(never)]
pub fn vcpu_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, vcpu, arg, ..] = *args;
    let vcpu = current.domain.vcpu(low_u32(vcpu)).ok_or(Errno::Enoent)?;
    let arg = GuestHandle(arg);
    match VcpuOp::from_number(low_u32(cmd)).ok_or(Errno::Einval)? {
        VcpuOp::RegisterVcpuInfo => {
            register_vcpu_info(machine, current, vcpu, &guest_memory::read(machine, current, arg)?)?;
        }
        VcpuOp::RegisterRunstateMemoryArea => {
            let area: RegisterRunstate = guest_memory::read(machine, current, arg)?;
            runstate::register(machine, current, vcpu, GuestHandle(area.addr));
        }
    }
    Ok(0)
}

/// Moves a vCPU's `vcpu_info` into a page of the domain's own RAM, once. What was pending stays pending, and the vCPU gets an event to
/// look.
fn register_vcpu_info<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    vcpu: &Vcpu,
    asked: &RegisterVcpuInfo,
) -> Result<(), Errno> {
    let domain = current.domain;
    let offset = usize::try_from(asked.offset).map_err(|_| Errno::Einval)?;
    // Whether the frame can be there is looked at last; that it can be named by an address, first.
    if offset >= PAGE_SIZE || asked.gfn > u64::MAX >> PAGE_SHIFT {
        return Err(Errno::Einval);
    }
    // Held while the frame is looked up and referred to, so that it stays the domain's (and against another registration).
    let state = domain.state.lock();
    if is_registered(domain, vcpu) {
        return Err(Errno::Ebusy);
    }
    // Exclusives need aligned words inside one page (XSA-327).
    if (!offset.is_multiple_of(align_of::<VcpuInfo>()) && !crate::seeded!("xsa-327"))
        || offset > PAGE_SIZE.wrapping_sub(size_of::<VcpuInfo>())
    {
        return Err(Errno::Enxio);
    }
    let mapping = Gfn::new(asked.gfn).and_then(|gfn| stage2::lookup(&machine.hw, domain.stage2_root, gfn));
    let mapping = mapping.ok_or(Errno::Einval)?;
    if !mapping.kind.is_own_data() {
        return Err(Errno::Einval);
    }
    let at = FrameAddr::new(mapping.mfn, offset).ok_or(Errno::Einval)?;
    if !crate::seeded!("info-unreferenced") {
        machine.frames.table.reference(mapping.mfn, domain.id).map_err(|_| Errno::Einval)?;
    }
    match vcpu.info_at() {
        Some(before) => machine.hw.copy(at, before, size_of::<VcpuInfo>()),
        None => machine.hw.write(at, &[0; size_of::<VcpuInfo>()]),
    }
    vcpu.info.store(at.pa().get(), Ordering::SeqCst);
    drop(state);
    evtchn::resend_all(machine, current, domain, vcpu);
    Ok(())
}

/// Whether a vCPU has a `vcpu_info` of its own choice (vCPU 0 has one in the shared-info page before).
fn is_registered(domain: &Domain, vcpu: &Vcpu) -> bool {
    vcpu.info_at().is_some_and(|at| at.frame() != domain.shared_info)
}
