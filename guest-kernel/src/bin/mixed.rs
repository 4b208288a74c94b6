//! A bit of everything that the hypervisor keeps accounts of, so that a domain can be killed in the middle of it, and the one that it has to do with.
//!
//! `role=victim` makes `rounds=` rounds of events, grants in both directions, populating and decreasing, page tables (calls with `paging = "pv"`),
//! registered areas, a watchdog and a line of text. Before them it grants the peer a page and wakes it; it does not wait, and wakes nobody in its rounds. When it
//! begins and ends them it tells so, in ticks of the counter, in a page that the control domain grants it. `role=peer` offers a port and two
//! pages, maps what the victim grants when an event comes, and lets it go when none comes for a while: then it waits, holding nothing.
//!
//! From the configuration, in both: `peer=`, `port=`.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a raw call, and address spaces")]
extern crate alloc;
use alloc::format;
use alloc::string::String;
use core::fmt::Debug;
use core::sync::atomic::Ordering;
use core::time::Duration;

use guest_kernel::event::{Channel, Wake};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{self, Access, Grant, MappedGrant};
use guest_kernel::space::{self, Changes, Entry, PAGE, Rights, Space};
use guest_kernel::{Guest, heap, hypercall, paging, println, smp, time};
use pv_abi::sched::SchedOp;
use pv_abi::{DomId, Errno, GrantRef, GuestHandle, Hypercall, Port};

guest_kernel::main!(main);

/// The first reference that a guest grants.
const FIRST: u32 = 8;
/// The peer's port for the victim, the first one after that of the configuration.
const OFFERED: Port = Port(2);
/// Pages that the peer grants.
const PAGES: u32 = 2;
/// References of the victim's that the peer tries.
const TRIES: u32 = 4;
/// How long the peer keeps a page that nobody asks back.
const PATIENCE: Duration = Duration::from_millis(4);
/// The victim begins so long after it was given its CPU: that is not taken away sooner (`sched`, a grain).
const GRAIN: Duration = Duration::from_micros(300);
/// Where the victim's address space maps something.
const AT: u64 = 1 << 39;
/// Entries in a batch.
const BATCH: u64 = 24;
/// A page that is given back and taken again.
static SPARE: Frame = Frame::zeroed();
/// Seconds.
const WATCHDOG: u32 = 3600;

fn main(guest: &Guest) -> Result<(), String> {
    let args = guest.args();
    let number = |key: &str| args.number(key).and_then(|value| u32::try_from(value).ok());
    let peer = number("peer").and_then(|id| u16::try_from(id).ok()).map(DomId).ok_or("peer= is missing")?;
    let channel = number("port").map(Port).ok_or("port= is missing")?;
    let channel = Channel::fixed(channel).map_err(why("the channel"))?;
    match args.text("role") {
        Some("peer") => serve(peer, &channel),
        _ => live(peer, &channel, number("rounds").unwrap_or(1)),
    }
}

fn why<E: Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}

fn serve(victim: DomId, channel: &Channel) -> Result<(), String> {
    // What it waits for is system time: learned now.
    let _ = time::system_time();
    let offered = Channel::unbound(victim).map_err(why("the port"))?;
    if offered.port() != OFFERED {
        return Err(format!("port {}", offered.port().0));
    }
    let mut granted = alloc::vec::Vec::new();
    for _ in 0..PAGES {
        granted.push(Grant::new(Frame::boxed(), victim, Access::ReadWrite).map_err(|_| "no page")?);
    }
    let mut held = None;
    loop {
        let woken = match &held {
            None => channel.wait().map(|()| Wake::Event),
            Some(_) => channel.wait_for(PATIENCE),
        };
        held = match (woken.map_err(why("waiting"))?, held) {
            (Wake::Event, None) => (FIRST..FIRST + TRIES)
                .find_map(|reference| MappedGrant::map(victim, GrantRef(reference), Access::ReadWrite).ok()),
            (Wake::Event | Wake::TimedOut, Some(mapped)) => {
                MappedGrant::unmap(mapped).map_err(why("letting go"))?;
                None
            }
            (Wake::TimedOut, None) => None,
        };
    }
}

