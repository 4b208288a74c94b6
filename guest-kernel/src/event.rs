//! Event channels: a [`Channel`] is this guest's end of one. Notify the other end; wait, blocked in the hypervisor, for its events.
//!
//! 1. The shared page is mapped, and every port masked, before the first channel exists.
//!    With FIFO queues ([`fifo`]) the same is said of their array.
//! 2. Waiting polls masked ports (`SCHEDOP_poll`), which needs no interrupt and misses no event: one that came before the call makes
//!    it return at once.
#![expect(unsafe_code, reason = "places the shared page")]
use core::time::Duration;

use heapless::LinearMap;
use pv_abi::event::{AllocUnbound, BindInterdomain, BindIpi, BindVcpu, PortArg, Status};
use pv_abi::memory::{AddToPhysmap, MapSpace};
use pv_abi::vcpu::RegisterVcpuInfo;
use pv_abi::{DomId, Errno, PAGE_SIZE, Port};
use spin::Once;

use crate::interrupt::Intid;
use crate::lock::Lock;
use crate::shared_info::{SharedPage, Upcall};
use crate::smp::{self, Cpu, MAX_CPUS};
use crate::{cpu, fifo, hypercall, interrupt, time};

static SHARED: SharedPage = SharedPage::zeroed();

/// Where the further vCPUs are told of events; the first is in the shared page.
#[repr(C, align(4096))]
struct Upcalls([Upcall; MAX_CPUS]);

const _: () = assert!(size_of::<Upcalls>() == PAGE_SIZE, "inside one page");

static UPCALLS: Upcalls = Upcalls([const { Upcall::zeroed() }; MAX_CPUS]);

/// The page shared with the hypervisor, placed on first use.
///
/// # Errors
/// Those of `memory_op.add_to_physmap` in docs/abi.md.
pub fn shared_page() -> Result<&'static SharedPage, Errno> {
    static PLACED: Once<Result<(), Errno>> = Once::new();
    PLACED
        .call_once(|| {
            let mut place = AddToPhysmap {
                domid: DomId::SELF,
                space: MapSpace::SharedInfo.number(),
                gpfn: ((&raw const SHARED).addr() / PAGE_SIZE) as u64,
                ..Default::default()
            };
            // SAFETY: the page that disappears is `SHARED`'s own, which holds nothing but atomics and has not been used yet.
            unsafe { hypercall::add_to_physmap(&mut place) }?;
            SHARED.mask_all();
            Ok(())
        })
        .map(|()| &SHARED)
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// An event came; it has been taken.
    Event,
    /// None came in time.
    TimedOut,
}

/// What closes a channel when it is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    /// The system's configuration: it stays.
    System,
    /// This value: it is closed.
    Guest,
}

/// One end of an event channel.
#[derive(Debug)]
pub struct Channel {
    port: Port,
    owner: Owner,
}

impl Channel {
    /// The end that the system's configuration made at `port` (a static channel).
    ///
    /// # Errors
    /// Those of [`shared_page`].
    pub fn fixed(port: Port) -> Result<Self, Errno> {
        shared_page().map(|_| Self { port, owner: Owner::System })
    }

    /// A new end that `peer` may bind to.
    ///
    /// # Errors
    /// Those of `event_channel_op.alloc_unbound` in docs/abi.md, or of [`shared_page`].
    pub fn unbound(peer: DomId) -> Result<Self, Errno> {
        shared_page()?;
        let mut argument = AllocUnbound { dom: DomId::SELF, remote_dom: peer, port: Port(0) };
        hypercall::event_alloc_unbound(&mut argument)?;
        Ok(Self { port: argument.port, owner: Owner::Guest })
    }

    /// A new end bound to `peer`'s unbound `remote_port`.
    ///
    /// # Errors
    /// Those of `event_channel_op.bind_interdomain` in docs/abi.md, or of [`shared_page`].
    pub fn bind(peer: DomId, remote_port: Port) -> Result<Self, Errno> {
        shared_page()?;
        let mut argument = BindInterdomain { remote_dom: peer, pad: 0, remote_port, local_port: Port(0) };
        hypercall::event_bind_interdomain(&mut argument)?;
        Ok(Self { port: argument.local_port, owner: Owner::Guest })
    }

    /// A new channel whose events, which any vCPU of this domain may raise, arrive at `target`.
    ///
    /// # Errors
    /// Those of `event_channel_op.bind_ipi` in docs/abi.md, or of [`shared_page`].
    pub fn ipi(target: Cpu) -> Result<Self, Errno> {
        shared_page()?;
        let mut argument = BindIpi { vcpu: target.number(), port: Port(0) };
        hypercall::event_bind_ipi(&mut argument)?;
        Ok(Self { port: argument.port, owner: Owner::Guest })
    }

    /// Makes its events arrive at `target` from now on; [`listen`] there. Not for those of [`Channel::ipi`].
    ///
    /// # Errors
    /// Those of `event_channel_op.bind_vcpu` in docs/abi.md.
    pub fn deliver_to(&self, target: Cpu) -> Result<(), Errno> {
        hypercall::event_bind_vcpu(&mut BindVcpu { port: self.port, vcpu: target.number() })
    }

    /// Its port.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Raises an event at the other end.
    ///
    /// # Errors
    /// Those of `event_channel_op.send` in docs/abi.md.
    pub fn notify(&self) -> Result<(), Errno> {
        hypercall::event_send(self.port)
    }

