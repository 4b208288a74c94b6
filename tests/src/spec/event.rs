//! Event channels, and how events arrive with two levels of bitmaps; with queues: `fifo`.
use pv_abi::Errno;

use super::{Dom, Frame, SELF, Spec, fifo};

/// Ports that come into being together: none beyond the last group in use can be named.
const GROUP: u32 = 64;
/// Virtual interrupts that there are.
const VIRQS: u32 = 24;
/// Virtual interrupts that each vCPU has for itself: timer, debug, xenoprof, xenpmu.
const PER_VCPU: [u32; 4] = [0, 1, 7, 13];

/// Pauses of a domain on top of each other.
const MOST_PAUSES: u32 = 255;

/// What a port is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Port {
    /// A domain may bind to it.
    Unbound {
        /// That domain.
        by: Dom,
    },
    /// One end of a channel.
    Channel {
        /// Whose the other end is.
        dom: Dom,
        /// The other end.
        port: u32,
    },
    /// A virtual interrupt.
    Virq(u32),
    /// The domain's own vCPUs.
    Ipi,
}

/// Where a vCPU's `vcpu_info` is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InfoAt {
    /// Nowhere: what would be written to it is lost.
    Nowhere,
    /// At the start of the shared-info page.
    SharedInfo,
    /// Where the guest registered it.
    Frame(Frame, u16),
}

/// Events that wake a vCPU, masked ones too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polls {
    /// None.
    Nothing,
    /// Those of one port.
    One(u32),
    /// Those of any port: with more than one port, or none, nobody remembers which.
    Any,
}

/// A vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vcpu {
    /// Where its event words are.
    pub info: InfoAt,
    /// `evtchn_pending_sel`.
    pub selector: u64,
    /// `evtchn_upcall_pending`.
    pub upcall: bool,
    /// Whether it waits.
    pub blocked: bool,
    /// What else ends its waiting.
    pub polls: Polls,
    /// Frames of its run-state area.
    pub runstate: Vec<Frame>,
}

impl Vcpu {
    /// The frames that the hypervisor writes to for it.
    pub fn areas(&self) -> impl Iterator<Item = Frame> + '_ {
        let info = match self.info {
            InfoAt::Frame(frame, _) => Some(frame),
            InfoAt::Nowhere | InfoAt::SharedInfo => None,
        };
        info.into_iter().chain(self.runstate.iter().copied())
    }
}

/// What `EVTCHNOP_status` tells: status, peer's domain or virq, peer's port, notified vCPU; `None` where nothing is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortFacts {
    /// `EVTCHNSTAT_*`.
    pub status: u32,
    /// Notified vCPU.
    pub vcpu: u32,
    /// The peer's domain.
    pub dom: Option<Dom>,
    /// The virq.
    pub virq: Option<u32>,
    /// The peer's port.
    pub port: Option<u32>,
}

impl Spec {
    /// Whether an operation may name a port.
    pub(super) fn named(&self, id: Dom, port: u32) -> Result<Option<(Port, u32)>, Errno> {
        let domain = self.of(id);
        if port >= domain.known_ports { Err(Errno::Einval) } else { Ok(domain.ports.get(&port).copied()) }
    }

    fn lowest_free(&self, id: Dom) -> Result<u32, Errno> {
        let domain = self.of(id);
        let is_free = |port: &u32| !domain.ports.contains_key(port) && !self.is_busy(id, *port);
        (1..domain.quota.ports).find(is_free).ok_or(Errno::Enospc)
    }

    fn occupy(&mut self, id: Dom, port: u32, kind: Port, vcpu: u32) {
        let domain = self.of_mut(id);
        domain.ports.insert(port, (kind, vcpu));
        let known = (port / GROUP + 1) * GROUP;
        domain.known_ports = domain.known_ports.max(known.min(domain.quota.ports));
    }

    /// `EVTCHNOP_alloc_unbound`.
    ///
    /// # Errors
    /// As the call.
    pub fn alloc_unbound(&mut self, who: Dom, dom: Dom, remote: Dom) -> Result<u32, Errno> {
        if self.any(who, dom).ok_or(Errno::Esrch)? != who {
            return Err(Errno::Eperm);
        }
        let port = self.lowest_free(who)?;
        let by = if remote == SELF { who } else { remote };
        self.occupy(who, port, Port::Unbound { by }, 0);
        Ok(port)
    }

