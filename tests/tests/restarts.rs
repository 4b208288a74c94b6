//! Every long call, interrupted at every unit of its work: the end is the same as without an interruption.
//!
//! A scene is a world, and a call in it. It is made with every budget from one unit a run to all of them in one, and once without any; what the
//! caller gets, what its memory holds, what both domains have, and what was printed must not depend on it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use hypervisor::evtchn::PortWord;
use hypervisor::fake::{RAM, World};
use hypervisor::frame::Role;
use pavo_tests::{ARG, Guest, guest, number};
use pv_abi::call::{Cost, TABLE};
use pv_abi::control::PRIVILEGED;
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVirq, EventOp, ExpandArray, InitControl, PortArg, Reset,
};
use pv_abi::grant::{
    CacheFlush, CopyFlags, CopyPtr, EntryFlags, GrantCopy, GrantOp, MapGrantRef, SetupTable, SwapGrantRef,
    UnmapGrantRef,
};
use pv_abi::memory::{AddToPhysmap, AddToPhysmapBatch, Reservation};
use pv_abi::multicall::MulticallEntry;
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle, Port};
use zerocopy::{Immutable, IntoBytes};

/// A list that an argument names.
const LIST: u64 = ARG + 0x2000;
/// More of them.
const MORE: u64 = ARG + 0x3000;
/// Pages of RAM that nothing else uses, by address and by number.
const PAGES: u64 = RAM + 0x8_0000;
const GFN: u64 = PAGES >> 12;
/// Where grants are mapped, and new pages go: no RAM there.
const AT: u64 = 0x5000_0000;
/// The PV console's page.
const CONSOLE: u64 = 0x3900_0000;
/// Guest frames that are looked at: argument, lists, pages, and what is mapped.
const WATCHED: [(u64, u64); 3] = [(ARG >> 12, 8), (GFN, 64), (AT >> 12, 64)];

type Args = [u64; 5];

/// A call, and how many units of work it is.
struct Scene {
    /// As in `pv-abi`'s table: there may be several of a sub-call.
    name: &'static str,
    units: u32,
    prepare: fn(&World) -> (u64, Args),
}

/// Everything that could depend on how often a call was interrupted.
#[derive(PartialEq, Debug)]
struct End {
    result: i64,
    memory: Vec<Option<(hypervisor::stage2::Kind, [u8; 4096])>>,
    ports: Vec<PortWord>,
    counters: Vec<u64>,
    entries: Vec<u16>,
    console: Vec<u8>,
}

fn end_of(world: &World, result: i64) -> End {
    let one = guest(world, 1);
    let watched = WATCHED.iter().flat_map(|(first, count)| *first..first + count);
    let memory = watched
        .map(|gfn| one.mapping(gfn).map(|there| (there.kind, world.machine.hw.frame_bytes(there.mfn))))
        .collect();
    let ports = [1, 2].iter().flat_map(|id| world.domain(*id).ports.iter().take(70));
    let frames = &world.machine.frames;
    let counters = [1, 2].into_iter().flat_map(|id| {
        let state = world.domain(id).state.lock();
        let total = |role| frames.table.total(DomId(id), role);
        [state.memory.frames, u64::from(state.grants.frames()), total(Role::Data), total(Role::Shared)]
    });
    End {
        result,
        memory,
        ports: ports.map(|word| PortWord::unpack(word.load(std::sync::atomic::Ordering::Relaxed))).collect(),
        counters: counters.chain([frames.free_frames() + frames.limbo_frames()]).collect(),
        entries: [1, 2]
            .iter()
            .flat_map(|id| (8..40).map(|gref| guest(world, *id).entry_flags(gref).bits()))
            .collect(),
        console: world.machine.hw.take_console(),
    }
}

/// Makes the call with a budget; how it ended, and how often it was interrupted.
fn play(scene: &Scene, budget: u32) -> (End, u32) {
    play_with(scene, Some(budget), false)
}