/// Tells the control domain the time, in words `at` and the next.
fn tell(at: usize) -> Result<(), String> {
    let page = MappedGrant::map(DomId(0), GrantRef(FIRST), Access::ReadWrite).map_err(why("the clock"))?;
    let ticks = time::now().ticks();
    let words = page.frame().into_iter().flat_map(Frame::words);
    for (word, half) in words.skip(at).zip([ticks & 0xffff_ffff, ticks >> 32]) {
        word.store(u32::try_from(half).unwrap_or(0), Ordering::Relaxed);
    }
    page.unmap().map_err(why("the clock"))
}

fn live(peer: DomId, channel: &Channel, rounds: u32) -> Result<(), String> {
    // Registers the area of its run states.
    let _ = time::ran();
    spin();
    // The peer maps it, and has it when this domain is gone.
    let _granted = Grant::new(Frame::boxed(), peer, Access::ReadWrite).map_err(|_| "no page")?;
    channel.notify().map_err(why("an event"))?;
    spin();
    tell(0)?;
    for round in 0..rounds {
        self::round(peer, round)?;
    }
    tell(2)
}

fn spin() {
    let began = time::now();
    while began.elapsed() < GRAIN {}
}

fn round(peer: DomId, round: u32) -> Result<(), String> {
    watchdog(WATCHDOG, round)?;
    let granted = Grant::new(Frame::boxed(), peer, Access::ReadOnly).map_err(|_| "no page")?;
    let bound = Channel::bind(peer, OFFERED).map_err(why("binding"))?;
    let own = Channel::ipi(smp::this()).map_err(why("a port"))?;
    own.notify().map_err(why("an event"))?;

    let kept = MappedGrant::map(peer, GrantRef(FIRST), Access::ReadWrite).map_err(why("mapping"))?;
    if let Some(word) = kept.frame().and_then(|frame| frame.words().first()) {
        word.fetch_add(1, Ordering::Relaxed);
    }
    let copied = Frame::boxed();
    grant::copy(peer, GrantRef(FIRST + 1), &copied, 4096).map_err(why("copying"))?;
    MappedGrant::map(peer, GrantRef(FIRST + 1), Access::ReadOnly)
        .and_then(MappedGrant::unmap)
        .map_err(why("mapping"))?;

    heap::give_back(&SPARE).map_err(why("decreasing"))?;
    heap::take_again(&SPARE).map_err(why("populating"))?;

    tables().map_err(why("page tables"))?;
    println!("mixed: round {round}");
    // The peer does not wait for this one.
    bound.notify().map_err(why("an event"))?;
    kept.unmap().map_err(why("unmapping"))?;
    granted.end().map_err(|_| "a page is in use")?;
    watchdog(0, round)
}

/// Sets the first watchdog, the others' of the round before being gone, or clears it.
fn watchdog(seconds: u32, round: u32) -> Result<(), String> {
    let id = u32::from(seconds == 0);
    let asked = pv_abi::sched::Watchdog { id, timeout: seconds };
    let at = GuestHandle((&raw const asked).expose_provenance() as u64);
    let args = [u64::from(SchedOp::Watchdog.number()), at.0, 0, 0, 0];
    // SAFETY: the call reads its argument only.
    let told = Errno::check(unsafe { hypercall::raw(u64::from(Hypercall::SchedOp.number()), args) });
    told.map(drop).map_err(|errno| format!("watchdog of round {round}: {errno:?}"))
}

/// An address space with a batch of pages that come and go.
fn tables() -> Result<(), Errno> {
    let mut space = Space::new(paging::kernel_link(), 2)?;
    space.make_tables(AT)?;
    let page = space::take_page()?;
    for entry in [Entry::page(page, Rights::UserData), Entry::page(page, Rights::UserConstant), Entry::EMPTY]
    {
        let mut changes = Changes::with_room(usize::try_from(BATCH).unwrap_or(0));
        for number in 0..BATCH {
            space.change(&mut changes, AT + number * PAGE, entry)?;
        }
        // SAFETY: a page of its own, mapped where nothing is, in a space that nobody uses.
        unsafe { changes.make() }?;
    }
    space.enter()?;
    paging::enter_kernel()?;
    // SAFETY: left.
    unsafe { space.free() }?;
    // SAFETY: nothing maps the page.
    unsafe { space::give_page(page) };
    Ok(())
}
