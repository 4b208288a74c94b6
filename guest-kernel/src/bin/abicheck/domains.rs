//! Two domains: what one sees of the other's ports and pages while it binds, closes, unmaps and ends. The other one is `partner.rs`.
extern crate alloc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::event::{Channel, own_id, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{Guest, hypercall};
use pv_abi::event::{BindInterdomain, PortArg, PortStatus};
use pv_abi::grant::{
    CopyFlags, CopyPtr, GrantCopy, GrantOp, GrantStatus, MapFlags, MapGrantRef, UnmapGrantRef,
};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, Port};

use super::aide::Aid;
use super::event::{close, status};
use super::partner::{ASKED, COMMAND, Command, DONE, RESULT};
use super::raw::{self, FREE, gfn};
use super::tap::Tap;
use super::{effects, flushes, own_pages, trio};

/// Where grants of the partner's are mapped: known to stage 1, and nothing is there.
const AT: u64 = (FREE - 8) << 12;
/// The first word of a page that the partner grants.
const PATTERN: u32 = 0x6E61_7267;
/// Flags of an entry (`GTF_*`): permitted, read-only, read from, written to.
const PERMIT: u32 = 1;
const READONLY: u32 = 4;
const READING: u32 = 8;
const WRITING: u32 = 16;

/// The partner and the page with what it is asked for.
pub(crate) struct Partner {
    pub(super) id: DomId,
    pub(super) own: DomId,
    pub(super) channel: Channel,
    page: Grant,
}

impl Partner {
    /// The partner at the other end of a configured channel. References are told in order: the first is made first.
    pub(super) fn nth(guest: &Guest, index: usize) -> Option<Self> {
        let number = |key| guest.args().text(key)?.split(',').nth(index)?.parse::<u32>().ok();
        let id = DomId(u16::try_from(number("peer")?).ok()?);
        let (channel, own) = (Channel::fixed(Port(number("port")?)).ok()?, own_id().ok()?);
        let page = Grant::new(Frame::boxed(), id, Access::ReadWrite).ok()?;
        // The partner was told which reference it is.
        (page.reference().0 == number("ref")?).then_some(Self { id, own, channel, page })
    }

    /// All of them.
    pub(super) fn all(guest: &Guest) -> Vec<Self> {
        (0..).map_while(|index| Self::nth(guest, index)).collect()
    }

    /// Lets the partner begin.
    fn begin(&self, command: Command, args: &[u32]) -> u32 {
        self.begin_number(command as u32, args)
    }

    /// The same of what `aide.rs` has.
    pub(super) fn begin_aid(&self, aid: Aid, args: &[u32]) -> u32 {
        self.begin_number(aid as u32, args)
    }

    fn begin_number(&self, command: u32, args: &[u32]) -> u32 {
        let words = self.page.frame().words();
        for (index, word) in words[COMMAND + 1..COMMAND + 5].iter().enumerate() {
            word.store(args.get(index).copied().unwrap_or(0), Ordering::Relaxed);
        }
        words[COMMAND].store(command, Ordering::Relaxed);
        let asked = words[ASKED].load(Ordering::Relaxed) + 1;
        words[ASKED].store(asked, Ordering::Release);
        let _ = self.channel.notify();
        asked
    }

    /// What came; all ones when nothing does for ten seconds.
    pub(super) fn end(&self, asked: u32) -> [u32; 4] {
        self.end_in(asked, Duration::from_secs(10)).unwrap_or([u32::MAX; 4])
    }

    fn end_in(&self, asked: u32, patience: Duration) -> Option<[u32; 4]> {
        let words = self.page.frame().words();
        for _ in 0..patience.as_millis() / 100 {
            if words[DONE].load(Ordering::Acquire) == asked {
                return Some([0, 1, 2, 3].map(|index| words[RESULT + index].load(Ordering::Relaxed)));
            }
            let _ = self.channel.wait_for(Duration::from_millis(100));
        }
        None
    }

