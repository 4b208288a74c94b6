//! What a sweep's calls name: a page for structures with nothing behind it, ports of each kind, grants of each kind, pages that may be taken away.
//!
//! 1. Before each call everything is as the last one found it; what a call changed is changed back.
//! 2. No value is the place of RAM that anybody uses, or of the grant table.
#![expect(unsafe_code, reason = "hypercalls with arbitrary arguments are what is tested")]
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use guest_kernel::attempt::{self, Rights};
use guest_kernel::event::own_id;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::{hypercall, record};
use pv_abi::event::{AllocUnbound, BindInterdomain, BindIpi, BindVirq, EventOp, InitControl, Reset};
use pv_abi::grant::{GrantOp, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::memory::{AddToPhysmap, MEMOP_EXTENT_SHIFT, MapSpace, MemoryOp, RemoveFromPhysmap, Reservation};
use pv_abi::sched::{SchedOp, Shutdown, Watchdog};
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle, Hypercall, Port, layout};

use super::raw::{self, FREE, gfn};
use super::sweep::{Base, Field, Kind, Op, Place, State};

/// The page for structures and lists; nothing is mapped behind it.
const PAGE: u64 = 0x79_0000_0000;
/// Its end.
pub(crate) const END: u64 = PAGE + 4096;
/// The same page, for reading.
pub(crate) const READ_ONLY: u64 = 0x7a_0000_0000;
/// Where a structure usually is.
pub(crate) const GOOD: u64 = PAGE + 0x100;
/// An address that is not mapped.
pub(crate) const NOWHERE: u64 = raw::NOWHERE;
static STRUCTURES: Frame = Frame::zeroed();

/// Pages that may be taken away: as many as the largest extent has.
const PAGES: usize = 512;
/// Of them, those that lists name, every other one,
const NAMED: usize = 8;
/// and those that `populate_physmap` finds gone.
const GIVEN: u64 = 16;

const MEMORY: u64 = Hypercall::MemoryOp.number() as u64;

/// Lists: where each is.
pub(crate) const PAGES_LIST: u64 = PAGE + 0x800;
/// Free places.
pub(crate) const PLACES_LIST: u64 = PAGE + 0x900;
/// Indexes of grant-table pages, with nothing behind them.
pub(crate) const INDEX_LIST: u64 = END - 4 * 8;
/// For answers; it is full of other free places, from [`FURTHER`] below the last on.
pub(crate) const OUT_LIST: u64 = PAGE + 0xb00;
/// Ports, one of them pending.
pub(crate) const PORT_LIST: u64 = PAGE + 0xc00;
const LISTS: [u64; 5] = [PAGES_LIST, PLACES_LIST, INDEX_LIST, OUT_LIST, PORT_LIST];
/// A run-state area, which the hypervisor writes at times.
pub(crate) const AREA: u64 = PAGE + 0xe00;
/// The 32-bit word of [`MapGrantRef`] that is the upper half of `dev_bus_addr`.
const UPPER_HALF: usize = offset_of!(MapGrantRef, dev_bus_addr) / 4 + 1;
/// 32-bit words of a structure that are looked at, at most.
const WORDS: u64 = 24;

/// The first of the references that are granted, each in another way.
pub(crate) const FIRST: u32 = 400;
/// How each is: its flags (`GTF_*`), for whom (`OWN` for this domain), and the page (`PAGED` for a usual one).
const GRANTS: [(u32, u32, u64); 12] = [
    (1, OWN, PAGED),
    (1 | 4, OWN, PAGED),
    (1, 2, PAGED),
    (0, OWN, PAGED),
    (2, OWN, PAGED),
    (3, OWN, PAGED),
    (1, OWN, FREE),
    (0xffe1, OWN, PAGED),
    (1, DomId::SELF.0 as u32, PAGED),
    (1, OWN, 0x3001),
    (1, OWN, u32::MAX as u64),
    (1 | 4 | 8 | 16, OWN, PAGED),
];
const OWN: u32 = 1;
const PAGED: u64 = 0;
const FURTHER: u64 = 16;
/// Handles are below this.
const HANDLES: u32 = 1024;

