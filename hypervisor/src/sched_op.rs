//! `sched_op`: giving the CPU away for a turn, until an event, or for good; and how a domain ends.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::sync::atomic::{Ordering, fence};

use pv_abi::sched::{POLL_PORTS_MAX, Poll, RemoteShutdown, SchedOp, Shutdown, ShutdownReason};
use pv_abi::{Errno, GuestHandle, Port};
use zerocopy::IntoBytes;

use crate::addr::GuestVa;
use crate::domain::{Domain, Life};
use crate::evtchn::{self, PortKind};
use crate::hardware::{CpuId, Hardware};
use crate::hypercall::{Answer, Args, low_u32};
use crate::log::Event;
use crate::machine::{Current, Machine};
use crate::sched;
use crate::vcpu::POLLING_MANY;
use crate::vgic::VcpuShared;
use crate::{console, guest_memory, life, watchdog};

const NANOSECONDS: u64 = 1_000_000_000;
/// Ports of a poll at most.
const MANY: usize = POLL_PORTS_MAX as usize;
/// Ports of a poll that are read at once.
const CHUNK: usize = 16;

/// `sched_op`.
///
/// # Errors
/// `-EFAULT`; `-EINVAL` for a bad port or too many; `-ESRCH` and `-EPERM` for remote shutdown; `-EINVAL` for a watchdog that is not
/// set; `-ENOSYS`.
#[inline(always)]
pub fn sched_op<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, arg, ..] = *args;
    let op = SchedOp::from_number(low_u32(cmd)).ok_or(Errno::Enosys)?;
    // So short that it stands in the dispatcher.
    if op == SchedOp::Yield {
        sched::give_way(current);
        return Ok(0);
    }
    others(machine, current, op, GuestHandle(arg))
}

#[inline(never)]
fn others<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, op: SchedOp, arg: GuestHandle) -> Answer {
    match op {
        SchedOp::Yield => {
            sched::give_way(current);
            Ok(0)
        }
        SchedOp::Block => {
            machine.hw.unmask_current();
            sched::block(machine, current, None, || {
                has_mail(current) || evtchn::upcall_pending(machine, current.vcpu)
            });
            Ok(0)
        }
        SchedOp::Shutdown => {
            let asked: Shutdown = guest_memory::read(machine, current, arg)?;
            shut_down(machine, current, reason(asked.reason));
            Ok(0)
        }
        SchedOp::ShutdownCode => {
            let asked: Shutdown = guest_memory::read(machine, current, arg)?;
            current.domain.state.lock().params.shutdown_code.get_or_insert(reason(asked.reason));
            Ok(0)
        }
        SchedOp::Poll => poll(machine, current, &guest_memory::read(machine, current, arg)?),
        SchedOp::RemoteShutdown => {
            let asked: RemoteShutdown = guest_memory::read(machine, current, arg)?;
            // Not even for itself by its number: the call is a toolstack's.
            let domain = machine.domain(asked.domain).ok_or(Errno::Esrch)?;
            if !current.domain.is_control() {
                return Err(Errno::Eperm.into());
            }
            end_domain(machine, current, domain, Life::Shutdown(reason(asked.reason)));
            Ok(0)
        }
        SchedOp::Watchdog => watchdog::set(machine, current, &guest_memory::read(machine, current, arg)?),
        SchedOp::PinOverride => Err(Errno::Eperm.into()),
    }
}

/// A reason as Xen takes it: its low byte, and what nobody knows is a crash.
fn reason(number: u32) -> ShutdownReason {
    ShutdownReason::from_number(number & 0xFF).unwrap_or(ShutdownReason::Crash)
}

/// Whether another CPU has raised an interrupt for the caller that it has not seen yet.
fn has_mail(current: &Current<'_>) -> bool {
    current.domain.gic_of(current.vcpu).is_some_and(VcpuShared::has_mail)
}

/// Ends the caller's domain for a reason, or for the one that it gave before (`shutdown_code`).
pub fn shut_down<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, reason: ShutdownReason) {
    let reason = *current.domain.state.lock().params.shutdown_code.get_or_insert(reason);
    end_domain(machine, current, current.domain, Life::Shutdown(reason));
}

/// Ends a domain: its vCPUs run no more once their CPUs have left the guest. Takes no lock of rank 20; the first end counts.
#[cold]
#[inline(never)]
pub fn end_domain<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, domain: &Domain, end: Life) {
    if end_on(machine, current.cpu, domain, end) && domain.id == current.domain.id {
        current.reschedule.set(true);
    }
}

/// [`end_domain`] by a CPU, whoever runs on it; false when the domain had ended before. The CPU's own vCPU goes off when it is chosen again.
#[cold]
pub fn end_on<H: Hardware>(machine: &Machine<H>, cpu: CpuId, domain: &Domain, end: Life) -> bool {
    machine.sched.ending.fetch_add(1, Ordering::AcqRel);
    let first = domain.life.end(end);
    if first {
        announce(machine, cpu, domain, end);
    }
    machine.sched.ending.fetch_sub(1, Ordering::AcqRel);
    first
}

