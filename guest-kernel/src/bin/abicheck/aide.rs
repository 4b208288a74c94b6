//! What a partner can be asked for besides `partner.rs`: work on two vCPUs at once, its own shared pages, ends of every kind.
extern crate alloc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_kernel::event::shared_page;
use guest_kernel::{Guest, cpu, hypercall, interrupt, smp};
use pv_abi::event::BindInterdomain;
use pv_abi::grant::{GrantOp, GrantStatus, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::layout::GRANT_TABLE_BASE;
use pv_abi::sched::{SchedOp, Shutdown, Watchdog};
use pv_abi::vcpu::{RegisterVcpuInfo, VcpuOp};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, Hypercall, Port};

use super::raw::{self, FREE};

/// What it can be asked for; numbers are apart from those of `partner.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Aid {
    /// Both its vCPUs bind to a domain's port at once: (how many could, a port, the errno of who could not).
    Race = 100,
    /// Both its vCPUs map and unmap a domain's reference so many times: (what went wrong, how often).
    MapTwice = 101,
    /// Both its vCPUs send so many events each: (refusals).
    SendTwice = 102,
    /// The `vcpu_info` of its vCPU 0 goes into its shared-info page, that of vCPU 1 into a frame of its grant table: (errno, errno, errno of
    /// a second time).
    Infos = 103,
    /// Shuts down for this reason, after it has answered.
    End = 104,
    /// Sets a watchdog of so many seconds: (errno, its number).
    Dog = 105,
    /// Maps a domain's references from the second argument on, 128 times each, so many times in all, then unmaps them: (how many were good, the
    /// negated status of the first that was not, how many were unmapped).
    MapMany = 106,
    /// Grants its shared-info page (1) or the first frame of its grant table (0) to a domain, or takes that back if the third argument is 1: (reference).
    GrantOwn = 107,
}

/// Times that a reference is mapped at once: what Xen counts of each kind is a byte.
const EACH: u32 = 128;

fn errno<T>(answer: Result<T, Errno>) -> u32 {
    answer.err().map_or(0, |errno| errno.value().unsigned_abs())
}

fn id(word: u32) -> DomId {
    DomId(u16::try_from(word).unwrap_or(u16::MAX))
}

/// Does it, if the command is one of these.
pub(crate) fn perform(guest: &Guest, command: u32, args: [u32; 4]) -> Option<[u32; 4]> {
    let [first, second, third, _] = args;
    let is = |aid: Aid| command == aid as u32;
    Some(if is(Aid::Race) {
        let binds = both(guest, move || {
            let mut bind =
                BindInterdomain { remote_dom: id(first), remote_port: Port(second), ..Default::default() };
            let error = errno(hypercall::event_bind_interdomain(&mut bind));
            u64::from(error) << 32 | u64::from(bind.local_port.0)
        });
        let won: Vec<u64> = binds.into_iter().filter(|bind| bind >> 32 == 0).collect();
        let lost = binds.iter().map(|bind| low(bind >> 32)).find(|error| *error != 0);
        [low(won.len() as u64), won.first().map_or(0, |bind| low(*bind)), lost.unwrap_or(0), 0]
    } else if is(Aid::MapTwice) {
        let wrong = both(guest, move || {
            let page = FREE - 20 - u64::from(smp::this().number());
            u64::from(
                (0..third).map(|_| u32::from(!map_and_unmap(id(first), GrantRef(second), page))).sum::<u32>(),
            )
        });
        [low(wrong[0] + wrong[1]), 0, 0, 0]
    } else if is(Aid::SendTwice) {
        let wrong = both(guest, move || {
            u64::from(
                (0..second).map(|_| u32::from(hypercall::event_send(Port(first)).is_err())).sum::<u32>(),
            )
        });
        [low(wrong[0] + wrong[1]), 0, 0, 0]
    } else if is(Aid::Infos) {
        infos()
    } else if is(Aid::End) {
        [0; 4]
    } else if is(Aid::Dog) {
        let mut dog = Watchdog { id: 0, timeout: first };
        let answer = raw::with(Hypercall::SchedOp, u64::from(SchedOp::Watchdog.number()), &mut dog);
        [errno(answer), answer.map_or(0, low), 0, 0]
    } else if is(Aid::MapMany) {
        map_many(id(first), second, third)
    } else if is(Aid::GrantOwn) {
        [grant_own(first, second, third == 1), 0, 0, 0]
    } else {
        return None;
    })
}