/// The usual port of each kind: unbound, bound to the next, that one, an IPI's, a virtual interrupt's, offered to another, none.
pub(crate) const UNBOUND: u64 = 1;
/// One that is bound.
const BOUND: u64 = 3;
/// A grant-table page that is not placed yet.
const INDEX: u64 = 20;

/// Everything.
pub(crate) struct World {
    /// Guest frame of the first of the pages.
    pages: u64,
    /// The first two: a control block and an array of event words.
    queues: &'static [Frame],
    handle: u32,
    whole: u64,
}

/// A call with any registers.
pub(crate) fn call(number: u64, x: [u64; 5]) -> i64 {
    // SAFETY: what is named lies in pages that nobody else uses, or nowhere (invariant 2).
    unsafe { hypercall::raw(number, x) }
}

fn memory(op: MemoryOp, argument: &mut (impl zerocopy::IntoBytes + zerocopy::FromBytes)) -> raw::Answer {
    raw::with(Hypercall::MemoryOp, u64::from(op.number()), argument)
}

fn reservation() -> u64 {
    memory(MemoryOp::CurrentReservation, &mut { DomId::SELF }).unwrap_or(0)
}

/// Takes a page from this domain or gives it one.
fn change(op: MemoryOp, page: u64) {
    let mut list = [page];
    let mut asked = Reservation {
        extent_start: GuestHandle(raw::address(&mut list)),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Default::default()
    };
    let _ = memory(op, &mut asked);
}

fn remove(gpfn: u64) {
    let _ =
        memory(MemoryOp::RemoveFromPhysmap, &mut RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn });
}

fn word(at: u64) -> &'static core::sync::atomic::AtomicU32 {
    &STRUCTURES.words()[usize::try_from(at - PAGE).unwrap_or(0) / 4 % 1024]
}

/// Writes `width` bytes, as far as they are in the page.
fn put(at: u64, width: usize, value: u64) {
    for (byte, index) in value.to_le_bytes().iter().take(width).zip(at..) {
        if (PAGE..END).contains(&index) {
            let shift = index % 4 * 8;
            let word = word(index);
            let kept = word.load(Ordering::Relaxed) & !(0xff << shift);
            word.store(kept | u32::from(*byte) << shift, Ordering::Relaxed);
        }
    }
}

/// The first eight bytes from an address of the page on.
fn get(at: u64) -> u64 {
    let bytes = (0..8).map(|index| at.wrapping_add(index));
    bytes.rev().fold(0, |value, at| {
        let there = (PAGE..END).contains(&at);
        value << 8
            | if there { u64::from(word(at).load(Ordering::Relaxed) >> (at % 4 * 8) & 0xff) } else { 0 }
    })
}

/// The two lowest bytes: where a status is.
fn half(word: u64) -> i16 {
    let [low, high, ..] = word.to_le_bytes();
    i16::from_le_bytes([low, high])
}

/// Where in the page it is that another of its addresses, or one with a tag, names.
const fn in_page(address: u64) -> u64 {
    let untagged = address << 8 >> 8;
    if untagged >= READ_ONLY && untagged < READ_ONLY + 4096 { untagged - READ_ONLY + PAGE } else { untagged }
}

impl World {
    /// Everything there, if this is domain 1 and there are pages.
    pub(crate) fn new() -> Option<Self> {
        let at = core::ptr::from_ref(&STRUCTURES).expose_provenance() as u64;
        let mapped = attempt::alias(PAGE, at, 4096, Rights::ReadWrite)
            && attempt::alias(READ_ONLY, at, 4096, Rights::Read);
        // Leaked: these pages come and go.
        let pages: &'static [Frame] = Box::leak((0..PAGES).map(|_| Frame::zeroed()).collect());
        // So that the table is there.
        let granted = Grant::new(Frame::boxed(), DomId::SELF, Access::ReadOnly).is_ok();
        // The first reason is the one with which this guest ends, whatever comes.
        let latched = raw::with(
            Hypercall::SchedOp,
            u64::from(SchedOp::ShutdownCode.number()),
            &mut Shutdown { reason: 0 },
        );
        let whole = reservation();
        (mapped && granted && latched.is_ok() && own_id() == Ok(DomId(1))).then(|| Self {
            pages: pages.first().map_or(0, gfn),
            queues: &pages[..2],
            handle: 0,
            whole,
        })
    }