fn announce<H: Hardware>(machine: &Machine<H>, cpu: CpuId, domain: &Domain, end: Life) {
    // A CPU that is just choosing one of its vCPUs publishes that before it looks at the domain's life (`pick`).
    fence(Ordering::SeqCst);
    console::flush(&machine.hw, domain);
    machine.hw.log(Event::Ended(domain.id, end));
    if domain.paging().is_some() {
        let frames = &machine.frames.table;
        let all = frames.ram_total(domain.id);
        let pages = all.saturating_sub(frames.in_blocks(domain.id));
        machine.hw.log(Event::Pages(domain.id, pages, all));
    }
    for vcpu in domain.vcpus {
        sched::tell(machine, cpu, vcpu);
    }
    life::ended(machine, domain, end);
}

/// Blocks until one of some ports is pending or the time is there. An upcall that is pending does not count: guests poll with interrupts
/// masked, and some never take it.
fn poll<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, asked: &Poll) -> Answer {
    if asked.nr_ports > POLL_PORTS_MAX {
        return Err(Errno::Einval.into());
    }
    if asked.nr_ports > 1 {
        return poll_many(machine, current, asked);
    }
    let port: Option<Port> =
        if asked.nr_ports == 1 { Some(guest_memory::read(machine, current, asked.ports)?) } else { None };
    if let Some(port) = port
        && is_pending(machine, current, port)?
    {
        return Ok(0);
    }
    sleep(machine, current, asked, port.map_or(POLLING_MANY, |port| port.0), || {
        port.is_some_and(|port| evtchn::is_pending(machine, current.domain, port))
    });
    Ok(0)
}

#[inline(never)]
fn poll_many<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, asked: &Poll) -> Answer {
    let mut ports = [Port(0); MANY];
    let ports = ports.get_mut(..usize::try_from(asked.nr_ports).unwrap_or(0)).ok_or(Errno::Einval)?;
    if !look(machine, current, asked.ports, ports)? {
        sleep(machine, current, asked, POLLING_MANY, || {
            ports.iter().any(|port| evtchn::is_pending(machine, current.domain, *port))
        });
    }
    Ok(0)
}

/// Blocks until the time of a poll, or until it is woken by what it polls for; not if that is there already.
#[inline(always)]
fn sleep<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    asked: &Poll,
    polled: u32,
    is_there: impl Fn() -> bool,
) {
    current.domain.polled.store(true, Ordering::Relaxed);
    current.vcpu.poll.store(polled, Ordering::Relaxed);
    let deadline = (asked.timeout != 0).then(|| ticks(asked.timeout, machine.hw.counter_frequency()));
    sched::block(machine, current, deadline, || has_mail(current) || is_there());
}

/// Whether a port that is polled for is pending.
///
/// # Errors
/// `-EINVAL` for one that is not in use.
#[inline(always)]
fn is_pending<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, port: Port) -> Result<bool, Errno> {
    if evtchn::find(current.domain, port)?.kind == PortKind::Free {
        return Err(Errno::Einval);
    }
    Ok(evtchn::is_pending(machine, current.domain, port))
}

/// Reads the ports of a poll, and looks at each before the next; whether one is pending. At most [`MANY`] turns.
fn look<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    list: GuestHandle,
    ports: &mut [Port],
) -> Result<bool, Errno> {
    for (first, chunk) in (0_u64..).step_by(CHUNK).zip(ports.chunks_mut(CHUNK)) {
        let at = guest_memory::element::<Port>(list, first)?;
        let whole = guest_memory::read_bytes(machine, current, GuestVa::new(at.0), chunk.as_mut_bytes());
        for (index, port) in (first..).zip(chunk) {
            // Where some of them are nowhere, those before them count.
            if whole.is_err() {
                let at = guest_memory::element::<Port>(list, index)?;
                *port = guest_memory::read(machine, current, at)?;
            }
            if is_pending(machine, current, *port)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// System time in nanoseconds as a value of the counter, rounded up; both count from the same moment.
fn ticks(nanoseconds: u64, frequency: u64) -> u64 {
    let (seconds, rest) = (nanoseconds / NANOSECONDS, nanoseconds % NANOSECONDS);
    seconds.saturating_mul(frequency).saturating_add(rest.saturating_mul(frequency).div_ceil(NANOSECONDS))
}

/// A value of the counter as system time in nanoseconds.
pub(crate) fn nanoseconds(ticks: u64, frequency: u64) -> u64 {
    let seconds = ticks.checked_div(frequency).unwrap_or(0);
    let rest = ticks.checked_rem(frequency).unwrap_or(0);
    let fraction = rest.saturating_mul(NANOSECONDS).checked_div(frequency).unwrap_or(0);
    seconds.saturating_mul(NANOSECONDS).saturating_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_and_ticks_agree() {
        // 62.5 MHz: a tick is 16 ns.
        assert_eq!(ticks(16, 62_500_000), 1);
        assert_eq!(ticks(17, 62_500_000), 2);
        assert_eq!(ticks(5_000_000_000, 62_500_000), 312_500_000);
        assert_eq!(nanoseconds(312_500_001, 62_500_000), 5_000_000_016);
        assert_eq!(ticks(u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(nanoseconds(1, 0), 0);
    }

    #[test]
    fn unknown_reasons_are_crashes_and_upper_bits_are_ignored() {
        assert_eq!(reason(0), ShutdownReason::Poweroff);
        assert_eq!(reason(0x1_00 + 1), ShutdownReason::Reboot);
        assert_eq!(reason(200), ShutdownReason::Crash);
    }
}
