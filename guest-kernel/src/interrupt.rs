//! Interrupts: from the vector to the handler of each. Handlers run with interrupts masked, on the interrupted stack.
//!
//! Handlers are the domain's; which interrupts are enabled, each vCPU says for itself.
//!
//! 1. An interrupt is enabled at the controller only after its handler is in place.
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use crate::gic::Gic;
use crate::gic::Taken;
pub use crate::gic::{Intid, Shared};
use crate::lock::Lock;
use crate::mmio::Registers;
use crate::smp::Cpu;
use crate::{cpu, tree};

/// What an interrupt runs.
pub type Handler = fn();

/// Interrupts that one entry to the vector takes at most, so that a storm cannot hold the guest there.
const BATCH: usize = 32;

static CONTROLLER: Once<Gic> = Once::new();
static HANDLERS: Lock<[Option<Handler>; 32]> = Lock::new([None; 32]);
/// Most shared interrupts that have a handler.
const SHARED: usize = 4;
static SHARED_HANDLERS: Lock<[Option<(Shared, Handler)>; SHARED]> = Lock::new([None; SHARED]);
static UNHANDLED: AtomicU64 = AtomicU64::new(0);

/// Why an interrupt cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoController;

/// Switches the controller on and lets interrupts in.
///
/// # Errors
/// [`NoController`] if the tree names none that is known.
pub fn start(frames: Option<tree::Gic>) -> Result<(), NoController> {
    if CONTROLLER.get().is_none() {
        let controller = frames.and_then(Gic::start).ok_or(NoController)?;
        CONTROLLER.call_once(|| controller);
    }
    enable(Intid::WAKE, || {})?;
    cpu::unmask_interrupts();
    Ok(())
}

/// Switches this vCPU's part of the controller on, which the first vCPU has started, and lets interrupts in.
pub(crate) fn start_here() -> Result<(), NoController> {
    controller()?.start_here().ok_or(NoController)?;
    enable(Intid::WAKE, || {})?;
    cpu::unmask_interrupts();
    Ok(())
}

pub(crate) fn controller() -> Result<&'static Gic, NoController> {
    CONTROLLER.get().ok_or(NoController)
}

/// Runs `handler` at every `intid` from now on, and enables it on this vCPU; others that run it already keep it enabled.
///
/// # Errors
/// [`NoController`] before [`start`].
pub fn enable(intid: Intid, handler: Handler) -> Result<(), NoController> {
    let controller = controller()?;
    cpu::without_interrupts(|| {
        if let Some(slot) = HANDLERS.lock().get_mut(intid.number() as usize) {
            *slot = Some(handler);
        }
        controller.enable(intid);
    });
    Ok(())
}

/// Runs `handler` at every occurrence of a shared interrupt from now on, on the first vCPU.
///
/// # Errors
/// [`NoController`] before [`start`], or when [`SHARED`] others have handlers.
pub fn enable_shared(shared: Shared, handler: Handler) -> Result<(), NoController> {
    let controller = controller()?;
    cpu::without_interrupts(|| {
        let mut all = SHARED_HANDLERS.lock();
        let free = |slot: &&mut Option<(Shared, Handler)>| slot.is_none_or(|(own, _)| own == shared);
        *all.iter_mut().find(free).ok_or(NoController)? = Some((shared, handler));
        drop(all);
        controller.enable_shared(shared);
        Ok(())
    })
}

/// Ignores `intid` from now on, on this vCPU.
///
/// # Errors
/// [`NoController`] before [`start`].
pub fn disable(intid: Intid) -> Result<(), NoController> {
    controller().map(|gic| gic.disable(intid))
}

/// Raises a software generated interrupt on this vCPU.
///
/// # Errors
/// [`NoController`] before [`start`].
pub fn send_to_self(intid: Intid) -> Result<(), NoController> {
    controller().map(|gic| gic.send_to_self(intid))
}

/// Raises a software generated interrupt on a vCPU.
///
/// # Errors
/// [`NoController`] before [`start`].
pub fn send(target: Cpu, intid: Intid) -> Result<(), NoController> {
    controller().map(|gic| gic.send(target, intid))
}

/// The distributor's registers.
///
/// # Errors
/// [`NoController`] before [`start`].
pub fn distributor() -> Result<Registers, NoController> {
    controller().map(Gic::distributor)
}

/// Interrupts that came without a handler.
pub fn unhandled() -> u64 {
    UNHANDLED.load(Ordering::Relaxed)
}

/// Takes what is pending; called by the vector, or with interrupts masked by those that look themselves.
pub fn dispatch() {
    let Ok(controller) = controller() else { return };
    for _ in 0..BATCH {
        let more = controller.take(|intid| {
            let handler = match intid {
                Taken::Private(intid) => HANDLERS.lock().get(intid.number() as usize).copied().flatten(),
                Taken::Shared(shared) => {
                    let all = SHARED_HANDLERS.lock();
                    all.iter().flatten().find(|(own, _)| *own == shared).map(|(_, handler)| *handler)
                }
            };
            match handler {
                Some(handler) => handler(),
                None => {
                    UNHANDLED.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        if !more {
            break;
        }
    }
}

/// Takes the most urgent pending interrupt of any kind by hand, runs its handler if it is private and has one, and ends it: its number and, of
/// a `GICv2`'s software generated interrupt, the vCPU that sent it. Call with interrupts masked.
pub fn take_by_hand() -> Option<(u32, u32)> {
    let controller = controller().ok()?;
    let mut taken = None;
    controller.take_any(|number, sender| {
        taken = Some((number, sender));
        let handler = HANDLERS.lock().get(number as usize).copied().flatten();
        if let Some(handler) = handler {
            handler();
        }
    });
    taken
}

/// Waits for interrupts until `done` says so: looks with interrupts masked, sleeps in the hypervisor until one is pending,
/// lets it in, and looks again. Misses none.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    loop {
        cpu::mask_interrupts();
        let finished = done();
        if !finished {
            cpu::wait_for_interrupt();
        }
        cpu::unmask_interrupts();
        cpu::synchronize();
        if finished {
            return;
        }
    }
}
