//! Making ports: for others to bind to, to others', to virtual interrupts, to oneself, and at boot.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::event::{AllocUnbound, BindInterdomain, BindIpi, BindVirq, NR_VIRQS};
use pv_abi::{DomId, Errno, Port};

use super::deliver;
use super::port::{self, NoPort, PortKind, PortWord, PortsState, is_per_vcpu, virq_index};
use crate::domain::{Domain, lock_two};
use crate::hardware::Hardware;
use crate::hypercall::any_domain;
use crate::machine::{Current, Machine};

/// Why a port was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotBound {
    /// Refused.
    Errno(Errno),
    /// The search for a free one goes on: where it is noted, or at this port.
    Later(Option<Port>),
}

impl From<Errno> for NotBound {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<NoPort> for NotBound {
    fn from(why: NoPort) -> Self {
        match why {
            NoPort::Full => Self::Errno(Errno::Enospc),
            NoPort::Later => Self::Later(None),
            NoPort::LaterAt(port) => Self::Later(Some(port)),
        }
    }
}

/// Makes a port of the caller's that `remote_dom` may bind to.
pub(super) fn alloc_unbound<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: AllocUnbound,
    from: Port,
) -> Result<AllocUnbound, NotBound> {
    let domain = any_domain(machine, current, arg.dom).ok_or(Errno::Esrch)?;
    if domain.id != current.domain.id && !crate::seeded!("alloc-for-another") {
        return Err(Errno::Eperm.into());
    }
    let remote = if arg.remote_dom == DomId::SELF { domain.id } else { arg.remote_dom };
    // Anybody may be named who does not exist yet, but not by a domain that keeps to itself.
    match machine.domain(remote) {
        Some(other) if !domain.may_talk_to(other) => return Err(Errno::Eperm.into()),
        None if domain.isolated => return Err(Errno::Esrch.into()),
        Some(_) | None => {}
    }
    let port = make(machine, domain, PortWord { kind: PortKind::Unbound(remote), vcpu: 0 }, from)?;
    Ok(AllocUnbound { port, ..arg })
}

/// Takes the lowest free port of a domain.
fn make<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    word: PortWord,
    from: Port,
) -> Result<Port, NotBound> {
    let mut state = domain.state.lock();
    let port = state.ports.lowest_free(&machine.hw, domain, from)?;
    state.ports.occupy(domain, port, word);
    Ok(port)
}

/// Connects a new port to a remote unbound one.
pub(super) fn bind_interdomain<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: &BindInterdomain,
    from: Port,
) -> Result<BindInterdomain, NotBound> {
    let local = current.domain;
    let remote = any_domain(machine, current, arg.remote_dom).ok_or(Errno::Esrch)?;
    let (mut state, remote_state) = lock_two(local, remote);
    let port = state.ports.lowest_free(&machine.hw, local, from)?;
    let word = port::find(remote, arg.remote_port)?;
    let waits =
        matches!(word.kind, PortKind::Unbound(by) if by == local.id || crate::seeded!("bind-for-another"));
    if !waits {
        return Err(Errno::Einval.into());
    }
    if !local.may_talk_to(remote) {
        return Err(Errno::Eperm.into());
    }
    connect(&mut state.ports, local, port, remote, arg.remote_port, word.vcpu);
    drop(remote_state);
    drop(state);
    // Events that the remote side sent while its port was unbound went nowhere.
    deliver::raise(machine, current, local, port, 0);
    Ok(BindInterdomain { local_port: port, ..*arg })
}

/// Makes `port` of `local`, which is free, and `remote_port` of `remote`, which waits for it, the two ends of a channel. Both
/// domains' locks are held.
fn connect(
    ports: &mut PortsState,
    local: &Domain,
    port: Port,
    remote: &Domain,
    remote_port: Port,
    remote_vcpu: u16,
) {
    ports.occupy(local, port, PortWord { kind: PortKind::Interdomain(remote.id, remote_port), vcpu: 0 });
    let back = PortWord { kind: PortKind::Interdomain(local.id, port), vcpu: remote_vcpu };
    port::store(remote, remote_port, back);
}

/// Binds a new port to a virtual interrupt.
pub(super) fn bind_virq<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: &BindVirq,
    from: Port,
) -> Result<BindVirq, NotBound> {
    let domain = current.domain;
    if arg.virq >= NR_VIRQS || (!is_per_vcpu(arg.virq) && arg.vcpu != 0) {
        return Err(Errno::Einval.into());
    }
    let vcpu = vcpu_number(domain, arg.vcpu)?;
    let virq = u16::try_from(arg.virq).map_err(|_| Errno::Einval)?;
    let mut state = domain.state.lock();
    let index = virq_index(virq, vcpu);
    // One of a vCPU's own stays that vCPU's.
    let word = port::load(domain, state.ports.virq(index));
    if word.kind == PortKind::Virq(virq) && (!is_per_vcpu(arg.virq) || word.vcpu == vcpu) {
        return Err(Errno::Eexist.into());
    }
    let port = state.ports.lowest_free(&machine.hw, domain, from)?;
    state.ports.occupy(domain, port, PortWord { kind: PortKind::Virq(virq), vcpu });
    state.ports.set_virq(index, port);
    Ok(BindVirq { port, ..*arg })
}

