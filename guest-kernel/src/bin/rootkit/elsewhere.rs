//! Writing by others' hands: EL2's, and another domain's.
use alloc::{format, vec};

use guest_kernel::entry::Access;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{self, Grant, MappedGrant};
use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights};
use guest_kernel::{event, hypercall, smp};
use pv_abi::console::ConsoleOp;
use pv_abi::event::EventOp;
use pv_abi::hvm::{HvmOp, HvmParam, HvmParamArg};
use pv_abi::memory::{MemoryOp, RemoveFromPhysmap};
use pv_abi::paging::ExtOp;
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo};
use pv_abi::version::VersionOp;
use pv_abi::{DomId, Errno, Hypercall, Port, layout};

use super::{Tap, Target, extended, memory, peek, raw, store, update};

/// This domain's number, as the system file has it.
const SELF: DomId = DomId(1);

fn frame(at: u64) -> &'static Frame {
    let at = usize::try_from(at).unwrap_or_default();
    // SAFETY: a page of this kernel's, made of atomics.
    unsafe { &*core::ptr::with_exposed_provenance(at) }
}

/// XSA-288: all ways to have somebody else write to a table or text.
pub(super) fn hands(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [zero, .., last] = target.tables;
    // A page that was granted before it became a table; and one that somebody has mapped.
    let granted = Grant::new(Frame::boxed(), SELF, Access::ReadWrite).map_err(|_| Errno::Einval)?;
    let at = granted.frame().words().as_ptr().addr() as u64;
    pv::pin(Page::Table(3), at)?;
    for (what, access) in [("writing", Access::ReadWrite), ("reading", Access::ReadOnly)] {
        let mapped = MappedGrant::map(SELF, granted.reference(), access);
        tap.nothing(&format!("a grant of a table, mapped for {what} (XSA-288)"), mapped.is_err());
    }
    let source = Grant::new(Frame::boxed(), SELF, Access::ReadWrite).map_err(|_| Errno::Einval)?;
    for (what, page) in
        [("a table", last), ("a root", zero), ("user text", target.text), ("kernel text", target.kernel)]
    {
        let before = peek(page);
        let copied = grant::copy(SELF, source.reference(), frame(page), 64);
        tap.nothing(&format!("a grant copied to {what}"), copied.is_err() && peek(page) == before);
    }
    pv::unpin(at)?;
    let mapped = MappedGrant::map(SELF, granted.reference(), Access::ReadWrite).map_err(|_| Errno::Einval)?;
    tap.refused(
        "a table of a page that another has mapped for writing",
        pv::pin(Page::Table(3), at),
        Errno::Ebusy,
    );
    tap.refused("text of it", pv::pin(Page::UserText, at), Errno::Ebusy);
    mapped.unmap().map_err(|_| Errno::Einval)?;
    tap.nothing(
        "which can be one when nobody has it mapped",
        pv::pin(Page::Table(3), at).is_ok() && pv::unpin(at).is_ok(),
    );
    for (what, page) in
        [("a table", last), ("a root", zero), ("user text", target.text), ("kernel text", target.kernel)]
    {
        let before = peek(page);
        let mut info = RegisterVcpuInfo { gfn: page / PAGE, ..Default::default() };
        // SAFETY: refused, or this guest's to lose.
        let got = unsafe { hypercall::register_vcpu_info(smp::count() - 1, &mut info) };
        tap.nothing(&format!("vcpu_info on {what}"), got.is_err() && peek(page) == before);
        let mut area = RegisterRunstate { addr: page };
        // SAFETY: as above. (It may say yes, as Xen does, and write nowhere.)
        let _ = unsafe { hypercall::register_runstate(smp::count() - 1, &mut area) };
        let _ = hypercall::sched_yield();
        tap.nothing(&format!("a run-state area on {what}"), peek(page) == before);
        let version = [u64::from(VersionOp::Extraversion.number()), page, 0, 0, 0];
        let got = raw(Hypercall::XenVersion, version);
        tap.nothing(
            &format!("an answer of xen_version to {what}"),
            got == Err(Errno::Efault) && peek(page) == before,
        );
        let got = raw(Hypercall::MmuUpdate, [0, 0, page, u64::from(DomId::SELF.0), 0]);
        tap.nothing(
            &format!("the count of a batch to {what}"),
            got == Err(Errno::Efault) && peek(page) == before,
        );
        let got = raw(Hypercall::ConsoleIo, [u64::from(ConsoleOp::Read.number()), 8, page, 0, 0]);
        tap.nothing(
            &format!("console input to {what}"),
            (got.is_err() || got == Ok(())) && peek(page) == before,
        );
    }
    areas(tap)
}

/// A page that EL2 writes a vCPU's state to is data, and stays where it is.
fn areas(tap: &mut Tap) -> Result<(), Errno> {
    let (page, elsewhere) = (space::take_page()?, space::take_page()?);
    let vcpu = smp::count() - 1;
    // SAFETY: a page of this kernel's that nobody uses.
    unsafe { hypercall::register_runstate(vcpu, &mut RegisterRunstate { addr: page }) }?;
    written_by_el2(tap, "a run-state area", page);
    // SAFETY: as above.
    unsafe { hypercall::register_runstate(vcpu, &mut RegisterRunstate { addr: elsewhere }) }?;
    extended(ExtOp::ClearPage, page / PAGE, 0)?;
    tap.nothing(
        "which can be a table when the area is elsewhere",
        pv::pin(Page::Table(3), page).is_ok() && pv::unpin(page).is_ok(),
    );
    let mut info = RegisterVcpuInfo { gfn: page / PAGE, ..Default::default() };
    // SAFETY: as above.
    unsafe { hypercall::register_vcpu_info(vcpu, &mut info) }?;
    written_by_el2(tap, "a vcpu_info", page);
    Ok(())
}