    /// Takes all back; whether nothing is missing.
    pub(crate) fn end(&mut self) -> bool {
        let _ = hypercall::event_reset(&mut Reset { dom: DomId::SELF });
        self.grants(|_, _, _| (0, 0));
        reservation() == self.whole
    }

    /// A value.
    pub(crate) const fn value(&self, of: Base) -> u64 {
        match of {
            Base::Is(value) => value,
            Base::Page => self.pages,
        }
    }

    fn grants(&self, entry: impl Fn(u32, u32, u64) -> (u32, u32)) {
        for ((flags, domain, frame), reference) in GRANTS.into_iter().zip(FIRST..) {
            let frame = if frame == PAGED { self.pages } else { frame };
            let (low, high) = entry(flags, domain, frame);
            let index = reference as usize * 2;
            raw::store(layout::GRANT_TABLE_BASE, index, low);
            raw::store(layout::GRANT_TABLE_BASE, index + 1, high);
        }
    }

    fn prepare(&mut self, state: State) {
        STRUCTURES.words().iter().take(0xe00 / 4).for_each(|word| word.store(0, Ordering::Relaxed));
        STRUCTURES.words().iter().skip(0xf00 / 4).for_each(|word| word.store(0, Ordering::Relaxed));
        for index in 0..NAMED as u64 {
            put(PAGES_LIST + index * 8, 8, self.pages + index * 2);
            put(PLACES_LIST + index * 8, 8, FREE - index);
        }
        for index in 0..0x100 / 8 {
            put(OUT_LIST + index * 8, 8, FREE - FURTHER - index);
        }
        for index in 0..4 {
            put(INDEX_LIST + index * 8, 8, INDEX + index);
        }
        for index in 0..4 {
            put(PORT_LIST + index * 4, 4, BOUND);
        }
        match state {
            State::Nothing | State::Watchdogs | State::Had => {}
            State::Ports => {
                let _ = hypercall::event_reset(&mut Reset { dom: DomId::SELF });
                ports();
            }
            State::Queues => {
                let _ = hypercall::event_reset(&mut Reset { dom: DomId::SELF });
                let mut control = InitControl { control_gfn: self.pages, ..Default::default() };
                let mut array = [self.pages + 1];
                let event = Hypercall::EventChannelOp;
                let _ = raw::with(event, u64::from(EventOp::InitControl.number()), &mut control);
                let _ = raw::with(event, u64::from(EventOp::ExpandArray.number()), &mut array);
                // Xen raises what was kept for an array at each further one, and its ports are then not to be had.
                let words = self.queues.iter().flat_map(Frame::words);
                words.for_each(|word| word.store(0, Ordering::Relaxed));
                ports();
            }
            State::Granted => self.granted(),
            State::Mapped => {
                self.granted();
                let mut map = MapGrantRef {
                    host_addr: FREE << 12,
                    flags: MapFlags::HOST_MAP.bits(),
                    gref: GrantRef(FIRST),
                    dom: DomId(1),
                    ..Default::default()
                };
                let _ =
                    raw::grants(u64::from(GrantOp::MapGrantRef.number()), core::slice::from_mut(&mut map));
                self.handle = map.handle.0;
            }
            State::Given => {
                (0..GIVEN).for_each(|index| change(MemoryOp::DecreaseReservation, self.pages + index));
            }
            State::Placed => {
                let (space, idx) = (MapSpace::GrantTable.number(), INDEX);
                let mut place =
                    AddToPhysmap { domid: DomId::SELF, space, idx, gpfn: FREE, ..Default::default() };
                let _ = memory(MemoryOp::AddToPhysmap, &mut place);
            }
        }
    }