/// Makes the call with a budget, or its own; interrupted wherever it looks at the time, if that is asked for.
fn play_with(scene: &Scene, budget: Option<u32>, impatient: bool) -> (End, u32) {
    let world = World::with_console(2);
    let (number, args) = (scene.prepare)(&world);
    world.machine.hw.take_console();
    world.machine.hw.set_budget(budget);
    world.machine.hw.set_impatient(impatient);
    let (result, interruptions) = guest(&world, 1).by_runs(number, args, |_| {
        // The machine is in order in between, whatever others do then.
        world.check();
        world.take_reschedule();
    });
    world.machine.hw.set_budget(None);
    world.machine.hw.set_impatient(false);
    world.check();
    if scene.name == "multicall.multicall" {
        forget_progress(guest(&world, 1));
    }
    (end_of(&world, result), interruptions)
}

/// A call of a multicall that was interrupted leaves its progress in its entry's arguments, as in Xen: they are not the caller's any more.
fn forget_progress(caller: Guest<'_>) {
    for entry in 0..9 {
        let at = ARG + entry * size_of::<MulticallEntry>() as u64;
        caller.write(at + core::mem::offset_of!(MulticallEntry, args) as u64, &[0; 48]);
    }
}

fn list<T: IntoBytes + Immutable>(guest: Guest<'_>, at: u64, items: impl IntoIterator<Item = T>) {
    for (index, item) in items.into_iter().enumerate() {
        guest.write(at + (index * size_of::<T>()) as u64, item.as_bytes());
    }
}

/// Domain 2 grants pages to domain 1, all but one of them.
fn granted(world: &World) {
    for gref in 8..40 {
        let to = if gref == 13 { 9 } else { 1 };
        let flags = if gref % 3 == 0 { EntryFlags::READONLY } else { EntryFlags::empty() };
        guest(world, 2).grants(gref, to, GFN + u64::from(gref), flags);
        guest(world, 2).write((GFN + u64::from(gref)) << 12, &gref.to_le_bytes());
    }
}

fn map_op(gref: u32) -> MapGrantRef {
    let host_addr = AT + u64::from(gref) * 0x1000;
    MapGrantRef { host_addr, flags: 2, gref: GrantRef(gref), dom: DomId(2), ..MapGrantRef::default() }
}

fn grants(op: GrantOp, count: u64) -> (u64, Args) {
    (number::GRANT_TABLE_OP, [op.number().into(), ARG, count, 0, 0])
}

/// Pages of the batch that are not granted, read-only and asked for writing, or not there.
fn map(world: &World) -> (u64, Args) {
    granted(world);
    list(guest(world, 1), ARG, (8..28).map(map_op));
    grants(GrantOp::MapGrantRef, 20)
}

/// Some handles twice, and one that is nobody's.
fn unmap(world: &World) -> (u64, Args) {
    let (number, args) = map(world);
    let one = guest(world, 1);
    assert_eq!(one.call(number, args), 0);
    let handles: Vec<GrantHandle> =
        (0..20).map(|index| one.read::<MapGrantRef>(ARG + index * 32).handle).collect();
    list(
        one,
        ARG,
        (0..20_usize).map(|index| {
            let handle = handles[if index % 7 == 6 { index - 1 } else { index }];
            let host_addr = AT + (index as u64 + 8) * 0x1000;
            UnmapGrantRef { host_addr, handle, ..UnmapGrantRef::default() }
        }),
    );
    grants(GrantOp::UnmapGrantRef, 20)
}

fn copy(world: &World) -> (u64, Args) {
    granted(world);
    let item = |index: u64| {
        let source = CopyPtr { ref_or_gfn: 8 + index, domid: DomId(2), offset: 0, pad: 0 };
        let dest = CopyPtr { ref_or_gfn: GFN + index, domid: DomId::SELF, offset: 16, pad: 0 };
        GrantCopy { source, dest, len: 64, flags: CopyFlags::SOURCE_GREF.bits(), ..GrantCopy::default() }
    };
    list(guest(world, 1), ARG, (0..20).map(item));
    grants(GrantOp::Copy, 20)
}

fn swap(world: &World) -> (u64, Args) {
    for gref in 8..40 {
        guest(world, 1).grants(
            gref,
            2,
            GFN + u64::from(gref),
            EntryFlags::from_bits_retain((gref as u16) & 4),
        );
    }
    let item = |n: u32| SwapGrantRef {
        ref_a: GrantRef(8 + n),
        ref_b: GrantRef(9 + n * 40),
        ..SwapGrantRef::default()
    };
    list(guest(world, 1), ARG, (0..20).map(item));
    grants(GrantOp::SwapGrantRef, 20)
}