/// Makes a port that notifies one of the caller's own vCPUs.
pub(super) fn bind_ipi<H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: BindIpi,
    from: Port,
) -> Result<BindIpi, NotBound> {
    let vcpu = vcpu_number(current.domain, arg.vcpu)?;
    let port = make(machine, current.domain, PortWord { kind: PortKind::Ipi, vcpu }, from)?;
    Ok(BindIpi { port, ..arg })
}

/// Chooses the vCPU that a port notifies. The next event goes there; one that is pending already stays where it is.
pub(super) fn bind_vcpu(current: &Current<'_>, port: Port, vcpu: u32) -> Result<(), Errno> {
    let domain = current.domain;
    let vcpu = vcpu_number(domain, vcpu)?;
    let _state = domain.state.lock();
    let word = port::find(domain, port)?;
    match word.kind {
        PortKind::Virq(virq) if is_per_vcpu(u32::from(virq)) => return Err(Errno::Einval),
        PortKind::Free | PortKind::Ipi => return Err(Errno::Einval),
        PortKind::Virq(_) | PortKind::Unbound(_) | PortKind::Interdomain(..) => {}
    }
    port::store(domain, port, word.notifying(vcpu));
    Ok(())
}

fn vcpu_number(domain: &Domain, vcpu: u32) -> Result<u16, Errno> {
    let number = u16::try_from(vcpu).map_err(|_| Errno::Enoent)?;
    if usize::from(number) < domain.vcpus.len() || crate::seeded!("vcpu-number") {
        Ok(number)
    } else {
        Err(Errno::Enoent)
    }
}

/// Makes the port of a domain's PV console, the lowest that is free.
///
/// # Errors
/// `-ENOSPC`.
pub fn bind_console<H: Hardware>(hw: &H, domain: &Domain, ports: &mut PortsState) -> Result<Port, Errno> {
    // The first that was ever made, or one of the first.
    let port = ports.lowest_free(hw, domain, Port(0)).map_err(|_| Errno::Enospc)?;
    ports.occupy(domain, port, PortWord { kind: port::CONSOLE, vcpu: 0 });
    Ok(port)
}

/// Boot: makes a port of a domain that has not run yet one end of a channel, as the system's configuration says (Xen's `xen,evtchn-v1`);
/// whoever makes the other domain does the same for the other end. It is an ordinary channel from then on. The second end starts
/// pending, as it does when a domain binds it itself: that of the domain that comes later, or the later one of a domain's own two.
///
/// # Errors
/// `-ENOSPC` when the domain cannot have that port, `-EBUSY` when it is in use, or both ends are one.
pub fn bind_static<H: Hardware>(
    hw: &H,
    domain: &Domain,
    port: Port,
    peer: DomId,
    peer_port: Port,
) -> Result<(), Errno> {
    let mut state = domain.state.lock();
    let in_range = usize::try_from(port.0).is_ok_and(|index| index < domain.ports.len());
    if port.0 == 0 || !in_range || port.0 >= pv_abi::event::NR_CHANNELS_2L {
        return Err(Errno::Enospc);
    }
    if port::load(domain, port).kind != PortKind::Free || (peer == domain.id && peer_port == port) {
        return Err(Errno::Ebusy);
    }
    state.ports.occupy(domain, port, PortWord { kind: PortKind::Interdomain(peer, peer_port), vcpu: 0 });
    let is_second = peer < domain.id
        || (peer == domain.id && port::load(domain, peer_port).kind == PortKind::Interdomain(peer, port));
    if is_second {
        deliver::set_pending_at_boot(hw, domain, port);
    }
    Ok(())
}

/// Makes a static channel of a domain that is built anew: connected at once when the other end waits for the domain, else waiting for it.
///
/// # Errors
/// As [`bind_static`].
pub fn rejoin_static<H: Hardware>(
    machine: &Machine<H>,
    domain: &Domain,
    port: Port,
    peer: DomId,
    peer_port: Port,
) -> Result<(), Errno> {
    let other = machine.domain(peer);
    // An end of a channel inside the domain, or to a domain that was never built, is as at boot.
    let Some(other) = other.filter(|other| other.id != domain.id) else {
        return bind_static(&machine.hw, domain, port, peer, peer_port);
    };
    let (mut state, _other_state) = lock_two(domain, other);
    if usize::try_from(port.0).map_or(true, |index| index >= domain.ports.len())
        || port::load(domain, port).kind != PortKind::Free
    {
        return Err(Errno::Ebusy);
    }
    let word = port::load(other, peer_port);
    if word.kind == PortKind::Unbound(domain.id) && other.life.is_running() {
        connect(&mut state.ports, domain, port, other, peer_port, word.vcpu);
        // As when a domain binds it itself.
        deliver::set_pending_at_boot(&machine.hw, domain, port);
    } else {
        state.ports.occupy(domain, port, PortWord { kind: PortKind::Unbound(peer), vcpu: 0 });
    }
    Ok(())
}