    /// `EVTCHNOP_bind_interdomain`: the new end begins pending, since the other may have sent before.
    ///
    /// # Errors
    /// As the call.
    pub fn bind_interdomain(&mut self, who: Dom, remote: Dom, remote_port: u32) -> Result<u32, Errno> {
        let remote = self.any(who, remote).ok_or(Errno::Esrch)?;
        let port = self.lowest_free(who)?;
        match self.named(remote, remote_port)? {
            Some((Port::Unbound { by }, vcpu)) if by == who => {
                self.occupy(who, port, Port::Channel { dom: remote, port: remote_port }, 0);
                self.occupy(remote, remote_port, Port::Channel { dom: who, port }, vcpu);
            }
            _ => return Err(Errno::Einval),
        }
        self.raise(who, port);
        Ok(port)
    }

    pub(super) fn vcpu_exists(&self, who: Dom, vcpu: u32) -> Result<(), Errno> {
        if (vcpu as usize) < self.of(who).vcpus.len() { Ok(()) } else { Err(Errno::Enoent) }
    }

    /// `EVTCHNOP_bind_virq`.
    ///
    /// # Errors
    /// As the call.
    pub fn bind_virq(&mut self, who: Dom, virq: u32, vcpu: u32) -> Result<u32, Errno> {
        let own = PER_VCPU.contains(&virq);
        if virq >= VIRQS || (!own && vcpu != 0) {
            return Err(Errno::Einval);
        }
        self.vcpu_exists(who, vcpu)?;
        let bound = |(kind, notifies): &(Port, u32)| *kind == Port::Virq(virq) && (!own || *notifies == vcpu);
        if self.of(who).ports.values().any(bound) {
            return Err(Errno::Eexist);
        }
        let port = self.lowest_free(who)?;
        self.occupy(who, port, Port::Virq(virq), vcpu);
        Ok(port)
    }

    /// `EVTCHNOP_bind_ipi`.
    ///
    /// # Errors
    /// As the call.
    pub fn bind_ipi(&mut self, who: Dom, vcpu: u32) -> Result<u32, Errno> {
        self.vcpu_exists(who, vcpu)?;
        let port = self.lowest_free(who)?;
        self.occupy(who, port, Port::Ipi, vcpu);
        Ok(port)
    }

    /// `EVTCHNOP_close`: the other end waits for the caller again.
    ///
    /// # Errors
    /// As the call.
    pub fn close(&mut self, who: Dom, port: u32) -> Result<(), Errno> {
        let (kind, _) = self.named(who, port)?.ok_or(Errno::Einval)?;
        if let Port::Channel { dom, port: peer } = kind
            && let Some(other) = self.of_mut(dom).ports.get_mut(&peer)
        {
            other.0 = Port::Unbound { by: who };
        }
        let domain = self.of_mut(who);
        domain.ports.remove(&port);
        domain.pending.remove(&port);
        self.clear_queued(who, port);
        Ok(())
    }

    /// `EVTCHNOP_reset`: all ports are closed, and events arrive with two levels again.
    ///
    /// # Errors
    /// As the call.
    pub fn reset(&mut self, who: Dom, dom: Dom) -> Result<(), Errno> {
        if self.any(who, dom).ok_or(Errno::Esrch)? != who {
            return Err(Errno::Eperm);
        }
        let ports: Vec<u32> = self.of(who).ports.keys().copied().collect();
        for port in ports {
            self.close(who, port)?;
        }
        self.of_mut(who).fifo = None;
        Ok(())
    }

    /// `EVTCHNOP_send`.
    ///
    /// # Errors
    /// As the call.
    pub fn send(&mut self, who: Dom, port: u32) -> Result<(), Errno> {
        match self.named(who, port)? {
            Some((Port::Channel { dom, port }, _)) => self.raise(dom, port),
            Some((Port::Ipi, _)) => self.raise(who, port),
            Some((Port::Unbound { .. }, _)) => {}
            Some((Port::Virq(_), _)) | None => return Err(Errno::Einval),
        }
        Ok(())
    }

    /// `EVTCHNOP_unmask`.
    ///
    /// # Errors
    /// As the call.
    pub fn unmask(&mut self, who: Dom, port: u32) -> Result<(), Errno> {
        let Some((_, vcpu)) = self.named(who, port)? else { return Ok(()) };
        let domain = self.of_mut(who);
        if domain.fifo.is_some() {
            self.unmask_queued(who, port);
        } else if domain.masked.remove(&port) && domain.pending.contains(&port) {
            self.select(who, vcpu, 1 << (port / 64));
        }
        Ok(())
    }