fn replace(world: &World) -> (u64, Args) {
    // Two addresses, a handle, a status.
    list(guest(world, 1), ARG, (0..20_u64).map(|n| [0, 0, n]));
    grants(GrantOp::UnmapAndReplace, 20)
}

fn flush(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    let at = |n: u64| one.place(PAGES + n * 4096).pa().get();
    list(one, ARG, (0..20).map(|n| CacheFlush { addr_or_ref: at(n), offset: 0, length: 64, op: 1 }));
    grants(GrantOp::CacheFlush, 20)
}

/// Frames of another's, the last of which is granted by a reference behind 512 others; and one that is not granted.
fn flush_mapped(world: &World) -> (u64, Args) {
    let (one, two) = (guest(world, 1), guest(world, 2));
    let (first, last) = (PAGES, PAGES + 0x1000);
    let table =
        SetupTable { dom: DomId::SELF, nr_frames: 2, frame_list: GuestHandle(LIST), ..SetupTable::default() };
    assert_eq!(two.quick_grant(GrantOp::SetupTable, table).1.status, 0);
    for (gref, page) in [(8, first), (1000, last)] {
        two.grants(gref, 1, page >> 12, EntryFlags::empty());
        let map = MapGrantRef {
            host_addr: AT + u64::from(gref) * 4096,
            flags: 2,
            gref: GrantRef(gref),
            dom: DomId(2),
            ..MapGrantRef::default()
        };
        assert_eq!(one.quick_grant(GrantOp::MapGrantRef, map).1.status, 0);
    }
    let at = |page: u64| two.place(page).pa().get();
    let item = |page: u64| CacheFlush { addr_or_ref: at(page), offset: 0, length: 64, op: 3 };
    list(one, ARG, [last, first, last, last + 0x1000].map(item));
    grants(GrantOp::CacheFlush, 4)
}

fn grow(world: &World) -> (u64, Args) {
    let frame_list = GuestHandle(LIST);
    list(
        guest(world, 1),
        ARG,
        [SetupTable { dom: DomId::SELF, nr_frames: 4, frame_list, ..SetupTable::default() }],
    );
    grants(GrantOp::SetupTable, 1)
}

fn reservation(world: &World, op: u64, first: u64, extents: u64, order: u32) -> (u64, Args) {
    let one = guest(world, 1);
    list(one, LIST, (0..extents).map(|n| first + (n << order)));
    let asked = Reservation {
        extent_start: GuestHandle(LIST),
        nr_extents: extents,
        extent_order: order,
        mem_flags: 0,
        domid: DomId::SELF,
        pad: [0; 3],
    };
    one.write(ARG, asked.as_bytes());
    (number::MEMORY_OP, [op, ARG, 0, 0, 0])
}

fn more_allowed(world: &World) {
    world.domain(1).state.lock().memory.max_frames += 18;
}

fn decrease(world: &World) -> (u64, Args) {
    reservation(world, 1, GFN, 20, 0)
}

/// Extents of four pages, the last with a page that is not there.
fn decrease_order(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    one.write(LIST, (GFN + 18).as_bytes());
    let call = reservation(world, 1, GFN + 18, 1, 0);
    assert_eq!(one.call(call.0, call.1), 1);
    reservation(world, 1, GFN, 5, 2)
}

/// Not all of them may it have: the result says how far it came.
fn populate(world: &World) -> (u64, Args) {
    more_allowed(world);
    reservation(world, 6, AT >> 12, 5, 2)
}

fn increase(world: &World) -> (u64, Args) {
    more_allowed(world);
    reservation(world, 0, 0, 20, 0)
}

/// Extents of four pages, of which it may have four and a half.
fn increase_order(world: &World) -> (u64, Args) {
    more_allowed(world);
    reservation(world, 0, 0, 5, 2)
}

/// One frame of the grant table, which grows up to it.
fn place_one(world: &World) -> (u64, Args) {
    let one = AddToPhysmap { domid: DomId::SELF, size: 0, space: 1, idx: 3, gpfn: AT >> 12 };
    guest(world, 1).write(ARG, one.as_bytes());
    (number::MEMORY_OP, [7, ARG, 0, 0, 0])
}