    /// What came in a time.
    pub(super) fn ask_for(&self, command: Command, args: &[u32], patience: Duration) -> Option<[u32; 4]> {
        let asked = self.begin(command, args);
        self.end_in(asked, patience)
    }

    pub(super) fn ask_aid(&self, aid: Aid, args: &[u32]) -> [u32; 4] {
        let asked = self.begin_aid(aid, args);
        self.end(asked)
    }

    pub(super) fn ask(&self, command: Command, args: &[u32]) -> [u32; 4] {
        let asked = self.begin(command, args);
        self.end(asked)
    }

    /// The state of a port of the partner's, with its peer's port.
    fn status(&self, port: u32) -> [u32; 4] {
        self.ask(Command::Status, &[port])
    }

    /// A page of the partner's: its number there and its reference.
    pub(super) fn grant(&self, to: DomId, read_only: u32) -> (u32, GrantRef) {
        let [index, reference, ..] = self.ask(Command::Grant, &[u32::from(to.0), read_only]);
        (index, GrantRef(reference))
    }

    pub(super) fn flags(&self, index: u32) -> u32 {
        self.ask(Command::Look, &[index, 0])[0]
    }

    fn map(&self, reference: GrantRef, flags: MapFlags) -> (GrantStatus, GrantHandle) {
        let mut map = MapGrantRef {
            host_addr: AT,
            flags: flags.bits(),
            gref: reference,
            dom: self.id,
            ..Default::default()
        };
        let status = raw::grant(GrantOp::MapGrantRef, &mut map, |it| it.status);
        (status.unwrap_or(GrantStatus::NoSpace), map.handle)
    }
}

fn unmap(handle: GrantHandle) -> GrantStatus {
    let mut unmap = UnmapGrantRef { host_addr: AT, handle, ..Default::default() };
    raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |it| it.status).unwrap_or(GrantStatus::NoSpace)
}

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    let partners = Partner::all(guest);
    let Some(partner) = partners.first() else { return };
    let fixed = partner.channel.port();
    let bound = PortStatus::Interdomain.number();
    let own = u32::from(partner.own.0);
    tap.is(
        "the partner's end of the configured channel names this one",
        partner.status(1),
        [0, bound, own, fixed.0],
    );
    tap.is("and this one the partner's", status(fixed), Ok((bound, 0, u32::from(partner.id.0), 1)));
    channels(tap, partner);
    pages(tap, partner);
    copies(tap, partner);
    handles(tap, partner);
    flushes::of_another(tap, partner);
    if let Some(third) = partners.get(1) {
        trio::check(tap, guest, partner, third);
        own_pages::of_another(tap, third);
    }
    ending(tap, partner);
    for (index, partner) in partners.iter().enumerate() {
        effects::end_of(tap, index, partner);
    }
}