    /// `EVTCHNOP_bind_vcpu`.
    ///
    /// # Errors
    /// As the call.
    pub fn bind_vcpu(&mut self, who: Dom, port: u32, vcpu: u32) -> Result<(), Errno> {
        self.vcpu_exists(who, vcpu)?;
        match self.named(who, port)? {
            Some((Port::Virq(virq), _)) if PER_VCPU.contains(&virq) => Err(Errno::Einval),
            None | Some((Port::Ipi, _)) => Err(Errno::Einval),
            Some((kind, _)) => {
                self.of_mut(who).ports.insert(port, (kind, vcpu));
                Ok(())
            }
        }
    }

    /// `EVTCHNOP_status`.
    ///
    /// # Errors
    /// As the call.
    pub fn status(&self, who: Dom, dom: Dom, port: u32) -> Result<PortFacts, Errno> {
        let id = self.any(who, dom).ok_or(Errno::Esrch)?;
        let found = self.named(id, port)?;
        if id != who {
            return Err(Errno::Eperm);
        }
        let nothing = PortFacts { status: 0, vcpu: 0, dom: None, virq: None, port: None };
        Ok(match found {
            None => nothing,
            Some((Port::Unbound { by }, vcpu)) => PortFacts { status: 1, vcpu, dom: Some(by), ..nothing },
            Some((Port::Channel { dom, port }, vcpu)) => {
                PortFacts { status: 2, vcpu, dom: Some(dom), port: Some(port), ..nothing }
            }
            Some((Port::Virq(virq), vcpu)) => PortFacts { status: 4, vcpu, virq: Some(virq), ..nothing },
            Some((Port::Ipi, vcpu)) => PortFacts { status: 5, vcpu, ..nothing },
        })
    }

    /// An event arrives at a port: once pending, it changes nothing more.
    pub fn raise(&mut self, id: Dom, port: u32) {
        let domain = self.of_mut(id);
        if domain.fifo.is_some() {
            return self.raise_queued(id, port);
        }
        if !domain.pending.insert(port) {
            return;
        }
        self.wake_pollers(id, port);
        let domain = self.of(id);
        let (_, vcpu) = domain.ports[&port];
        if !domain.masked.contains(&port) {
            self.select(id, vcpu, 1 << (port / 64));
        }
    }

    /// An event that becomes pending wakes who waits for it.
    pub(super) fn wake_pollers(&mut self, id: Dom, port: u32) {
        for vcpu in &mut self.of_mut(id).vcpus {
            if vcpu.blocked && (vcpu.polls == Polls::Any || vcpu.polls == Polls::One(port)) {
                vcpu.wake();
            }
        }
    }

    /// Bits appear in a vCPU's selector; a new one makes the upcall pending, and that raises the interrupt.
    fn select(&mut self, id: Dom, number: u32, bits: u64) {
        let vcpu = &mut self.of_mut(id).vcpus[number as usize];
        if vcpu.info == InfoAt::Nowhere || vcpu.selector & bits == bits {
            return;
        }
        vcpu.selector |= bits;
        self.mark_upcall(id, number);
    }

    /// A vCPU's upcall becomes pending: it is interrupted.
    pub(super) fn mark_upcall(&mut self, id: Dom, number: u32) {
        let vcpu = &mut self.of_mut(id).vcpus[number as usize];
        if vcpu.info != InfoAt::Nowhere && !vcpu.upcall {
            vcpu.upcall = true;
            vcpu.wake();
            self.upcalls.push((id, number));
        }
    }

    /// Whether an event is pending, as `SCHEDOP_poll` sees it.
    fn is_pending(&self, id: Dom, port: u32) -> bool {
        match &self.of(id).fifo {
            Some(fifo) => fifo.word_at(port).is_some_and(|at| self.half(at) & fifo::PENDING != 0),
            None => self.of(id).pending.contains(&port),
        }
    }

    /// The guest takes a vCPU's upcall: byte, selector, and the pending bits of those words.
    pub fn take(&mut self, id: Dom, number: u32) {
        let domain = self.of_mut(id);
        let vcpu = &mut domain.vcpus[number as usize];
        let selector = vcpu.selector;
        (vcpu.upcall, vcpu.selector) = (false, 0);
        let masked = &domain.masked;
        domain.pending.retain(|port| selector >> (port / 64) & 1 == 0 || masked.contains(port));
    }