/// What EL2 writes to becomes neither table nor text, is not given back, and is not exchanged.
fn written_by_el2(tap: &mut Tap, what: &str, page: u64) {
    tap.refused(&format!("a table of {what}"), pv::pin(Page::Table(3), page), Errno::Ebusy);
    tap.refused(&format!("text of {what}"), pv::pin(Page::UserText, page), Errno::Ebusy);
    // A word that EL2 does not write: it is there afterwards, and where it was.
    let word = page + PAGE - 8;
    store(word, 0x5A5A);
    memory::reserve(MemoryOp::DecreaseReservation, page);
    tap.nothing(&format!("giving {what} back"), peek(word) == 0x5A5A);
    tap.nothing(&format!("exchanging {what}"), memory::exchange(page).is_err() && peek(word) == 0x5A5A);
    store(word, 0);
}

/// Pages that the hypervisor shows to this domain and writes itself: none becomes a table or text.
pub(super) fn shown(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [zero, .., last] = target.tables;
    let info = core::ptr::from_ref(event::shared_page()?).addr() as u64;
    let param = |param: HvmParam| hypercall::hvm_get_param(param.number());
    let ring = param(HvmParam::ConsolePfn)? * PAGE;
    let mut pages = vec![("the shared-info page", info), ("the grant table", layout::GRANT_TABLE_BASE)];
    if ring != 0 {
        pages.push(("the console's ring", ring));
    }
    for (what, page) in pages {
        for (role, name) in
            [(Page::Table(3), "a table"), (Page::UserText, "text"), (Page::KernelText, "kernel text")]
        {
            tap.refused(&format!("{what} as {name}"), pv::pin(role, page), Errno::Einval);
        }
        let text = Entry::page(page, Rights::UserText).bits();
        tap.refused(&format!("{what}, executed"), update(last + 8 * 22, text), Errno::Einval);
    }
    // EL2 reads and writes the console's ring wherever it is: it is nowhere else.
    let all =
        [("a table", last), ("a root", zero), ("user text", target.text), ("kernel text", target.kernel)];
    for (name, index) in [("console", HvmParam::ConsolePfn), ("xenstore", HvmParam::StorePfn)] {
        for (what, page) in all {
            let before = (peek(page), param(index)?);
            let asked = HvmParamArg {
                domid: DomId::SELF,
                index: index.number(),
                value: page / PAGE,
                ..Default::default()
            };
            let at = (&raw const asked).expose_provenance() as u64;
            let got = raw(Hypercall::HvmOp, [HvmOp::SetParam.number().into(), at, 0, 0, 0]);
            // The backend looks at the ring when it is told of something there.
            if let Ok(port) = u32::try_from(param(HvmParam::ConsoleEvtchn)?)
                && port != 0
            {
                let _ = hypercall::event_send(Port(port));
            }
            tap.nothing(
                &format!("the {name} ring on {what}"),
                got == Err(Errno::Eperm) && (peek(page), param(index)?) == before,
            );
        }
    }
    Ok(())
}

/// The event queues of FIFO: what EL2 writes there is no table or text, and none becomes one.
pub(super) fn queues(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [zero, .., last] = target.tables;
    let call = |op: EventOp, words: [u64; 3]| {
        let at = words.as_ptr().expose_provenance() as u64;
        raw(Hypercall::EventChannelOp, [u64::from(op.number()), at, 0, 0, 0])
    };
    let all =
        [("a table", last), ("a root", zero), ("user text", target.text), ("kernel text", target.kernel)];
    let mut refused = |name: &str, op: EventOp| {
        for (what, page) in all {
            let before = peek(page);
            let got = call(op, [page / PAGE, 0, 0]);
            tap.nothing(&format!("{name} on {what}"), got.is_err() && peek(page) == before);
        }
    };
    refused("a FIFO control block", EventOp::InitControl);
    let control = space::take_page()?;
    call(EventOp::InitControl, [control / PAGE, 0, 0])?;
    refused("a FIFO event array", EventOp::ExpandArray);
    let array = space::take_page()?;
    call(EventOp::ExpandArray, [array / PAGE, 0, 0])?;
    for (name, page) in [("a FIFO control block", control), ("a FIFO event array", array)] {
        written_by_el2(tap, name, page);
    }
    replaced(tap, array)
}

/// Another page comes to where a FIFO event array is, and becomes a table: EL2 goes on writing to what it was given.
fn replaced(tap: &mut Tap, array: u64) -> Result<(), Errno> {
    let remove = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: array / PAGE };
    let at = (&raw const remove).expose_provenance() as u64;
    raw(Hypercall::MemoryOp, [u64::from(MemoryOp::RemoveFromPhysmap.number()), at, 0, 0, 0])?;
    // Room below the domain's limit, for the page that comes.
    memory::reserve(MemoryOp::DecreaseReservation, space::take_page()?);
    memory::reserve(MemoryOp::PopulatePhysmap, array);
    let channel = event::Channel::ipi(smp::this())?;
    let pinned = pv::pin(Page::Table(3), array);
    channel.notify()?;
    let clean = (0..PAGE).step_by(8).all(|offset| peek(array + offset) == 0);
    tap.nothing("a table in the place of a FIFO event array, and an event", pinned.is_ok() && clean);
    Ok(())
}
