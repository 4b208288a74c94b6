//! `domctl`: what the control domain does to others.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::control::{DOMCTL_VERSION, Domctl, DomctlOp};
use pv_abi::{Errno, GuestHandle};
use zerocopy::IntoBytes;

use super::info;
use crate::domain::{Domain, Fault, Life, Stage};
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop};
use crate::machine::{Current, Machine};
use crate::sched_op::end_domain;
use crate::{life, pause};

/// `XEN_DOMCTL_createdomain`: names no domain.
const CREATE_DOMAIN: u32 = 1;
/// Second argument of a call that is executed again: it waits for what it has done already.
const WAITING: u64 = 1;

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
            let mut told = asked;
            let info = info::of(machine, domain);
            if let Some(room) = told.payload.as_mut_bytes().get_mut(..size_of_val(&info)) {
                room.copy_from_slice(info.as_bytes());
            }
            guest_memory::write(machine, current, handle, &told)?;
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
        DomctlOp::SetVcpuAffinity | DomctlOp::SchedulerOp => Ok(schedule(machine, domain, op, &asked)?),
    }
}

/// Xen does not let a domain pause or destroy itself.
fn other(current: &Current<'_>, domain: &Domain) -> Result<(), Errno> {
    if domain.id == current.domain.id { Err(Errno::Einval) } else { Ok(()) }
}

/// Weights, caps and affinities: the schedulers have none yet.
const fn schedule<H: Hardware>(
    _machine: &Machine<H>,
    _domain: &Domain,
    _op: DomctlOp,
    _asked: &Domctl,
) -> Result<u64, Errno> {
    Err(Errno::Enosys)
}