fn channels(tap: &mut Tap, partner: &Partner) {
    let (own, id) = (u32::from(partner.own.0), u32::from(partner.id.0));
    let (bound, unbound) = (PortStatus::Interdomain.number(), PortStatus::Unbound.number());
    let Ok(page) = shared_page() else { return tap.that("the shared page", false) };

    // The partner offers, this domain binds.
    let [error, theirs, ..] = partner.ask(Command::Offer, &[own]);
    tap.is("a port is offered", error, 0);
    tap.is("an event to it before it is bound is silent", partner.ask(Command::Send, &[theirs])[0], 0);
    tap.is("whom it is offered to is not who offers", partner.ask(Command::Bind, &[id, theirs])[0], 22);
    let mut bind =
        BindInterdomain { remote_dom: partner.id, remote_port: Port(theirs), ..Default::default() };
    tap.is("it is bound", hypercall::event_bind_interdomain(&mut bind), Ok(()));
    let ours = bind.local_port;
    tap.that("and pending at once: an event may have been lost", page.take(ours));
    tap.is("it is bound once", hypercall::event_bind_interdomain(&mut bind), Err(Errno::Einval));
    tap.is(
        "both ends name each other",
        (partner.status(theirs), status(ours)),
        ([0, bound, own, ours.0], Ok((bound, 0, id, theirs))),
    );
    tap.is(
        "events go there",
        (hypercall::event_send(ours), partner.ask(Command::Take, &[theirs])[0]),
        (Ok(()), 1),
    );
    tap.is("and come back", (partner.ask(Command::Send, &[theirs])[0], page.take(ours)), (0, true));

    // A vCPU of the partner's that is blocked in poll.
    let asked = partner.begin(Command::Wait, &[theirs, 5000]);
    let _ = partner.channel.wait_for(Duration::from_millis(30));
    tap.is("an event wakes who polls", (hypercall::event_send(ours), partner.end(asked)[0]), (Ok(()), 1));
    tap.is("none comes without one", partner.ask(Command::Wait, &[theirs, 20])[0], 0);

    // The partner closes: this end waits for it again.
    tap.is("the other end is closed", partner.ask(Command::Close, &[theirs])[0], 0);
    tap.is("this one waits for the same domain", status(ours), Ok((unbound, 0, id, 0)));
    tap.is("an event goes nowhere, silently", hypercall::event_send(ours), Ok(()));
    let [error, again, ..] = partner.ask(Command::Bind, &[own, ours.0]);
    tap.is("it is bound from there", (error, status(ours)), (0, Ok((bound, 0, id, again))));
    tap.is("and pending there at once", partner.ask(Command::Take, &[again])[0], 1);
    // This domain closes: the partner's end waits.
    tap.is("pending when it is closed", partner.ask(Command::Send, &[again])[0], 0);
    tap.is("this end is closed", close(ours), Ok(()));
    tap.that("and its event is gone", !page.is_pending(ours));
    tap.is("the other end waits for this domain", &partner.status(again)[..3], &[0, unbound, own][..]);
    tap.is("an event from there goes nowhere, silently", partner.ask(Command::Send, &[again])[0], 0);
    tap.is("and is closed there", partner.ask(Command::Close, &[again])[0], 0);
    tap.is("a closed port is not to be had", partner.ask(Command::Close, &[again])[0], 22);

    // A port of this domain's own, for the partner.
    let Ok(offer) = Channel::unbound(partner.id) else { return tap.that("a port for the partner", false) };
    let port = offer.port();
    let [error, there, ..] = partner.ask(Command::Bind, &[own, port.0]);
    tap.is("the partner binds to it", (error, status(port).map(|it| it.3)), (0, Ok(there)));
    tap.is("and not twice", partner.ask(Command::Bind, &[own, port.0])[0], 22);
    page.mask(port);
    tap.is("an event at a masked port", partner.ask(Command::Send, &[there])[0], 0);
    tap.is(
        "is still pending when it is unmasked",
        (hypercall::event_unmask(&mut PortArg { port }), page.take(port)),
        (Ok(()), true),
    );
    page.mask(port);
    drop(offer);
    tap.is("the partner's end outlives it", partner.status(there)[1], unbound);
    let _ = partner.ask(Command::Close, &[there]);
}

