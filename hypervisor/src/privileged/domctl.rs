//! `domctl`: what the control domain does to others.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::Ordering;

use pv_abi::control::{DOMCTL_VERSION, Domctl, DomctlOp, SchedulerParams, VcpuAffinity, affinity, scheduler};
use pv_abi::{Errno, GuestHandle};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::info;
use crate::domain::{Domain, Fault, Life, Stage};
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop};
use crate::machine::{Current, Machine};
use crate::sched::pool::{CpuMask, Kind};
use crate::sched::settings;
use crate::sched_op::end_domain;
use crate::{life, pause};

/// `XEN_DOMCTL_createdomain`: names no domain.
const CREATE_DOMAIN: u32 = 1;
/// Second argument of a call that is executed again: it waits for what it has done already. No number that a caller has in this register, which is
/// none of the call's arguments, by chance.
const WAITING: u64 = 0x7061_766F_7761_6974;

/// The `domctl` call: one argument, the address of a [`Domctl`].
///
/// # Errors
/// `-EFAULT`, `-EACCES` for another interface version, `-ESRCH`, `-EPERM` for everybody but the control domain, `-ENOSYS`, and what the
/// operations say.
pub(super) fn domctl<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let handle = GuestHandle(args[0]);
    let asked: Domctl = guest_memory::read(machine, current, handle)?;
    if asked.interface_version != DOMCTL_VERSION {
        return Err(Errno::Eacces.into());
    }
    // Whoever waits for a domain's end has named one that was there. One that is being built anew has its number all the time.
    let waits = args[1] == WAITING && asked.cmd == DomctlOp::DestroyDomain.number();
    let found = machine.domain(asked.domain).filter(|domain| waits || domain.life.stage() != Stage::Dead);
    if asked.cmd != CREATE_DOMAIN && found.is_none() {
        return Err(Errno::Esrch.into());
    }
    if !current.domain.is_control() {
        return Err(Errno::Eperm.into());
    }
    let domain = found.ok_or(Errno::Enosys)?;
    let op = DomctlOp::from_number(asked.cmd).ok_or(Errno::Enosys)?;
    match op {
        DomctlOp::GetDomainInfo => {
            guest_memory::write(machine, current, handle, &told(asked, &info::of(machine, domain)))?;
            Ok(0)
        }
        DomctlOp::PauseDomain => {
            other(current, domain)?;
            if args[1] != WAITING {
                pause::pause(machine, current, domain)?;
            }
            if pause::is_still(domain) { Ok(0) } else { Err(Stop::Restart([args[0], WAITING, 0, 0, 0])) }
        }
        DomctlOp::UnpauseDomain => Ok(pause::unpause(machine, current, domain).map(|()| 0)?),
        DomctlOp::DestroyDomain => {
            other(current, domain)?;
            end_domain(machine, current, domain, Life::Destroyed(Fault::ByControl));
            // One that had ended and was kept, or is to be built anew.
            life::destroy_for_good(machine, domain);
            if domain.life.stage() == Stage::Dead {
                return Ok(0);
            }
            // Nothing that was looked up without a lock is used from here on.
            machine.frames.quiescent.pass(current.cpu);
            life::work(machine, current.cpu, machine.hw.counter());
            Err(Stop::Restart([args[0], WAITING, 0, 0, 0]))
        }
        DomctlOp::SetVcpuAffinity => Ok(affinity(machine, current, domain, &payload(&asked))?),
        DomctlOp::SchedulerOp => {
            let mut params: SchedulerParams = payload(&asked);
            parameters(machine, domain, &mut params)?;
            guest_memory::write(machine, current, handle, &told(asked, &params))?;
            Ok(0)
        }
    }
}

/// Xen does not let a domain pause or destroy itself.
fn other(current: &Current<'_>, domain: &Domain) -> Result<(), Errno> {
    if domain.id == current.domain.id { Err(Errno::Einval) } else { Ok(()) }
}

/// An operation's structure.
fn payload<T: FromBytes + IntoBytes + Immutable>(asked: &Domctl) -> T {
    let mut value = T::new_zeroed();
    if let Some(bytes) = asked.payload.as_bytes().get(..size_of::<T>()) {
        value.as_mut_bytes().copy_from_slice(bytes);
    }
    value
}

/// What was asked, with the operation's structure as it is now.
fn told<T: IntoBytes + Immutable>(asked: Domctl, value: &T) -> Domctl {
    let mut told = asked;
    if let Some(room) = told.payload.as_mut_bytes().get_mut(..size_of::<T>()) {
        room.copy_from_slice(value.as_bytes());
    }
    told
}

/// Tells or sets weight and cap, as Xen's `credit2` does; a partition, like its `null`, has none, and hears so of nothing.
fn parameters<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    params: &mut SchedulerParams,
) -> Result<(), Errno> {
    let (Some(first), Some(get)) = (domain.vcpus.first(), params.is_get()) else { return Err(Errno::Einval) };
    let kind = machine.sched.kind_of(first);
    if params.scheduler != if kind == Kind::Partition { scheduler::NULL } else { scheduler::CREDIT2 } {
        return Err(Errno::Einval);
    }
    if kind == Kind::Partition {
        return Ok(());
    }
    let _state = domain.state.lock();
    if get {
        params.weight = first.share.weight();
        params.cap = u16::try_from(domain.cap.percent()).unwrap_or(u16::MAX);
        return Ok(());
    }
    if usize::from(params.cap) > domain.vcpus.len().saturating_mul(100) {
        return Err(Errno::Einval);
    }
    // As in Xen: no weight leaves it as it is, no cap lifts it.
    if params.weight != 0 {
        settings::set_weight(domain, params.weight);
    }
    settings::set_cap(domain, u32::from(params.cap));
    Ok(())
}

/// Sets the CPUs that a vCPU may run on, and tells which of them there are. There is no soft affinity.
fn affinity<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    domain: &Domain,
    asked: &VcpuAffinity,
) -> Result<u64, Errno> {
    let vcpu = domain.vcpu(asked.vcpu).ok_or(Errno::Einval)?;
    if asked.flags & affinity::SOFT != 0 {
        return Err(Errno::Eopnotsupp);
    }
    if asked.flags & affinity::HARD == 0 || asked.hard == GuestHandle::NULL {
        return Err(Errno::Einval);
    }
    let known: u8 = match asked.hard_bits {
        0 => 0,
        bits @ 1..8 => 0xFF_u8.wrapping_shr(8_u32.wrapping_sub(bits)),
        _ => u8::MAX,
    };
    let mask: u8 = if known == 0 { 0 } else { guest_memory::read(machine, current, asked.hard)? };
    let _state = domain.state.lock();
    if !settings::set_affinity(machine, vcpu, CpuMask::from(mask & known)) {
        return Err(Errno::Einval);
    }
    let effective = u8::try_from(vcpu.allowed.load(Ordering::Relaxed)).unwrap_or(u8::MAX);
    guest_memory::write(machine, current, asked.hard, &effective)?;
    Ok(0)
}
