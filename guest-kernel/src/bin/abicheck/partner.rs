//! The other side of the cases with two domains: it does what the checking guest writes into a page that both have, and tells what came.
//!
//! The page is the checking guest's first grant, the channel the configuration's. Words: 0 the number of the command, 1 the number of the
//! last one done; 2 what to do, 3 to 6 its arguments; 8 to 11 what came.
extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::event::{Channel, Wake};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant, MappedGrant};
use guest_kernel::{Guest, hypercall, power};
use pv_abi::event::{AllocUnbound, BindInterdomain, PortArg, Status};
use pv_abi::grant::{GrantOp, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::memory::{MemoryOp, Reservation};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, GuestHandle, Hypercall, Port};

use super::aide;
use super::raw::{self, FREE, address, gfn};

/// Words of the page.
pub(crate) const ASKED: usize = 0;
pub(crate) const DONE: usize = 1;
pub(crate) const COMMAND: usize = 2;
pub(crate) const RESULT: usize = 8;

/// What the partner can be asked for.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Command {
    /// Its port's state: (errno, state, peer, peer's port).
    Status,
    /// A port for a domain: (errno, port).
    Offer,
    /// A port bound to a domain's port: (errno, port).
    Bind,
    /// Closes a port: (errno).
    Close,
    /// Sends an event: (errno).
    Send,
    /// Takes an event: (whether it was pending).
    Take,
    /// Waits for an event, so many milliseconds: (whether it came).
    Wait,
    /// Grants a page to a domain, for reading only if the second argument is 1: (index, reference). Its first words are a pattern and
    /// the index.
    Grant,
    /// The flags in a grant's entry, and a word of its page: (flags, word).
    Look,
    /// Takes a granted page back: (whether it could).
    End,
    /// Gives a granted page back to the hypervisor: (pages).
    Decrease,
    /// Maps a domain's reference: (errno, negated status, handle).
    Map,
    /// Unmaps a handle: (errno, negated status).
    Unmap,
    /// Shuts down.
    ShutDown,
}

impl Command {
    const ALL: [Self; 14] = [
        Self::Status,
        Self::Offer,
        Self::Bind,
        Self::Close,
        Self::Send,
        Self::Take,
        Self::Wait,
        Self::Grant,
        Self::Look,
        Self::End,
        Self::Decrease,
        Self::Map,
        Self::Unmap,
        Self::ShutDown,
    ];
}

/// Serves until it is told to shut down.
pub(crate) fn serve(guest: &Guest) -> Result<(), Errno> {
    let number =
        |key| guest.args().number(key).and_then(|value| u32::try_from(value).ok()).ok_or(Errno::Einval);
    let master = DomId(u16::try_from(number("peer")?).map_err(|_| Errno::Einval)?);
    let channel = Channel::fixed(Port(number("port")?))?;
    // The channel's, unless the page is another's.
    let reference = GrantRef(number("page").or_else(|_| number("ref"))?);
    let page = loop {
        match MappedGrant::map(master, reference, Access::ReadWrite) {
            Ok(page) => break page,
            Err(_) => drop(channel.wait_for(Duration::from_millis(10))?),
        }
    };
    let page = page.frame().ok_or(Errno::Einval)?;
    let words = page.words();
    let mut granted: Vec<Option<Grant>> = Vec::new();
    loop {
        let asked = words[ASKED].load(Ordering::Acquire);
        if asked == words[DONE].load(Ordering::Relaxed) {
            channel.wait_for(Duration::from_millis(100))?;
            continue;
        }
        let word = |index: usize| words[COMMAND + index].load(Ordering::Relaxed);
        let args = [word(1), word(2), word(3), word(4)];
        let came = match (aide::perform(guest, word(0), args), Command::ALL.get(word(0) as usize)) {
            (Some(came), _) => came,
            (None, Some(command)) => perform(*command, args, &mut granted),
            (None, None) => return Err(Errno::Einval),
        };
        let asked_for = word(0);
        for (to, value) in words[RESULT..].iter().zip(came) {
            to.store(value, Ordering::Relaxed);
        }
        words[DONE].store(asked, Ordering::Release);
        channel.notify()?;
        aide::after(asked_for, args[0]);
        if asked_for == Command::ShutDown as u32 {
            power::power_off();
        }
    }
}

fn errno<T>(answer: Result<T, Errno>) -> u32 {
    answer.err().map_or(0, |errno| errno.value().unsigned_abs())
}

fn id(word: u32) -> DomId {
    DomId(u16::try_from(word).unwrap_or(u16::MAX))
}

