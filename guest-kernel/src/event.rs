//! Event channels: a [`Channel`] is this guest's end of one. Notify the other end; wait, blocked in the hypervisor, for its events.
//!
//! 1. The shared page is mapped, and every port masked, before the first channel exists.
//! 2. Waiting polls masked ports (`SCHEDOP_poll`), which needs no interrupt and misses no event: one that came before the call makes
//!    it return at once.
#![expect(unsafe_code, reason = "places the shared page")]
use core::time::Duration;

use pv_abi::event::{AllocUnbound, BindInterdomain, PortArg};
use pv_abi::memory::{AddToPhysmap, MapSpace};
use pv_abi::{DomId, Errno, PAGE_SIZE, Port};
use spin::Once;

use crate::shared_info::SharedPage;
use crate::{hypercall, time};

static SHARED: SharedPage = SharedPage::zeroed();

/// The page shared with the hypervisor, placed on first use.
///
/// # Errors
/// What the hypervisor says.
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
    /// What the hypervisor says about the shared page.
    pub fn fixed(port: Port) -> Result<Self, Errno> {
        shared_page().map(|_| Self { port, owner: Owner::System })
    }

    /// A new end that `peer` may bind to.
    ///
    /// # Errors
    /// What the hypervisor says.
    pub fn unbound(peer: DomId) -> Result<Self, Errno> {
        shared_page()?;
        let mut argument = AllocUnbound { dom: DomId::SELF, remote_dom: peer, port: Port(0) };
        hypercall::event_alloc_unbound(&mut argument)?;
        Ok(Self { port: argument.port, owner: Owner::Guest })
    }

    /// A new end bound to `peer`'s unbound `remote_port`.
    ///
    /// # Errors
    /// What the hypervisor says.
    pub fn bind(peer: DomId, remote_port: Port) -> Result<Self, Errno> {
        shared_page()?;
        let mut argument = BindInterdomain { remote_dom: peer, pad: 0, remote_port, local_port: Port(0) };
        hypercall::event_bind_interdomain(&mut argument)?;
        Ok(Self { port: argument.local_port, owner: Owner::Guest })
    }

    /// Its port.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Raises an event at the other end.
    ///
    /// # Errors
    /// What the hypervisor says.
    pub fn notify(&self) -> Result<(), Errno> {
        hypercall::event_send(self.port)
    }

    /// Takes a pending event, if there is one.
    pub fn take(&self) -> bool {
        SHARED.take(self.port)
    }

    /// Waits for an event, blocked in the hypervisor. An event that came since the last wait counts.
    ///
    /// # Errors
    /// What the hypervisor says.
    pub fn wait(&self) -> Result<(), Errno> {
        while !self.take() {
            hypercall::poll(&[self.port], 0)?;
        }
        Ok(())
    }

    /// Waits for an event, at most for `timeout`.
    ///
    /// # Errors
    /// What the hypervisor says.
    pub fn wait_for(&self, timeout: Duration) -> Result<Wake, Errno> {
        let end = time::now().after(timeout);
        let deadline = time::system_time().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        loop {
            if self.take() {
                return Ok(Wake::Event);
            }
            if time::now() >= end {
                return Ok(Wake::TimedOut);
            }
            // Ends early at worst; then the counter says to go on.
            hypercall::poll(&[self.port], deadline.max(1))?;
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.owner == Owner::Guest {
            SHARED.mask(self.port);
            // A refusal would mean that the port is gone already.
            let _ = hypercall::event_close(&mut PortArg { port: self.port });
            SHARED.take(self.port);
        }
    }
}
