//! Another domain, which helps: it maps what the kernel that was taken over grants it, and writes there (`role=accomplice`).
//!
//! They share the first page that the kernel grants, and a channel. Words of the page: 0 the number of the request, 1 of the last one done; 2 what
//! to do, 3 a reference; 4 what came of it.
use alloc::format;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::Guest;
use guest_kernel::event::{Channel, Wake};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant, MappedGrant};
use guest_kernel::pv::{self, Page};
use guest_kernel::space;
use pv_abi::{DomId, Errno, GrantRef, Port};

use super::{Tap, peek};

const ASKED: usize = 0;
const DONE: usize = 1;
const WHAT: usize = 2;
const REFERENCE: usize = 3;
const CAME: usize = 4;

/// The word of a granted page that the accomplice writes.
const WORD: usize = 9;
const EVIL: u32 = 0x0BAD_0BAD;

/// What it can be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Request {
    /// Maps a reference for writing, and keeps it so: 1 if it could.
    Map = 1,
    /// Maps a reference for reading, and gives it back: 1 if it could.
    Look = 2,
    /// Writes to what it has mapped: 1.
    Write = 3,
    /// Gives back what it has mapped: 1 if it could.
    Unmap = 4,
    /// Ends.
    End = 5,
}

impl Request {
    const ALL: [Self; 5] = [Self::Map, Self::Look, Self::Write, Self::Unmap, Self::End];
}

/// Whom the command line names, by which channel, and the page.
fn parties(guest: &Guest) -> Option<(DomId, Channel, GrantRef)> {
    let number = |key| guest.args().number(key).and_then(|value| u32::try_from(value).ok());
    let peer = DomId(u16::try_from(number("peer")?).ok()?);
    Some((peer, Channel::fixed(Port(number("port")?)).ok()?, GrantRef(number("ref")?)))
}

/// Does what it is asked for.
pub(super) fn serve(guest: &Guest) -> Result<(), Errno> {
    // This kernel is sealed, as all are that do not ask to be otherwise.
    if pv::is_on() && pv::pin(Page::KernelText, space::take_page()?) != Err(Errno::Eperm) {
        return Err(Errno::Eperm);
    }
    let (peer, channel, reference) = parties(guest).ok_or(Errno::Einval)?;
    let page = loop {
        match MappedGrant::map(peer, reference, Access::ReadWrite) {
            Ok(page) => break page,
            Err(_) => drop(channel.wait_for(Duration::from_millis(10))?),
        }
    };
    let words = page.frame().ok_or(Errno::Einval)?.words();
    let mut mapped = None;
    loop {
        let asked = words[ASKED].load(Ordering::Acquire);
        if asked == words[DONE].load(Ordering::Relaxed) {
            let _: Wake = channel.wait_for(Duration::from_millis(100))?;
            continue;
        }
        let wanted = words[WHAT].load(Ordering::Relaxed);
        let request = Request::ALL.into_iter().find(|one| *one as u32 == wanted).ok_or(Errno::Einval)?;
        let reference = GrantRef(words[REFERENCE].load(Ordering::Relaxed));
        let came = match request {
            Request::Map => {
                mapped = MappedGrant::map(peer, reference, Access::ReadWrite).ok();
                mapped.is_some()
            }
            Request::Look => MappedGrant::map(peer, reference, Access::ReadOnly).is_ok(),
            Request::Write => mapped
                .as_ref()
                .and_then(MappedGrant::frame)
                .inspect(|frame| frame.words()[WORD].store(EVIL, Ordering::Relaxed))
                .is_some(),
            Request::Unmap => mapped.take().is_some_and(|mapped| mapped.unmap().is_ok()),
            Request::End => true,
        };
        words[CAME].store(u32::from(came), Ordering::Relaxed);
        words[DONE].store(asked, Ordering::Release);
        channel.notify()?;
        if request == Request::End {
            return Ok(());
        }
    }
}

/// Who helps this kernel.
pub(super) struct Accomplice {
    id: DomId,
    channel: Channel,
    page: Grant,
}

impl Accomplice {
    /// The one that the command line names, if any.
    pub(super) fn new(guest: &Guest) -> Option<Self> {
        let (id, channel, reference) = parties(guest)?;
        let page = Grant::new(Frame::boxed(), id, Access::ReadWrite).ok()?;
        (page.reference() == reference).then_some(Self { id, channel, page })
    }

    /// Asks, and waits for what comes.
    fn ask(&self, request: Request, reference: GrantRef) -> Result<bool, Errno> {
        let words = self.page.frame().words();
        words[WHAT].store(request as u32, Ordering::Relaxed);
        words[REFERENCE].store(reference.0, Ordering::Relaxed);
        let asked = words[ASKED].load(Ordering::Relaxed) + 1;
        words[ASKED].store(asked, Ordering::Release);
        self.channel.notify()?;
        while words[DONE].load(Ordering::Acquire) != asked {
            let _: Wake = self.channel.wait_for(Duration::from_millis(100))?;
        }
        Ok(words[CAME].load(Ordering::Relaxed) == 1)
    }
}

/// A page that another domain may map, and what becomes of it.
pub(super) fn grants(tap: &mut Tap, accomplice: &Accomplice) -> Result<(), Errno> {
    let granted = Grant::new(Frame::boxed(), accomplice.id, Access::ReadWrite).map_err(|_| Errno::Einval)?;
    let (at, reference) = (granted.frame().words().as_ptr().addr() as u64, granted.reference());
    for (what, role) in [("a table", Page::Table(3)), ("user text", Page::UserText)] {
        let ask = |request| accomplice.ask(request, reference);
        pv::pin(role, at)?;
        tap.nothing(&format!("a grant of {what}, mapped by another domain for writing"), !ask(Request::Map)?);
        tap.nothing(
            &format!("a grant of {what}, mapped by another domain for reading"),
            !ask(Request::Look)?,
        );
        pv::unpin(at)?;
        let mapped = ask(Request::Map)? && ask(Request::Write)?;
        let written = granted.frame().words()[WORD].load(Ordering::Relaxed) == EVIL;
        tap.refused(
            &format!("{what} of a page that another domain has mapped for writing"),
            pv::pin(role, at),
            Errno::Ebusy,
        );
        tap.nothing("which it writes to, since it is data", mapped && written);
        granted.frame().words()[WORD].store(0, Ordering::Relaxed);
        let unmapped = ask(Request::Unmap)?;
        pv::pin(role, at)?;
        let again = ask(Request::Map)?;
        tap.nothing(
            &format!("{what} when it has given it back, mapped again"),
            unmapped && !again && !ask(Request::Write)? && peek(at + 32) == 0,
        );
        pv::unpin(at)?;
    }
    accomplice.ask(Request::End, reference).map(drop)
}
