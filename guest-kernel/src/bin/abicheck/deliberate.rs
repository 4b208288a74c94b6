//! What Xen does and Pavo does otherwise on purpose: the expectations are Xen's, and `tests/differences.toml` says why Pavo's answer is another.
use core::time::Duration;

use aarch64_cpu::registers::{CNTV_CTL_EL0, Readable};
use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{cpu, hypercall, time, timer};
use pv_abi::grant::{GrantOp, GrantStatus, MapFlags, MapGrantRef};
use pv_abi::memory::{MemoryOp, RemoveFromPhysmap};
use pv_abi::{DomId, GrantHandle};

use super::aide::{map_at, unmap_at};
use super::limits_memory::memory_op;
use super::raw::{self, FREE};
use super::tap::Tap;

/// Pages of the grant region that nothing else uses.
const AT: u64 = FREE - 52;
const ELSEWHERE: u64 = FREE - 53;

pub(crate) fn check(tap: &mut Tap) {
    let Ok(own) = own_id() else { return tap.that("own id", false) };
    over_a_grant(tap, own);
    elsewhere(tap, own);
    timer_masked(tap);
}

fn over_a_grant(tap: &mut Tap, own: DomId) {
    let pages = [Frame::boxed(), Frame::boxed()];
    pages[1].words()[0].store(0x2222, core::sync::atomic::Ordering::Relaxed);
    let grants = pages.map(|page| Grant::new(page, own, Access::ReadWrite).ok());
    let [Some(first), Some(second)] = grants else { return tap.that("two pages are granted", false) };
    let (status, handle) = map_at(own, first.reference(), AT);
    tap.is("map_grant_ref at a page with nothing", status, GrantStatus::Okay);
    let mut over = MapGrantRef {
        host_addr: AT << 12,
        flags: MapFlags::HOST_MAP.bits(),
        gref: second.reference(),
        dom: own,
        ..Default::default()
    };
    let answer = raw::grant(GrantOp::MapGrantRef, &mut over, |map| map.status);
    tap.is("map_grant_ref over another grant", answer, Ok(GrantStatus::Okay));
    if answer == Ok(GrantStatus::Okay) {
        let _ = (raw::word(AT << 12, 0), unmap_at(AT, over.handle));
    }
    // With nothing there, it can be given back on both.
    tap.is("unmap_grant_ref of the one that was there first", unmap_at(AT, handle), GrantStatus::Okay);
    tap.that(
        "pages that were mapped at one place can be taken back",
        first.end().is_ok() && second.end().is_ok(),
    );
}

fn elsewhere(tap: &mut Tap, own: DomId) {
    let Ok(grant) = Grant::new(Frame::boxed(), own, Access::ReadWrite) else {
        return tap.that("a page is granted", false);
    };
    let (status, handle) = map_at(own, grant.reference(), AT);
    tap.is("map_grant_ref at a page", status, GrantStatus::Okay);
    let there = unmap_at(ELSEWHERE, handle);
    tap.is("unmap_grant_ref at another page than it was mapped at", there, GrantStatus::Okay);
    if there == GrantStatus::Okay {
        // Its mapping is left.
        let mut take = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: AT };
        let _ = memory_op(MemoryOp::RemoveFromPhysmap, 0, &mut take);
    }
    let handle = if there == GrantStatus::Okay { GrantHandle::INVALID } else { handle };
    let again = unmap_at(AT, handle);
    tap.that("then its handle is used up", there == GrantStatus::Okay || again == GrantStatus::Okay);
    tap.that("a page that was unmapped elsewhere can be taken back", grant.end().is_ok());
}

/// Xen masks a timer that has fired where its guest sees it.
fn timer_masked(tap: &mut Tap) {
    cpu::mask_interrupts();
    timer::arm(time::now().after(Duration::from_millis(1)));
    // A poll that its interrupt ends.
    let _ = hypercall::poll(&[], time::system_time() + 200_000_000);
    let masked = CNTV_CTL_EL0.is_set(CNTV_CTL_EL0::IMASK);
    tap.is("a virtual timer that has fired is masked in its control register", masked, true);
    timer::disarm();
    cpu::unmask_interrupts();
}