/// Frames of the grant table, which grows for it, some twice, and some that there cannot be.
fn place(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    list(one, LIST, (0..20_u64).map(|n| n % 6));
    list(one, MORE, (0..20_u64).map(|n| (AT >> 12) + n));
    let batch = AddToPhysmapBatch {
        domid: DomId::SELF,
        space: 1,
        size: 20,
        idxs: GuestHandle(LIST),
        gpfns: GuestHandle(MORE),
        errs: GuestHandle(ARG + 0x1000),
        ..AddToPhysmapBatch::default()
    };
    one.write(ARG, batch.as_bytes());
    (number::MEMORY_OP, [23, ARG, 0, 0, 0])
}

fn text(length: u64) -> Vec<u8> {
    (0..length).map(|n| if n % 50 == 49 { b'\n' } else { b'a' + (n % 26) as u8 }).collect()
}

fn write(world: &World) -> (u64, Args) {
    guest(world, 1).write(LIST, &text(1300));
    (number::CONSOLE_IO, [0, 1300, LIST, 0, 0])
}

/// As much as the ring holds, around its end.
fn ring(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    for (n, byte) in text(2048).into_iter().enumerate() {
        one.write(CONSOLE + 1024 + (n as u64 + 100) % 2048, &[byte]);
    }
    one.write(CONSOLE + 3080, [100_u32, 2148].as_bytes());
    one.write(ARG, Port(1).as_bytes());
    (number::EVENT_CHANNEL_OP, [EventOp::Send.number().into(), ARG, 0, 0, 0])
}

fn reset(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    for n in 0..18 {
        if n % 3 == 0 {
            let there = guest(world, 2).unbound(1);
            one.bind(2, there);
        } else {
            one.event(EventOp::BindIpi, BindIpi { vcpu: n % 2, port: Port(0) });
        }
    }
    one.write(ARG, Reset { dom: DomId::SELF }.as_bytes());
    (number::EVENT_CHANNEL_OP, [EventOp::Reset.number().into(), ARG, 0, 0, 0])
}

/// Ports in use behind the console's, of which the last one is free; where the search for it begins is noted as the first.
fn last_port_free(one: Guest<'_>) {
    let ipi = || one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) }).1.port;
    let all: Vec<Port> = (0..30).map(|_| ipi()).collect();
    let (first, last) = (all[0], all[29]);
    one.event(EventOp::Close, PortArg { port: first });
    assert_eq!(ipi(), first);
    one.event(EventOp::Close, PortArg { port: last });
}

/// Behind ports in use some that are free, of which their guest says that they are in a queue still.
fn busy_ports(one: Guest<'_>) {
    last_port_free(one);
    one.event(EventOp::InitControl, InitControl { control_gfn: GFN, ..InitControl::default() });
    for port in 31_u64..50 {
        one.write((GFN + 1) * 4096 + port * 4, &(1_u32 << 29).to_le_bytes());
    }
    one.event(EventOp::ExpandArray, ExpandArray { array_gfn: GFN + 1 });
}

fn event<T: IntoBytes + Immutable>(one: Guest<'_>, op: EventOp, arg: &T) -> (u64, Args) {
    one.write(ARG, arg.as_bytes());
    (number::EVENT_CHANNEL_OP, [op.number().into(), ARG, 0, 0, 0])
}

fn unbound_to_two(one: Guest<'_>) -> (u64, Args) {
    event(one, EventOp::AllocUnbound, &AllocUnbound { dom: DomId::SELF, remote_dom: DomId(2), port: Port(0) })
}

fn alloc_unbound(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    last_port_free(one);
    unbound_to_two(one)
}

fn alloc_unbound_busy(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    busy_ports(one);
    unbound_to_two(one)
}

fn bind_interdomain(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    let there = guest(world, 2).unbound(1);
    last_port_free(one);
    event(
        one,
        EventOp::BindInterdomain,
        &BindInterdomain { remote_dom: DomId(2), remote_port: there, ..BindInterdomain::default() },
    )
}

fn bind_virq(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    busy_ports(one);
    event(one, EventOp::BindVirq, &BindVirq { virq: 3, vcpu: 0, port: Port(0) })
}

fn bind_ipi(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    last_port_free(one);
    event(one, EventOp::BindIpi, &BindIpi { vcpu: 1, port: Port(0) })
}