fn pages(tap: &mut Tap, partner: &Partner) {
    let (index, reference) = partner.grant(partner.own, 0);
    tap.is("a page is granted, and not in use", partner.flags(index), PERMIT);
    let (status, handle) = partner.map(reference, MapFlags::HOST_MAP);
    tap.is("it is mapped", status, GrantStatus::Okay);
    tap.is("its entry says that it is read and written", partner.flags(index), PERMIT | READING | WRITING);
    tap.is("what is in it", (raw::word(AT, 0), raw::word(AT, 1)), (PATTERN, index));
    raw::store(AT, 2, 0x7777);
    tap.is("what is written here is there", partner.ask(Command::Look, &[index, 2])[1], 0x7777);
    tap.is("it cannot be taken back", partner.ask(Command::End, &[index])[0], 0);
    tap.is("it is unmapped", unmap(handle), GrantStatus::Okay);
    tap.is("its entry says so", partner.flags(index), PERMIT);
    tap.is("it is unmapped once", unmap(handle), GrantStatus::BadHandle);

    let read_only = MapFlags::HOST_MAP | MapFlags::READONLY;
    let (status, handle) = partner.map(reference, read_only);
    tap.is("it is mapped for reading", (status, partner.flags(index)), (GrantStatus::Okay, PERMIT | READING));
    tap.is("and unmapped", (unmap(handle), partner.flags(index)), (GrantStatus::Okay, PERMIT));
    tap.is("it can be taken back", partner.ask(Command::End, &[index])[0], 1);
    tap.is(
        "then it is not to be had",
        partner.map(reference, MapFlags::HOST_MAP).0,
        GrantStatus::GeneralError,
    );

    let (index, reference) = partner.grant(partner.own, 1);
    tap.is("a page is granted for reading", partner.flags(index), PERMIT | READONLY);
    tap.is(
        "it is not mapped for writing",
        partner.map(reference, MapFlags::HOST_MAP).0,
        GrantStatus::GeneralError,
    );
    tap.is("and its entry is as before", partner.flags(index), PERMIT | READONLY);
    let (status, handle) = partner.map(reference, read_only);
    tap.is(
        "it is mapped for reading, read-only",
        (status, partner.flags(index)),
        (GrantStatus::Okay, PERMIT | READONLY | READING),
    );
    tap.is("read-only and unmapped", unmap(handle), GrantStatus::Okay);

    let (index, reference) = partner.grant(raw::NOBODY, 0);
    tap.is(
        "what another was granted is not mapped",
        partner.map(reference, MapFlags::HOST_MAP).0,
        GrantStatus::GeneralError,
    );
    tap.is("and its entry is untouched", partner.flags(index), PERMIT);
}

fn copies(tap: &mut Tap, partner: &Partner) {
    let here = Frame::boxed();
    here.words()[0].store(0x1234, Ordering::Relaxed);
    let own = |offset| CopyPtr { ref_or_gfn: gfn(&here), domid: DomId::SELF, offset, pad: 0 };
    let there = |reference: GrantRef, offset| CopyPtr {
        ref_or_gfn: u64::from(reference.0),
        domid: partner.id,
        offset,
        pad: 0,
    };
    let copy = |source, dest, len, flags: CopyFlags| {
        let mut copy = GrantCopy { source, dest, len, flags: flags.bits(), ..Default::default() };
        raw::grant(GrantOp::Copy, &mut copy, |it| it.status)
    };
    let (index, reference) = partner.grant(partner.own, 0);
    let (from, to) = (CopyFlags::SOURCE_GREF, CopyFlags::DEST_GREF);
    tap.is("a copy from its page", copy(there(reference, 0), own(8), 8, from), Ok(GrantStatus::Okay));
    tap.is("comes", [2, 3].map(|word: usize| here.words()[word].load(Ordering::Relaxed)), [PATTERN, index]);
    tap.is("a copy to its page", copy(own(0), there(reference, 4092), 4, to), Ok(GrantStatus::Okay));
    tap.is(
        "goes, and leaves no trace in the entry",
        &partner.ask(Command::Look, &[index, 1023])[..2],
        &[PERMIT, 0x1234][..],
    );
    let (other, second) = partner.grant(partner.own, 0);
    tap.is(
        "a copy between two of its pages",
        copy(there(reference, 4092), there(second, 16), 4, from | to),
        Ok(GrantStatus::Okay),
    );
    tap.is("is there", &partner.ask(Command::Look, &[other, 4])[..2], &[PERMIT, 0x1234][..]);
    let (_, third) = partner.grant(partner.own, 1);
    tap.is("to one for reading", copy(own(0), there(third, 0), 4, to), Ok(GrantStatus::GeneralError));
    tap.is("from one for reading", copy(there(third, 0), own(0), 4, from), Ok(GrantStatus::Okay));
    let (_, fourth) = partner.grant(raw::NOBODY, 0);
    tap.is(
        "from one that another was granted",
        copy(there(fourth, 0), own(0), 4, from),
        Ok(GrantStatus::GeneralError),
    );
    tap.is(
        "by frame of a page that was granted",
        copy(CopyPtr { ref_or_gfn: 0x40000, ..there(reference, 0) }, own(0), 4, CopyFlags::empty()),
        Ok(GrantStatus::PermissionDenied),
    );
}

