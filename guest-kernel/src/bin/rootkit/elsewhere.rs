//! Writing by others' hands: EL2's, and another domain's.
use alloc::format;

use guest_kernel::entry::Access;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{self, Grant, MappedGrant};
use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights};
use guest_kernel::{event, hypercall, smp};
use pv_abi::console::ConsoleOp;
use pv_abi::event::EventOp;
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo};
use pv_abi::version::VersionOp;
use pv_abi::{DomId, Errno, Hypercall, layout};

use super::{Tap, Target, peek, raw, update};

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
        tap.nothing(&format!("a grant of a table, mapped for {what}"), mapped.is_err());
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
    Ok(())
}

/// Pages that the hypervisor shows to this domain and writes itself: none becomes a table or text.
pub(super) fn shown(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [.., last] = target.tables;
    let info = core::ptr::from_ref(event::shared_page()?).addr() as u64;
    for (what, page) in [("the shared-info page", info), ("the grant table", layout::GRANT_TABLE_BASE)] {
        for (role, name) in
            [(Page::Table(3), "a table"), (Page::UserText, "text"), (Page::KernelText, "kernel text")]
        {
            tap.refused(&format!("{what} as {name}"), pv::pin(role, page), Errno::Einval);
        }
        let text = Entry::page(page, Rights::UserText).bits();
        tap.refused(&format!("{what}, executed"), update(last + 8 * 22, text), Errno::Einval);
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
        tap.refused(&format!("a table of {name}"), pv::pin(Page::Table(3), page), Errno::Ebusy);
        tap.refused(&format!("text of {name}"), pv::pin(Page::UserText, page), Errno::Ebusy);
    }
    Ok(())
}