/// Long calls among short ones, one that is refused, and one that is no call.
fn multicall(world: &World) -> (u64, Args) {
    let one = guest(world, 1);
    let (grant, [op, _, count, ..]) = copy(world);
    // The batch moves away from where the entries are.
    let batch: Vec<u8> = (0..20 * 40).map(|at| one.read::<u8>(ARG + at)).collect();
    one.write(MORE, &batch);
    one.write(LIST, &text(600));
    let entry = |op, args: [u64; 3]| MulticallEntry {
        op,
        args: [args[0], args[1], args[2], 0, 0, 77],
        ..MulticallEntry::default()
    };
    let calls = [
        entry(number::XEN_VERSION, [0, 0, 0]),
        entry(number::CONSOLE_IO, [0, 600, LIST]),
        entry(number::EVENT_CHANNEL_OP, [4, 0x1000, 0]),
        entry(grant, [op, MORE, count]),
        entry(999, [0, 0, 0]),
        entry(number::MULTICALL, [ARG, 1, 0]),
        entry(number::SCHED_OP, [0, 0, 0]),
        entry(number::CONSOLE_IO, [0, 300, LIST]),
        entry(number::XEN_VERSION, [0, 0, 0]),
    ];
    list(one, ARG, calls);
    (number::MULTICALL, [ARG, 9, 0, 0, 0])
}

const SCENES: &[Scene] = &[
    Scene { name: "grant_table_op.map_grant_ref", units: 20, prepare: map },
    Scene { name: "grant_table_op.unmap_grant_ref", units: 20, prepare: unmap },
    Scene { name: "grant_table_op.copy", units: 20, prepare: copy },
    Scene { name: "grant_table_op.swap_grant_ref", units: 20, prepare: swap },
    Scene { name: "grant_table_op.unmap_and_replace", units: 20, prepare: replace },
    Scene { name: "grant_table_op.cache_flush", units: 20, prepare: flush },
    // Of 64 references each: sixteen of them twice, one, and none.
    Scene { name: "grant_table_op.cache_flush", units: 16 + 1 + 16 + 1, prepare: flush_mapped },
    Scene { name: "grant_table_op.setup_table", units: 3, prepare: grow },
    Scene { name: "memory_op.decrease_reservation", units: 20, prepare: decrease },
    Scene { name: "memory_op.decrease_reservation", units: 18, prepare: decrease_order },
    Scene { name: "memory_op.populate_physmap", units: 16, prepare: populate },
    Scene { name: "memory_op.increase_reservation", units: 18, prepare: increase },
    Scene { name: "memory_op.increase_reservation", units: 5, prepare: increase_order },
    Scene { name: "memory_op.add_to_physmap", units: 3, prepare: place_one },
    Scene { name: "memory_op.add_to_physmap_batch", units: 20, prepare: place },
    Scene { name: "console_io.write", units: 11, prepare: write },
    Scene { name: "event_channel_op.send", units: 17, prepare: ring },
    Scene { name: "event_channel_op.reset", units: 19, prepare: reset },
    Scene { name: "multicall.multicall", units: 9, prepare: multicall },
];

/// Searches for a free port: short but for who has thousands in use before it, or says that free ones are in a queue still.
const SEARCHES: &[Scene] = &[
    Scene { name: "event_channel_op.alloc_unbound", units: 30, prepare: alloc_unbound },
    Scene { name: "event_channel_op.alloc_unbound", units: 49, prepare: alloc_unbound_busy },
    Scene { name: "event_channel_op.bind_interdomain", units: 30, prepare: bind_interdomain },
    Scene { name: "event_channel_op.bind_virq", units: 49, prepare: bind_virq },
    Scene { name: "event_channel_op.bind_ipi", units: 30, prepare: bind_ipi },
];