    fn granted(&self) {
        self.grants(|flags, domain, frame| (flags | domain << 16, u32::try_from(frame).unwrap_or(u32::MAX)));
    }

    /// A call: its structure at `address`, some of its fields otherwise than usual. What it answered and wrote.
    pub(crate) fn make(&mut self, op: &Op, otherwise: &[(usize, u64)], address: u64) -> String {
        self.prepare(op.state);
        let mut values: Vec<u64> = op.fields.iter().map(|field| self.value(field.usual)).collect();
        for (index, value) in otherwise {
            values[*index] = *value;
        }
        let mut x = op.x;
        if let Some(register) = op.address {
            x[register] = address;
        }
        let at = in_page(address);
        for (field, value) in op.fields.iter().zip(values.iter_mut()) {
            if field.name == "handle" {
                *value ^= u64::from(self.handle);
            }
        }
        // What is varied comes last: a field may be there twice, with edges of another kind.
        for now in [false, true] {
            for (index, (field, value)) in op.fields.iter().zip(&values).enumerate() {
                if otherwise.iter().any(|(other, _)| *other == index) != now {
                    continue;
                }
                match field.place {
                    Place::At(offset, width) => put(at.wrapping_add(offset as u64), width, *value),
                    Place::X(register) => x[register] = *value,
                }
            }
        }
        let extents =
            op.fields.iter().position(|field| field.name == "extent_start").map(|index| values[index]);
        let frames: Vec<u64> = (0..NAMED as u64)
            .map(|index| get(in_page(extents.unwrap_or(0)).wrapping_add(index * 8)))
            .collect();
        let before: Vec<u32> = STRUCTURES.words().iter().map(|word| word.load(Ordering::Relaxed)).collect();
        // What is told is compared; what prepares it and puts it right is not.
        record::forget();
        let answer = call(op.number, x);
        record::compared(|_| true);
        let changed = |from: u64, words: u64| {
            let before = &before;
            (0..words).filter(move |index| {
                let place = from.wrapping_add(index * 4) & !3;
                (PAGE..END).contains(&place)
                    && word(place).load(Ordering::Relaxed)
                        != before[usize::try_from((place - PAGE) / 4).unwrap_or(0)]
            })
        };
        let words = (op.size as u64).div_ceil(4).min(WORDS);
        let mut mask = changed(at, words).fold(0_u64, |mask, index| mask | 1 << index);
        if op.number == u64::from(Hypercall::GrantTableOp.number())
            && op.x[0] == u64::from(GrantOp::MapGrantRef.number())
        {
            // Whether a machine address has an upper half is the machine's.
            mask &= !(1 << UPPER_HALF);
        }
        for (list, bit) in LISTS.into_iter().zip(24..) {
            if changed(list, 8).next().is_some() {
                mask |= 1 << bit;
            }
        }
        let status = op.status.map(|offset| half(get(at.wrapping_add(offset as u64))));
        self.settle(op, &values, (x[0], answer), &frames, at);
        // Only `memory_op` answers more than an int.
        let result = if op.number == MEMORY { answer } else { i64::from(raw::low_word(answer)) };
        if op.number == u64::from(Hypercall::GrantTableOp.number())
            && let (Some(status), 0) = (status, result)
        {
            record::forget();
            record::status(u32::try_from(op.x[0]).unwrap_or(0), status);
            record::compared(|_| true);
        }
        let mut text = match (status, result) {
            (Some(status), 0) => format!("s{status}"),
            (_, result) if op.counts && result > 0 => String::from("n"),
            (_, result) => format!("{result}"),
        };
        if mask != 0 && !op.counts {
            let _ = write!(text, "+{mask:x}");
        }
        text
    }

