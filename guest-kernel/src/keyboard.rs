//! What is typed on the machine's console, and the PV console: a page with a ring each way, and the hypervisor at the other end.
//!
//! 1. The page is reached by atomics only: the hypervisor changes it at any time.
#![expect(unsafe_code, reason = "the PV console's page is where the hypervisor put it")]
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use pv_abi::console::ConsoleRing;
use pv_abi::event::{BindVirq, Virq};
use pv_abi::hvm::HvmParam;
use pv_abi::{Errno, PAGE_SHIFT, PAGE_SIZE, Port};

use crate::event::Channel;
use crate::tree::Region;
use crate::{hypercall, paging};

/// [`ConsoleRing`] as both sides use it.
#[repr(C)]
struct Page {
    input: [AtomicU8; 1024],
    output: [AtomicU8; 2048],
    in_cons: AtomicU32,
    in_prod: AtomicU32,
    out_cons: AtomicU32,
    out_prod: AtomicU32,
}

const _: () = assert!(size_of::<Page>() == size_of::<ConsoleRing>());

/// Where keys come from.
enum Source {
    /// `console_io`.
    Calls,
    /// The PV console's page.
    Ring(&'static Page),
}

/// What is typed, while this domain has the keyboard.
pub struct Keyboard {
    source: Source,
    channel: Channel,
}

impl Keyboard {
    /// The domain's PV console, if it has one; else the calls, with `VIRQ_CONSOLE`.
    ///
    /// # Errors
    /// Those of `hvm_op.get_param` and `event_channel_op.bind_virq` in docs/abi.md; `-ENOMEM`, `-EFAULT` or `-EINVAL` when the ring cannot be used.
    pub fn open() -> Result<Self, Errno> {
        let port = hypercall::hvm_get_param(HvmParam::ConsoleEvtchn.number())?;
        if port == 0 {
            let mut bind = BindVirq { virq: Virq::Console.number(), vcpu: 0, port: Port(0) };
            hypercall::event_bind_virq(&mut bind)?;
            return Ok(Self { source: Source::Calls, channel: Channel::fixed(bind.port)? });
        }
        let start = hypercall::hvm_get_param(HvmParam::ConsolePfn.number())? << PAGE_SHIFT;
        let region = Region { start, size: PAGE_SIZE as u64 };
        paging::map_memory(region).map_err(|_| Errno::Enomem)?;
        let page =
            core::ptr::with_exposed_provenance::<Page>(usize::try_from(start).map_err(|_| Errno::Efault)?);
        // SAFETY: mapped just now, page-aligned, and all of it is atomics (invariant 1).
        let page = unsafe { page.as_ref() }.ok_or(Errno::Efault)?;
        let port = Port(u32::try_from(port).map_err(|_| Errno::Einval)?);
        Ok(Self { source: Source::Ring(page), channel: Channel::fixed(port)? })
    }

    /// Whether this is a PV console.
    pub const fn is_pv(&self) -> bool {
        matches!(self.source, Source::Ring(_))
    }

    /// Waits for a key.
    ///
    /// # Errors
    /// Those of `console_io.read` and `sched_op.poll` in docs/abi.md.
    pub fn key(&self) -> Result<u8, Errno> {
        loop {
            if let Some(key) = self.take()? {
                return Ok(key);
            }
            self.channel.wait()?;
        }
    }

    fn take(&self) -> Result<Option<u8>, Errno> {
        match self.source {
            Source::Calls => {
                let mut key = [0];
                Ok((hypercall::console_read(&mut key)? == 1).then_some(key[0]))
            }
            Source::Ring(page) => {
                let done = page.in_cons.load(Ordering::Relaxed);
                if page.in_prod.load(Ordering::Acquire) == done {
                    return Ok(None);
                }
                let key = page.input[done as usize % page.input.len()].load(Ordering::Relaxed);
                page.in_cons.store(done.wrapping_add(1), Ordering::Release);
                Ok(Some(key))
            }
        }
    }

    /// Writes text to the PV console; where there is none, to the usual one.
    ///
    /// # Errors
    /// Those of `console_io.write`, or for the ring of `event_channel_op.send`, in docs/abi.md.
    pub fn write(&self, text: &[u8]) -> Result<(), Errno> {
        let Source::Ring(page) = self.source else { return hypercall::console_write(text).map(drop) };
        let mut rest = text;
        while !rest.is_empty() {
            let made = page.out_prod.load(Ordering::Relaxed);
            let used = made.wrapping_sub(page.out_cons.load(Ordering::Acquire)) as usize;
            let (now, later) = rest.split_at(rest.len().min(page.output.len() - used));
            for (offset, byte) in (0..).zip(now) {
                page.output[made.wrapping_add(offset) as usize % page.output.len()]
                    .store(*byte, Ordering::Relaxed);
            }
            page.out_prod.store(made.wrapping_add(now.len() as u32), Ordering::Release);
            self.channel.notify()?;
            rest = later;
        }
        Ok(())
    }
}