/// Calls that restart by something else than a budget, or need another machine: where they are interrupted, and by what name.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("mmu_update.mmu_update", "tests/pagetables/restarts.rs", "mmu_update_restarts_at_every_entry"),
    ("mmuext_op.pin_l1_table", "tests/pagetables/restarts.rs", "pins_restart_at_every_entry"),
    ("mmuext_op.pin_l2_table", "tests/pagetables/restarts.rs", "pins_restart_at_every_entry"),
    ("mmuext_op.pin_l3_table", "tests/pagetables/restarts.rs", "pins_restart_at_every_entry"),
    ("mmuext_op.pin_l4_table", "tests/pagetables/restarts.rs", "pins_restart_at_every_entry"),
    ("mmuext_op.unpin_table", "tests/pagetables/restarts.rs", "unpins_restart_at_every_entry"),
    ("mmuext_op.new_baseptr", "tests/pagetables/restarts.rs", "the_end_of_the_trust_restarts_at_every_entry"),
    ("event_channel_op.close", "models/src/closing.rs", "fn again()"),
    // What is left in the registers when `reset` is interrupted: its scene goes on by it.
    ("event_channel_op.reset_cont", "tests/events.rs", "a_reset_goes_on_where_it_was"),
    ("event_channel_op.expand_array", "tests/fifo.rs", "the_call_restarts_at_each"),
    ("domctl.destroydomain", "tests/life/building.rs", "between_any_two_steps_of_an_end_and_a_beginning"),
    ("domctl.pausedomain", "tests/control.rs", "A pause waits, restarting"),
    ("sysctl.build", "tests/life/building.rs", "between_any_two_steps_of_an_end_and_a_beginning"),
];

#[test]
fn every_row_that_restarts_has_a_scene() {
    let rows = TABLE.iter().chain(PRIVILEGED);
    let restart = rows.flat_map(|row| {
        let long = row.operations.iter().filter(|operation| operation.cost == Cost::Restartable);
        long.map(|operation| format!("{}.{}", row.name, operation.name))
    });
    let names: Vec<String> = restart.collect();
    for name in &names {
        let here = SCENES.iter().any(|scene| scene.name == name);
        let there = ELSEWHERE.iter().any(|(elsewhere, _, _)| elsewhere == name);
        assert!(here != there, "{name} has no scene, or too many");
    }
    for (name, file, text) in ELSEWHERE {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        assert!(
            std::fs::read_to_string(path).unwrap().contains(text),
            "{name}: there is no {text} in {file}"
        );
    }
    let known = SCENES.iter().map(|scene| scene.name).chain(ELSEWHERE.iter().map(|(name, _, _)| *name));
    for name in known {
        assert!(names.iter().any(|row| row == name), "{name} is no row that restarts");
    }
}

/// Rows whose units may be dear: they ask for the time between two of them.
const BY_TIME: [&str; 13] = [
    "grant_table_op.map_grant_ref",
    "grant_table_op.unmap_grant_ref",
    "grant_table_op.copy",
    "grant_table_op.swap_grant_ref",
    "grant_table_op.unmap_and_replace",
    "grant_table_op.cache_flush",
    "memory_op.decrease_reservation",
    "memory_op.populate_physmap",
    "memory_op.increase_reservation",
    "memory_op.add_to_physmap_batch",
    "console_io.write",
    "event_channel_op.send",
    "multicall.multicall",
];

#[test]
fn a_call_whose_units_are_long_restarts_after_each_and_ends_as_if_it_had_not() {
    let scenes = SCENES.iter().filter(|scene| BY_TIME.contains(&scene.name));
    for scene in scenes {
        let (whole, _) = play_with(scene, None, false);
        let (end, interruptions) = play_with(scene, None, true);
        assert_eq!(end, whole, "{}", scene.name);
        assert!(interruptions + 1 >= scene.units, "{}: {interruptions} interruptions", scene.name);
    }
}

#[test]
fn every_long_call_restarts_at_every_unit_and_ends_as_if_it_had_not() {
    for scene in SCENES.iter().chain(SEARCHES) {
        let (whole, none) = play(scene, u32::MAX);
        // One call of the multicall gives the CPU away.
        let pauses = u32::from(scene.name == "multicall.multicall");
        assert_eq!(none, pauses, "{}: uninterrupted", scene.name);
        let (_, at_each) = play(scene, 1);
        assert!(
            at_each + 1 >= scene.units,
            "{}: {at_each} interruptions of {} units",
            scene.name,
            scene.units
        );
        for budget in 1..=scene.units {
            let (end, interruptions) = play(scene, budget);
            assert_eq!(end, whole, "{}: with {budget} units a run", scene.name);
            assert!(
                interruptions + 1 >= scene.units.div_ceil(budget),
                "{}: {interruptions} interruptions with {budget} units a run",
                scene.name
            );
        }
    }
}