    /// Undoes what the call did: made with `x0`, answered so; `frames` are those that its list named.
    fn settle(&self, op: &Op, values: &[u64], (x0, answer): (u64, i64), frames: &[u64], at: u64) {
        let named = |name: &str| {
            op.fields.iter().zip(values).find(|(field, _)| field.name == name).map(|(_, value)| *value)
        };
        match op.state {
            State::Nothing | State::Ports | State::Queues => {}
            State::Granted | State::Placed => {
                let there = |name: &str| {
                    let field = op.fields.iter().find(|field| field.name == name)?;
                    let Place::At(offset, _) = field.place else { return None };
                    Some(get(at.wrapping_add(offset as u64)))
                };
                if let Some(host_addr) = there("host_addr") {
                    // Its handle is 20 bytes in; if that could not be written, it is not known.
                    let handle = u32::try_from(get(at.wrapping_add(20)) & 0xffff_ffff).unwrap_or(0);
                    let all = if answer == 0 { handle..handle.saturating_add(1) } else { 0..HANDLES };
                    let _ = all.into_iter().find(|handle| unmap(host_addr, *handle));
                }
                (0..NAMED as u64).flat_map(|index| [FREE - index, FREE - FURTHER - index]).for_each(remove);
                there("gpfn").into_iter().for_each(remove);
            }
            State::Mapped => {
                unmap(FREE << 12, self.handle);
                remove(FREE);
            }
            State::Had | State::Given => {
                let begun = usize::try_from(x0 >> MEMOP_EXTENT_SHIFT).unwrap_or(usize::MAX);
                let done = usize::try_from(raw::low_word(answer)).unwrap_or(0).min(NAMED);
                let pages = 1_u64 << named("extent_order").unwrap_or(0).min(9);
                let (back, all) = match op.state {
                    State::Given => (MemoryOp::DecreaseReservation, true),
                    _ => (MemoryOp::PopulatePhysmap, false),
                };
                for frame in frames.iter().take(done).skip(begun) {
                    (0..pages).for_each(|page| change(back, frame + page));
                }
                if all {
                    (0..GIVEN).for_each(|index| change(MemoryOp::PopulatePhysmap, self.pages + index));
                }
            }
            State::Watchdogs => {
                for id in 1..=2 {
                    let watchdog = u64::from(SchedOp::Watchdog.number());
                    let _ = raw::with(Hypercall::SchedOp, watchdog, &mut Watchdog { id, timeout: 0 });
                }
            }
        }
    }

