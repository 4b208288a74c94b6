//! `sysctl`: what the control domain is told of the machine.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::control::{AskCounters, DomainInfo, InfoList, ReadConsole, SYSCTL_VERSION, Sysctl, SysctlOp};
use pv_abi::{Errno, GuestHandle};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{counters, info};
use crate::addr::GuestVa;
use crate::domain::Stage;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, Stop};
use crate::log::Event;
use crate::machine::{Current, Machine};
use crate::{life, selfcheck};

/// Domains that one call tells of: a caller that wants more asks again from the one behind the last.
const MOST_AT_ONCE: u32 = 16;
/// Bytes of the console that are copied in one piece, and pieces that one call copies.
const CONSOLE_PART: usize = 128;
const CONSOLE_PARTS: u32 = 4;

/// The `sysctl` call: one argument, the address of a [`Sysctl`].
///
/// # Errors
/// `-EFAULT`, `-EACCES` for another interface version, `-EPERM` for everybody but the control domain, `-ENOSYS`, and what the operations
/// say.
pub(super) fn sysctl<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let handle = GuestHandle(args[0]);
    let asked: Sysctl = guest_memory::read(machine, current, handle)?;
    if asked.interface_version != SYSCTL_VERSION {
        return Err(Errno::Eacces.into());
    }
    if !current.domain.is_control() {
        return Err(Errno::Eperm.into());
    }
    match SysctlOp::from_number(asked.cmd).ok_or(Errno::Enosys)? {
        SysctlOp::GetDomainInfoList => {
            let mut list: InfoList = payload(&asked);
            list.num_domains = infos(machine, current, &list)?;
            tell(machine, current, handle, asked, &list)?;
        }
        SysctlOp::ReadConsole => {
            let mut ask: ReadConsole = payload(&asked);
            read_console(machine, current, &mut ask)?;
            tell(machine, current, handle, asked, &ask)?;
        }
        SysctlOp::Build => {
            let ask: AskCounters = payload(&asked);
            let domain = machine.domain(ask.domain).ok_or(Errno::Esrch)?;
            // Executed again it waits for what it has begun: another generation than the one it says.
            let begun = match args[1] {
                0 => {
                    life::build(machine, domain)?;
                    u64::from(domain.fate.generation())
                }
                begun => begun,
            };
            if u64::from(domain.fate.generation()) == begun {
                if domain.life.stage() == Stage::Dead {
                    return Err(Errno::Enomem.into());
                }
                // Nothing that was looked up without a lock is used from here on.
                machine.frames.quiescent.pass(current.cpu);
                life::work(machine, current.cpu, machine.hw.counter());
                return Err(Stop::Restart([args[0], begun, 0, 0, 0]));
            }
        }
        SysctlOp::Counters => {
            let ask: AskCounters = payload(&asked);
            let counted = counters::of(machine, ask.domain).ok_or(Errno::Esrch)?;
            guest_memory::write(machine, current, ask.buffer, &counted)?;
        }
        SysctlOp::SelfCheck if !selfcheck::OFFERED => return Err(Errno::Enosys.into()),
        SysctlOp::SelfCheck => {
            if !machine.hw.stop_others(current.cpu) {
                return Err(Stop::Restart([args[0], 0, 0, 0, 0]));
            }
            let found = selfcheck::check(machine);
            machine.hw.let_go();
            found.map_err(|violation| {
                machine.hw.log(Event::Violation(violation));
                Errno::Eio
            })?;
        }
    }
    Ok(0)
}

/// An operation's structure.
fn payload<T: FromBytes + IntoBytes + Immutable>(asked: &Sysctl) -> T {
    let mut value = T::new_zeroed();
    if let Some(bytes) = asked.payload.as_bytes().get(..size_of::<T>()) {
        value.as_mut_bytes().copy_from_slice(bytes);
    }
    value
}

/// Writes what was asked back, with an operation's structure.
fn tell<T: IntoBytes + Immutable, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    handle: GuestHandle,
    mut asked: Sysctl,
    told: &T,
) -> Result<(), Errno> {
    if let Some(room) = asked.payload.as_mut_bytes().get_mut(..size_of::<T>()) {
        room.copy_from_slice(told.as_bytes());
    }
    guest_memory::write(machine, current, handle, &asked)
}

/// Copies what was on the console. Fewer bytes than there are and than were asked for is no end: the caller goes on where it was told.
fn read_console<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    ask: &mut ReadConsole,
) -> Result<(), Errno> {
    let from = (ask.incremental != 0).then_some(ask.index);
    let (mut index, mut count) = (from.unwrap_or(0), 0_u32);
    for turn in 0..CONSOLE_PARTS {
        let mut part = [0; CONSOLE_PART];
        let most = usize::try_from(ask.count.saturating_sub(count)).unwrap_or(0).min(CONSOLE_PART);
        let Some(room) = part.get_mut(..most) else { break };
        let (at, length) = machine.hw.console_log(if turn == 0 { from } else { Some(index) }, room);
        index = at;
        let Some(bytes) = room.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        let to = GuestVa::new(ask.buffer.0).checked_add(count.into()).ok_or(Errno::Efault)?;
        guest_memory::write_bytes(machine, current, to, bytes)?;
        let length = u32::try_from(length).unwrap_or(0);
        (index, count) = (at.wrapping_add(length), count.saturating_add(length));
    }
    if ask.clear != 0 {
        machine.hw.console_read(index);
    }
    (ask.index, ask.count) = (index, count);
    Ok(())
}

/// Tells of domains, ascending; returns of how many.
fn infos<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, list: &InfoList) -> Result<u32, Errno> {
    let mut told: u32 = 0;
    let first = machine.domains.partition_point(|domain| domain.id < list.first_domain);
    let all = machine.domains.iter().skip(first);
    for domain in all.filter(|domain| domain.life.stage() != Stage::Dead) {
        if told >= list.max_domains.min(MOST_AT_ONCE) {
            break;
        }
        let at = guest_memory::element::<DomainInfo>(list.buffer, u64::from(told))?;
        guest_memory::write(machine, current, at, &info::of(machine, domain))?;
        told = told.saturating_add(1);
    }
    Ok(told)
}