/// What comes after the answer.
pub(crate) fn after(command: u32, argument: u32) {
    if command == Aid::End as u32 {
        cpu::mask_interrupts();
        let mut shutdown = Shutdown { reason: argument };
        let _ = raw::with(Hypercall::SchedOp, u64::from(SchedOp::Shutdown.number()), &mut shutdown);
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

/// Does the same on both vCPUs, begun together.
fn both(guest: &Guest, work: impl Fn() -> u64 + Send + Sync + Clone + 'static) -> [u64; 2] {
    let Some(second) = smp::cpu(1) else { return [u64::MAX >> 1; 2] };
    if interrupt::start(guest.tree.gic).is_err() {
        return [u64::MAX >> 1; 2];
    }
    let ready = Arc::new(AtomicU32::new(0));
    let result = Arc::new(AtomicU32::new(0));
    let high = Arc::new(AtomicU32::new(0));
    let (theirs, low_there, high_there, work_there) =
        (ready.clone(), result.clone(), high.clone(), work.clone());
    let started = smp::start(second, move || {
        meet(&theirs);
        let came = work_there();
        low_there.store(low(came), Ordering::SeqCst);
        high_there.store(low(came >> 32), Ordering::SeqCst);
    });
    let Ok(started) = started else { return [u64::MAX >> 1; 2] };
    meet(&ready);
    let here = work();
    started.join();
    [here, u64::from(high.load(Ordering::SeqCst)) << 32 | u64::from(result.load(Ordering::SeqCst))]
}

/// Waits until both are here.
fn meet(ready: &AtomicU32) {
    ready.fetch_add(1, Ordering::SeqCst);
    while ready.load(Ordering::SeqCst) < 2 {
        let _ = hypercall::sched_yield();
    }
}

/// Maps a reference at a page and unmaps it.
pub(crate) fn map_and_unmap(of: DomId, gref: GrantRef, page: u64) -> bool {
    match map_at(of, gref, page) {
        (GrantStatus::Okay, handle) => unmap_at(page, handle) == GrantStatus::Okay,
        _ => false,
    }
}

/// Maps a reference at a page.
pub(crate) fn map_at(of: DomId, gref: GrantRef, page: u64) -> (GrantStatus, GrantHandle) {
    let flags = MapFlags::HOST_MAP.bits();
    let mut map = MapGrantRef { host_addr: page << 12, flags, gref, dom: of, ..Default::default() };
    let status = raw::grant(GrantOp::MapGrantRef, &mut map, |map| map.status);
    (status.unwrap_or(GrantStatus::Eagain), map.handle)
}

/// Unmaps a handle at a page.
pub(crate) fn unmap_at(page: u64, handle: GrantHandle) -> GrantStatus {
    let mut unmap = UnmapGrantRef { host_addr: page << 12, handle, ..Default::default() };
    raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |unmap| unmap.status).unwrap_or(GrantStatus::Eagain)
}

fn map_many(of: DomId, first: u32, count: u32) -> [u32; 4] {
    let mut handles = Vec::new();
    let mut bad = 0;
    for index in 0..count {
        let page = FREE - 100 - u64::from(index);
        match map_at(of, GrantRef(first + index / EACH), page) {
            (GrantStatus::Okay, handle) => handles.push((page, handle)),
            (status, _) => {
                bad = u32::from(status.value().unsigned_abs());
                break;
            }
        }
    }
    let good = low(handles.len() as u64);
    let unmapped = handles.into_iter().filter(|(page, handle)| unmap_at(*page, *handle) == GrantStatus::Okay);
    [good, bad, low(unmapped.count() as u64), 0]
}

/// Where the shared-info page is in this domain's memory.
pub(crate) fn shared_gfn() -> Option<u64> {
    let page = shared_page().ok()?;
    Some((core::ptr::from_ref(page).expose_provenance() / pv_abi::PAGE_SIZE) as u64)
}

/// Where the first frame of its grant table is.
pub(crate) const TABLE_GFN: u64 = GRANT_TABLE_BASE >> 12;

fn infos() -> [u32; 4] {
    let register = |vcpu, gfn, offset| {
        let mut place = RegisterVcpuInfo { gfn, offset, rsvd: 0 };
        errno(raw::vcpu(u64::from(VcpuOp::RegisterVcpuInfo.number()), vcpu, &mut place))
    };
    let Some(shared) = shared_gfn() else { return [u32::MAX; 4] };
    // Behind what these pages are used for.
    let first = register(0, shared, 3072);
    [first, register(1, TABLE_GFN, 4096 - 64), register(0, shared, 3072), 0]
}

/// Writes an entry for one of its own shared pages, behind all that [`guest_kernel::grant`] gives out.
fn grant_own(to: u32, shared: u32, back: bool) -> u32 {
    const GREF: u32 = 400;
    let gref = GREF + shared;
    let Some(gfn) = (if shared == 1 { shared_gfn() } else { Some(TABLE_GFN) }) else { return 0 };
    if back {
        raw::store(GRANT_TABLE_BASE, gref as usize * 2, 0);
    } else {
        permit(gref, to, low(gfn));
    }
    gref
}

/// Writes an entry of this domain's own table: a frame for a domain, or whose frame there was for another domain.
pub(crate) fn permit(gref: u32, to: u32, gfn: u32) {
    let at = gref as usize * 2;
    raw::store(GRANT_TABLE_BASE, at + 1, gfn);
    raw::store(GRANT_TABLE_BASE, at, to << 16 | 1);
}