    /// Values of a field alone.
    pub(crate) fn edges(&self, field: &Field) -> Vec<u64> {
        let most = match field.place {
            Place::At(_, width) => u64::MAX >> (64 - width * 8),
            Place::X(_) => u64::MAX,
        };
        let mut values: Vec<u64> = match field.kind {
            Kind::Domain => {
                [0, 1, 2, 777, 0x7fef, 0x7ff0, 0x7ff1, 0x7ff2, 0x7ff3, 0x7ff4, 0x7ff5, 0x7fff, 0x8000, 0xffff]
                    .into()
            }
            Kind::Port => (0..8)
                .chain([
                    63,
                    64,
                    127,
                    128,
                    1023,
                    1024,
                    4095,
                    4096,
                    0x1_ffff,
                    0x2_0000,
                    0x7fff_ffff,
                    0x8000_0000,
                ])
                .chain([most])
                .collect(),
            Kind::Vcpu => [0, 1, 2, 3, 4, 5, 7, 8, 127, 128, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff].into(),
            Kind::Place => [
                FREE,
                FREE - 1,
                0,
                1,
                0x3_ffff,
                (1 << 28) - 1,
                1 << 36,
                (1 << 40) - 1,
                1 << 40,
                (1 << 52) - 1,
                1 << 52,
                1 << 63,
                u64::MAX,
            ]
            .into(),
            Kind::List => [
                PLACES_LIST,
                OUT_LIST,
                OUT_LIST + 1,
                OUT_LIST + 4,
                END - 8,
                END - 4,
                END,
                READ_ONLY + 0xb00,
                0,
                NOWHERE,
                1 << 47,
                1 << 48,
                1 << 63,
                u64::MAX - 7,
                u64::MAX,
            ]
            .into(),
            Kind::Reference => (u64::from(FIRST)..u64::from(FIRST) + GRANTS.len() as u64)
                .chain([0, 7, 511, 512, 32767, 32768, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff])
                .collect(),
            Kind::Handle => [0, 1, 0x64, 1 << 16, 1 << 31, 0x7fff_ffff, 0xffff_ffff].into(),
            Kind::Any => {
                let mut values: Vec<u64> =
                    [0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 0xff, 0x100, 0x7fff, 0x8000].into();
                values.extend([0x1_0000, 0x7fff_ffff, 0x8000_0000, 1 << 32, 1 << 52, 1 << 63]);
                values.extend([most >> 1, (most >> 1) + 1, most - 1, most]);
                values
            }
            Kind::Progress => {
                let progress = [0, 1 << 6, 2 << 6, 0x3ff_ffff << 6, 1 << 32, 1 << 33, 1 << 63, u64::MAX << 6];
                progress.into_iter().map(|progress| self.value(field.usual) | progress).collect()
            }
            Kind::Out => Vec::new(),
            Kind::Of(values, _) => values.into(),
        };
        values.retain(|value| *value <= most);
        values
    }

    /// Those that are tried together with others.
    pub(crate) fn bad(&self, field: &Field) -> Vec<u64> {
        match field.kind {
            Kind::Domain => [2, 777, 0x7ff2].into(),
            Kind::Port => [0, 2, 7, 0x2_0000].into(),
            Kind::Vcpu => [1, 4, 0xffff_ffff].into(),
            Kind::Place => [FREE, 0x3_ffff, 1 << 36, u64::MAX].into(),
            Kind::List => [PLACES_LIST, READ_ONLY + 0xb00, NOWHERE].into(),
            Kind::Reference => {
                [u64::from(FIRST), u64::from(FIRST) + 2, u64::from(FIRST) + 3, 0xffff_ffff].into()
            }
            Kind::Handle => [1, 0xffff_ffff].into(),
            Kind::Any => [1, 0x8000].into(),
            Kind::Progress => {
                [1 << 6, 1 << 63].into_iter().map(|progress| self.value(field.usual) | progress).collect()
            }
            Kind::Out => Vec::new(),
            Kind::Of(_, bad) => bad.into(),
        }
    }
}

/// Unmaps a grant; whether it was mapped. With address 0 nothing would be: that page has others too.
fn unmap(host_addr: u64, handle: u32) -> bool {
    let mut element =
        UnmapGrantRef { host_addr: host_addr.max(1), handle: GrantHandle(handle), ..Default::default() };
    let call = u64::from(GrantOp::UnmapGrantRef.number());
    raw::grants(call, core::slice::from_mut(&mut element)) == Ok(0) && element.status == 0
}

/// Port 1 is unbound, 2 and 3 are a channel of this domain's to itself, 4 is an IPI's, 5 a virtual interrupt's, 6 offered to another domain.
fn ports() {
    let port = Port(0);
    let unbound = |remote_dom| {
        let _ = hypercall::event_alloc_unbound(&mut AllocUnbound { dom: DomId::SELF, remote_dom, port });
    };
    unbound(DomId::SELF);
    unbound(DomId::SELF);
    let mut bind = BindInterdomain { remote_dom: DomId::SELF, remote_port: Port(2), ..Default::default() };
    let _ = hypercall::event_bind_interdomain(&mut bind);
    let _ = hypercall::event_bind_ipi(&mut BindIpi { vcpu: 0, port });
    let _ = hypercall::event_bind_virq(&mut BindVirq { virq: 0, vcpu: 0, port });
    unbound(DomId(2));
}