    /// Takes a pending event, if there is one.
    pub fn take(&self) -> bool {
        fifo::take(self.port).unwrap_or_else(|| SHARED.take(self.port))
    }

    /// Waits for an event, blocked in the hypervisor. An event that came since the last wait counts.
    ///
    /// # Errors
    /// Those of `sched_op.poll` in docs/abi.md.
    pub fn wait(&self) -> Result<(), Errno> {
        while !self.take() {
            hypercall::poll(&[self.port], 0)?;
        }
        Ok(())
    }

    /// Waits for an event, at most for `timeout`.
    ///
    /// # Errors
    /// Those of `sched_op.poll` in docs/abi.md.
    pub fn wait_for(&self, timeout: Duration) -> Result<Wake, Errno> {
        let end = time::now().after(timeout);
        loop {
            if self.take() {
                return Ok(Wake::Event);
            }
            let left = end.until();
            if left.is_zero() {
                return Ok(Wake::TimedOut);
            }
            // Ends early at worst; then the counter says to go on.
            let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
            hypercall::poll(&[self.port], time::system_time().saturating_add(left).max(1))?;
        }
    }
}

/// What an event runs, with interrupts masked: it gets the port.
pub type Handler = fn(Port);

/// Most ports with handlers.
const MAX_HANDLERS: usize = 64;

static HANDLERS: Lock<LinearMap<u32, Handler, MAX_HANDLERS>> = Lock::new(LinearMap::new());

/// Why a handler cannot be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandlerError {
    /// The interrupt controller is off: [`interrupt::start`] comes first.
    NoController,
    /// As many handlers as fit are set.
    TooMany,
    /// The hypervisor's refusal: of [`shared_page`], of `event_channel_op.unmask`, or of `vcpu_op.register_vcpu_info` (docs/abi.md).
    Refused(Errno),
}

impl Channel {
    /// Runs `handler` at every event from now on, in place of waiting. One that is pending already counts. It runs on this vCPU,
    /// or on the one that the channel delivers to, once that listens.
    ///
    /// # Errors
    /// [`HandlerError`].
    pub fn handle(&self, handler: Handler) -> Result<(), HandlerError> {
        listen()?;
        cpu::without_interrupts(|| HANDLERS.lock().insert(self.port.0, handler))
            .map_err(|_| HandlerError::TooMany)?;
        self.unmask().map_err(HandlerError::Refused)
    }

    /// Lets events interrupt.
    ///
    /// # Errors
    /// Those of `event_channel_op.unmask` in docs/abi.md.
    pub fn unmask(&self) -> Result<(), Errno> {
        hypercall::event_unmask(&mut PortArg { port: self.port })
    }

    /// Keeps events from interrupting; they stay pending.
    pub fn mask(&self) {
        if !fifo::mask(self.port) {
            SHARED.mask(self.port);
        }
    }
}

/// Lets this vCPU take events.
///
/// # Errors
/// [`HandlerError`]
pub fn listen() -> Result<(), HandlerError> {
    static REGISTERED: [Once<Result<(), Errno>>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
    shared_page().map_err(HandlerError::Refused)?;
    let here = smp::this();
    if here != Cpu::FIRST
        && let Some(registered) = REGISTERED.get(here.index())
    {
        registered.call_once(|| register(here)).map_err(HandlerError::Refused)?;
    }
    interrupt::enable(Intid::EVENTS, upcall).map_err(|_| HandlerError::NoController)
}

/// Tells the hypervisor where a vCPU is told of events.
fn register(cpu: Cpu) -> Result<(), Errno> {
    let address = (&raw const UPCALLS).addr();
    let mut place = RegisterVcpuInfo {
        gfn: (address / PAGE_SIZE) as u64,
        offset: u32::try_from(cpu.index() * size_of::<Upcall>()).unwrap_or(0),
        rsvd: 0,
    };
    // SAFETY: the page is static, of atomics only, and this part of it used for nothing else.
    unsafe { hypercall::register_vcpu_info(cpu.number(), &mut place) }
}

/// The events' interrupt.
fn upcall() {
    let here = smp::this();
    let own = if here == Cpu::FIRST { &SHARED.first } else { &UPCALLS.0[here.index()] };
    let handle = |port: Port| {
        let handler = HANDLERS.lock().get(&port.0).copied();
        if let Some(handler) = handler {
            handler(port);
        }
    };
    if fifo::is_on() {
        own.clear();
        fifo::take_all(here, handle);
    } else {
        SHARED.take_all(own, handle);
    }
}

/// This domain's own id: what an unbound channel to oneself says of its peer.
///
/// # Errors
/// Those of `event_channel_op.alloc_unbound` and `event_channel_op.status` in docs/abi.md.
pub fn own_id() -> Result<DomId, Errno> {
    let channel = Channel::unbound(DomId::SELF)?;
    let mut status = Status { dom: DomId::SELF, port: channel.port, ..Default::default() };
    hypercall::event_status(&mut status)?;
    u16::try_from(status.peer).map(DomId).map_err(|_| Errno::Einval)
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.owner == Owner::Guest {
            self.mask();
            cpu::without_interrupts(|| HANDLERS.lock().remove(&self.port.0));
            // A refusal would mean that the port is gone already.
            let _ = hypercall::event_close(&mut PortArg { port: self.port });
            self.take();
        }
    }
}