fn handles(tap: &mut Tap, partner: &Partner) {
    let (_, reference) = partner.grant(partner.own, 0);
    let (status, handle) = partner.map(reference, MapFlags::HOST_MAP);
    tap.is("another page is mapped", status, GrantStatus::Okay);
    // The partner has one mapping, the page of commands, and its handle is its own affair: it is asked for this domain's, far from it.
    let bad = GrantStatus::BadHandle.value().unsigned_abs();
    tap.is(
        "a handle means nothing to others",
        &partner.ask(Command::Unmap, &[handle.0 + 64])[..2],
        &[0, u32::from(bad)][..],
    );
    tap.is("and is good here", unmap(handle), GrantStatus::Okay);
    let Ok(mine) = Grant::new(Frame::boxed(), partner.id, Access::ReadWrite) else {
        return tap.that("a page for it", false);
    };
    let args = [u32::from(partner.own.0), mine.reference().0, 0];
    let [error, status, theirs, _] = partner.ask(Command::Map, &args);
    tap.is("the partner maps a page of this domain's", (error, status), (0, 0));
    let Err(mine) = mine.end() else { return tap.that("it cannot be taken back meanwhile", false) };
    tap.is("the partner unmaps it", &partner.ask(Command::Unmap, &[theirs])[..2], &[0, 0][..]);
    tap.that("then it can", mine.end().is_ok());
}

fn ending(tap: &mut Tap, partner: &Partner) {
    let (index, reference) = partner.grant(partner.own, 0);
    let (status, handle) = partner.map(reference, MapFlags::HOST_MAP);
    tap.is("a page is mapped whose owner gives it up", status, GrantStatus::Okay);
    tap.is("the owner gives it to the hypervisor", partner.ask(Command::Decrease, &[index])[0], 1);
    tap.is("it is still mapped here, as it was", (raw::word(AT, 0), raw::word(AT, 1)), (PATTERN, index));
    tap.is("and is unmapped", unmap(handle), GrantStatus::Okay);

    let (index, reference) = partner.grant(partner.own, 0);
    let (status, handle) = partner.map(reference, MapFlags::HOST_MAP);
    tap.is("a page is mapped whose owner ends", status, GrantStatus::Okay);
    tap.is("the owner says that it ends", partner.ask(Command::ShutDown, &[])[0], 0);
    // It says so before it does: it has this time.
    let _ = partner.channel.wait_for(Duration::from_millis(50));
    let _ = partner.channel.wait_for(Duration::from_millis(50));
    tap.is("its page is still there", (raw::word(AT, 0), raw::word(AT, 1)), (PATTERN, index));
    raw::store(AT, 3, 9);
    tap.is("and can be written", raw::word(AT, 3), 9);
    tap.is("it is unmapped, owner or not", unmap(handle), GrantStatus::Okay);
    let (status, handle) = partner.map(reference, MapFlags::HOST_MAP);
    tap.is("an ended domain's grants last", (status, unmap(handle)), (GrantStatus::Okay, GrantStatus::Okay));
    tap.is("an event to it is taken", partner.channel.notify(), Ok(()));
    tap.is(
        "its end of the channel lasts",
        super::event::status(partner.channel.port()).map(|it| it.0),
        Ok(PortStatus::Interdomain.number()),
    );
    tap.is("a port can be made for it", Channel::unbound(partner.id).map(drop), Ok(()));
}