fn perform(command: Command, args: [u32; 4], granted: &mut Vec<Option<Grant>>) -> [u32; 4] {
    let [first, second, third, _] = args;
    let port = Port(first);
    let grant = |granted: &Vec<Option<Grant>>| granted.get(first as usize).is_some_and(Option::is_some);
    match command {
        Command::Status => {
            let mut status = Status { dom: DomId::SELF, port, ..Default::default() };
            let answer = hypercall::event_status(&mut status);
            [errno(answer), status.status, status.peer, status.peer_port.0]
        }
        Command::Offer => {
            let mut alloc = AllocUnbound { dom: DomId::SELF, remote_dom: id(first), port: Port(0) };
            [errno(hypercall::event_alloc_unbound(&mut alloc)), alloc.port.0, 0, 0]
        }
        Command::Bind => {
            let mut bind =
                BindInterdomain { remote_dom: id(first), remote_port: Port(second), ..Default::default() };
            [errno(hypercall::event_bind_interdomain(&mut bind)), bind.local_port.0, 0, 0]
        }
        Command::Close => [errno(hypercall::event_close(&mut PortArg { port })), 0, 0, 0],
        Command::Send => [errno(hypercall::event_send(port)), 0, 0, 0],
        Command::Take => {
            let taken = Channel::fixed(port).is_ok_and(|channel| channel.take());
            [u32::from(taken), 0, 0, 0]
        }
        Command::Wait => {
            let time = Duration::from_millis(u64::from(second));
            let woken = Channel::fixed(port).and_then(|channel| channel.wait_for(time));
            [u32::from(woken == Ok(Wake::Event)), 0, 0, 0]
        }
        Command::Grant => {
            let index = u32::try_from(granted.len()).unwrap_or(0);
            let frame = Frame::boxed();
            frame.words()[0].store(0x6E61_7267, Ordering::Relaxed);
            frame.words()[1].store(index, Ordering::Relaxed);
            let access = if second == 1 { Access::ReadOnly } else { Access::ReadWrite };
            let Ok(grant) = Grant::new(frame, id(first), access) else { return [u32::MAX; 4] };
            let reference = grant.reference().0;
            granted.push(Some(grant));
            [index, reference, 0, 0]
        }
        Command::Look => match granted.get(first as usize) {
            Some(Some(grant)) => {
                let word = grant.frame().words()[second as usize % 1024].load(Ordering::Relaxed);
                [u32::from(grant.flags()), word, 0, 0]
            }
            _ => [u32::MAX; 4],
        },
        Command::End if grant(granted) => match granted[first as usize].take().map(Grant::end) {
            Some(Err(grant)) => {
                granted[first as usize] = Some(grant);
                [0; 4]
            }
            _ => [1, 0, 0, 0],
        },
        Command::Decrease if grant(granted) => {
            let gfns = granted[first as usize].as_ref().map(|grant| gfn(grant.frame()));
            let mut gfns = [gfns.unwrap_or(0)];
            let extent_start = GuestHandle(address(&mut gfns));
            let mut asked =
                Reservation { extent_start, nr_extents: 1, domid: DomId::SELF, ..Default::default() };
            let op = u64::from(MemoryOp::DecreaseReservation.number());
            let pages = raw::with(Hypercall::MemoryOp, op, &mut asked);
            // It may be gone: it is never used again.
            if let Some(grant) = granted[first as usize].take() {
                core::mem::forget(Box::new(grant));
            }
            [pages.map_or(u32::MAX, |pages| u32::try_from(pages).unwrap_or(u32::MAX)), 0, 0, 0]
        }
        Command::End | Command::Decrease => [u32::MAX; 4],
        Command::Map => {
            let flags = MapFlags::HOST_MAP.bits() | third;
            let mut map = MapGrantRef {
                host_addr: FREE << 12,
                flags,
                gref: GrantRef(second),
                dom: id(first),
                ..Default::default()
            };
            let answer =
                raw::grants(u64::from(GrantOp::MapGrantRef.number()), core::slice::from_mut(&mut map));
            [errno(answer), u32::from(map.status.unsigned_abs()), map.handle.0, 0]
        }
        Command::Unmap => {
            let mut unmap =
                UnmapGrantRef { host_addr: FREE << 12, handle: GrantHandle(first), ..Default::default() };
            let answer =
                raw::grants(u64::from(GrantOp::UnmapGrantRef.number()), core::slice::from_mut(&mut unmap));
            [errno(answer), u32::from(unmap.status.unsigned_abs()), 0, 0]
        }
        Command::ShutDown => [0; 4],
    }
}