    /// `VCPUOP_register_vcpu_info`, once for each vCPU: everything is pending afterwards.
    ///
    /// # Errors
    /// As the call.
    pub fn register_info(&mut self, who: Dom, number: u32, gfn: u64, offset: u32) -> Result<(), Errno> {
        self.vcpu_exists(who, number)?;
        // A frame that no address of 64 bits names.
        if offset >= 4096 || gfn >= 1 << 52 {
            return Err(Errno::Einval);
        }
        if matches!(self.of(who).vcpus[number as usize].info, InfoAt::Frame(..)) {
            return Err(Errno::Ebusy);
        }
        // Aligned and inside the page (XSA-327).
        if !offset.is_multiple_of(8) || offset > 4096 - 48 {
            return Err(Errno::Enxio);
        }
        let frame = self.ram_at(who, gfn).ok_or(Errno::Einval)?;
        if self.references(who, frame) >= self.most_references {
            return Err(Errno::Einval);
        }
        let vcpu = &mut self.of_mut(who).vcpus[number as usize];
        vcpu.info = InfoAt::Frame(frame, u16::try_from(offset).expect("inside a page"));
        self.bytes.remove(&frame);
        self.select(who, number, u64::MAX);
        Ok(())
    }

    /// `VCPUOP_register_runstate_memory_area` at a place of the caller's RAM, or at none.
    pub fn register_runstate(&mut self, who: Dom, number: u32, mut frames: Vec<Frame>) {
        // Counted anew before what it replaces is given back.
        let alike = |frame: &Frame| frames.iter().filter(|other| *other == frame).count() as u32;
        if frames.iter().any(|frame| self.references(who, *frame) + alike(frame) > self.most_references) {
            frames.clear();
        }
        for frame in &frames {
            self.bytes.remove(frame);
        }
        self.of_mut(who).vcpus[number as usize].runstate = frames;
    }

    /// `SCHEDOP_watchdog`: a new one (number 0), set again, or, with no time, cancelled. Its number, or 0; when all are set, `-ENOSPC` in 32 bits.
    ///
    /// # Errors
    /// As the call.
    pub fn watchdog(&mut self, who: Dom, number: u32, seconds: u32) -> Result<i64, Errno> {
        let dogs = &mut self.of_mut(who).watchdogs;
        if number == 0 {
            let Some(free) = dogs.iter().position(|set| !set) else { return Ok(0x1_0000_0000 - 28) };
            dogs[free] = true;
            return Ok(free as i64 + 1);
        }
        let dog = dogs.get_mut(number as usize - 1).filter(|set| **set).ok_or(Errno::Einval)?;
        *dog = seconds != 0;
        Ok(0)
    }

    /// `XEN_DOMCTL_pausedomain` and `unpausedomain` of the control domain, which is no domain's business but that one's: it keeps what it has, and
    /// what others do with it goes on.
    ///
    /// # Errors
    /// As the calls.
    pub fn pause(&mut self, id: Dom, pauses: bool) -> Result<(), Errno> {
        let domain = self.domains.get_mut(&id).ok_or(Errno::Esrch)?;
        match (pauses, domain.pauses) {
            // Itself.
            (true, _) if id == 0 => return Err(Errno::Einval),
            (true, MOST_PAUSES) => return Err(Errno::Eoverflow),
            (false, 0) => return Err(Errno::Einval),
            (true, _) => domain.pauses += 1,
            (false, _) => domain.pauses -= 1,
        }
        Ok(())
    }

    /// `SCHEDOP_block`: waits, unless an upcall is pending.
    pub fn block(&mut self, who: Dom, number: u32) {
        let vcpu = &mut self.of_mut(who).vcpus[number as usize];
        vcpu.blocked = !vcpu.upcall;
    }

    /// `SCHEDOP_poll`: waits until one of the ports is pending.
    ///
    /// # Errors
    /// As the call.
    pub fn poll(&mut self, who: Dom, number: u32, ports: &[u32]) -> Result<(), Errno> {
        for port in ports {
            self.named(who, *port)?.ok_or(Errno::Einval)?;
            if self.is_pending(who, *port) {
                return Ok(());
            }
        }
        let vcpu = &mut self.of_mut(who).vcpus[number as usize];
        vcpu.blocked = true;
        vcpu.polls = if let [port] = ports { Polls::One(*port) } else { Polls::Any };
        Ok(())
    }
}

impl Vcpu {
    /// It waits no more.
    pub fn wake(&mut self) {
        self.blocked = false;
        self.polls = Polls::Nothing;
    }
}
