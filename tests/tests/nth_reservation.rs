//! Whichever frame is missing: each call that reserves frames, with the n-th reservation failing for every n, in a world of three domains.
//! What is refused has changed nothing, but for stage-2 tables: those stay the domain's, and map nothing.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use hypervisor::addr::{Gfn, Mfn};
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{MEMORY_KIB, RAM, World};
use hypervisor::frame::Role;
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::Outcome;
use hypervisor::stage2::{Mapping, lookup};
use pavo_tests::{ARG, Guest, guest, number};
use pv_abi::grant::{EntryFlags, GrantOp, MapGrantRef, SetupTable};
use pv_abi::memory::{
    AddToPhysmap, AddToPhysmapBatch, MemoryExchange, MemoryOp, RemoveFromPhysmap, Reservation,
};
use pv_abi::{DomId, GrantRef, GuestHandle};
use zerocopy::IntoBytes;

/// Three domains: the first grants a page to the second; the third is not concerned.
const DOMAINS: u16 = 3;
const LIST: u64 = ARG + 0x1000;
/// In a block of 2 MiB, and far from everything: a table of level 2 and one of level 3 are missing there.
const IN_BLOCK: u64 = (RAM >> 12) + 0x90;
const FAR: u64 = 0x700_0000;
/// A page whose neighbours are pages: no table is missing.
const PAGE: u64 = (RAM >> 12) + 0x405;
/// More reservations than any of the calls makes.
const MOST: u32 = 40;

/// A call of domain 2: its name, how it is prepared, its number and first argument.
struct Call {
    what: &'static str,
    prepare: fn(Guest<'_>),
    number: u64,
    cmd: u64,
    /// Whether a refusal is an error, or told otherwise (extents done, a status in the element).
    told: fn(Guest<'_>, i64) -> bool,
}

fn reservation(guest: Guest<'_>, gfns: &[u64], order: u32) {
    guest.write(LIST, gfns.as_bytes());
    let arg = Reservation {
        extent_start: GuestHandle(LIST),
        nr_extents: gfns.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: DomId::SELF,
        pad: [0; 3],
    };
    guest.write(ARG, arg.as_bytes());
}

fn place(guest: Guest<'_>, space: u32, idx: u64, gpfn: u64) {
    guest.write(ARG, AddToPhysmap { domid: DomId::SELF, size: 1, space, idx, gpfn }.as_bytes());
}

fn decrease(guest: Guest<'_>, gfn: u64) {
    reservation(guest, &[gfn], 0);
    assert_eq!(guest.call(number::MEMORY_OP, [1, ARG, 0, 0, 0]), 1);
}

/// Eight pages, which are free afterwards: nothing that is missing can come from limbo.
fn gives_back(guest: Guest<'_>) {
    (PAGE..PAGE + 8).for_each(|gfn| decrease(guest, gfn));
    let frames = &guest.world.machine.frames;
    // Once for those that wait, once for those that were gathered meanwhile.
    for _ in 0..4 {
        frames.quiescent.pass(CpuId(0));
        frames.reclaim();
    }
    assert_eq!(frames.limbo_frames(), 0);
}

fn map(guest: Guest<'_>, host_addr: u64) {
    let op = MapGrantRef { host_addr, flags: 2, gref: GrantRef(8), dom: DomId(1), ..MapGrantRef::default() };
    guest.write(ARG, op.as_bytes());
}

fn done(_: Guest<'_>, result: i64) -> bool {
    result == 0
}

fn one_extent(_: Guest<'_>, result: i64) -> bool {
    result == 1
}

fn status(guest: Guest<'_>, result: i64) -> bool {
    result == 0 && guest.read::<i16>(ARG + 18) == 0
}

fn errors(guest: Guest<'_>, result: i64) -> bool {
    result == 0 && guest.read::<i32>(LIST + 0x400) == 0
}

fn memory(what: &'static str, prepare: fn(Guest<'_>), cmd: u64, told: fn(Guest<'_>, i64) -> bool) -> Call {
    Call { what, prepare, number: number::MEMORY_OP, cmd, told }
}

/// Every call that takes frames from the allocator, for data, tables or grants.
fn calls() -> Vec<Call> {
    let mut all = extents();
    all.extend(others());
    all
}

/// Calls about extents.
fn extents() -> Vec<Call> {
    vec![
        memory(
            "populate, far from everything",
            |guest| {
                decrease(guest, PAGE);
                reservation(guest, &[FAR], 0);
            },
            6,
            one_extent,
        ),
        memory(
            "populate, an extent of eight pages",
            |guest| {
                gives_back(guest);
                reservation(guest, &[FAR], 3);
            },
            6,
            one_extent,
        ),
        memory(
            "populate, an extent of eight pages on both sides of a table",
            |guest| {
                gives_back(guest);
                reservation(guest, &[FAR + 0x1F9], 3);
            },
            6,
            one_extent,
        ),
        memory(
            "increase, an extent of eight pages",
            |guest| {
                gives_back(guest);
                reservation(guest, &[0], 3);
            },
            0,
            one_extent,
        ),
        memory("decrease, a page of a block", |guest| reservation(guest, &[IN_BLOCK], 0), 1, one_extent),
    ]
}

fn others() -> Vec<Call> {
    let grant = |what, prepare, op: GrantOp, told| Call {
        what,
        prepare,
        number: number::GRANT_TABLE_OP,
        cmd: op.number().into(),
        told,
    };
    vec![
        memory("place the shared page", |guest| place(guest, 0, 0, FAR), 7, done),
        memory("place the shared page in a block of RAM", |guest| place(guest, 0, 0, IN_BLOCK), 7, done),
        memory("place a new page of the grant table", |guest| place(guest, 1, 2, FAR), 7, done),
        memory(
            "remove a page of a block",
            |guest| {
                let arg = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn: IN_BLOCK };
                guest.write(ARG, arg.as_bytes());
            },
            15,
            done,
        ),
        memory(
            "place a batch",
            |guest| {
                guest.write(LIST, 2_u64.as_bytes());
                guest.write(LIST + 0x200, FAR.as_bytes());
                let arg = AddToPhysmapBatch {
                    domid: DomId::SELF,
                    space: 1,
                    size: 1,
                    foreign_domid: DomId(0),
                    idxs: GuestHandle(LIST),
                    gpfns: GuestHandle(LIST + 0x200),
                    errs: GuestHandle(LIST + 0x400),
                };
                guest.write(ARG, arg.as_bytes());
            },
            23,
            errors,
        ),
        grant(
            "set the grant table up",
            |guest| {
                let op = SetupTable {
                    dom: DomId::SELF,
                    nr_frames: 4,
                    frame_list: GuestHandle(LIST),
                    ..SetupTable::default()
                };
                guest.write(ARG, op.as_bytes());
            },
            GrantOp::SetupTable,
            |guest, result| result == 0 && guest.read::<i16>(ARG + 8) == 0,
        ),
        grant(
            "map a grant, far from everything",
            |guest| map(guest, FAR << 12),
            GrantOp::MapGrantRef,
            status,
        ),
        grant("map a grant over RAM", |guest| map(guest, IN_BLOCK << 12), GrantOp::MapGrantRef, status),
    ]
}

/// All that a guest can see and the hypervisor has counted, apart from stage-2 tables.
#[derive(PartialEq, Debug)]
struct Seen {
    mappings: Vec<Option<Mapping>>,
    totals: Vec<(u16, Role, u64)>,
    owned: Vec<(Mfn, DomId, Role, u32)>,
    reserved: Vec<u64>,
    grant_frames: Vec<u32>,
    marks: EntryFlags,
}

fn seen(world: &World) -> Seen {
    let table = &world.machine.frames.table;
    let kept = [Role::Data, Role::Shared, Role::Hypervisor];
    let places =
        (RAM >> 12..(RAM >> 12) + MEMORY_KIB / 4).chain(FAR..FAR + 8).chain(FAR + 0x1F9..FAR + 0x201);
    let mapping =
        |id: u16, gfn| lookup(&world.machine.hw, world.domain(id).stage2_root, Gfn::new(gfn).unwrap());
    let frames = (table.base().get()..table.end()).filter_map(Mfn::new);
    Seen {
        mappings: (1..=DOMAINS).flat_map(|id| places.clone().map(move |gfn| mapping(id, gfn))).collect(),
        totals: (1..=DOMAINS)
            .flat_map(|id| kept.map(|role| (id, role, table.total(DomId(id), role))))
            .collect(),
        owned: frames
            .filter_map(|mfn| table.state(mfn).map(|state| (mfn, state.owner, state.role, state.count)))
            .filter(|(_, _, role, _)| kept.contains(role))
            .collect(),
        reserved: (1..=DOMAINS).map(|id| world.domain(id).state.lock().memory.frames).collect(),
        grant_frames: (1..=DOMAINS).map(|id| world.domain(id).state.lock().grants.frames()).collect(),
        marks: guest(world, 1).entry_flags(8),
    }
}

/// Runs the call to its end, or until it has restarted so often that it waits for frames; true if it was served.
fn serve(caller: Guest<'_>, call: &Call) -> bool {
    let mut args = [call.cmd, ARG, 1, 0, 0];
    for _ in 0..20 {
        match caller.once(call.number, args) {
            Outcome::Done(result) => return (call.told)(caller, result),
            Outcome::Restart(left) => args = left,
        }
    }
    false
}

/// Also the row of Xen's failures in stage 2 that nobody looked at, and of extents that were done by half.
fn whichever_is_missing(only: impl Fn(&str) -> bool) {
    for call in calls().iter().filter(|call| only(call.what)) {
        let mut refused = 0;
        for missing in 0..MOST {
            let world = World::new(DOMAINS);
            guest(&world, 1).grants(8, 2, PAGE, EntryFlags::empty());
            let caller = guest(&world, 2);
            (call.prepare)(caller);
            let before = seen(&world);
            world.machine.frames.fail_after(missing);
            let served = serve(caller, call);
            world.machine.frames.fail_after(u32::MAX);
            world.check();
            check_channels(&world.machine).unwrap();
            if served {
                assert_ne!(seen(&world), before, "{}: it does something", call.what);
                break;
            }
            assert_eq!(seen(&world), before, "{}, without the {missing}th", call.what);
            refused += 1;
            // Served as ever when nothing is missing.
            assert!(serve(caller, call), "{}, after the {missing}th was missing", call.what);
            world.check();
        }
        assert!(refused > 0 && refused < MOST, "{}: {refused} reservations", call.what);
    }
}

#[test]
fn without_the_nth_frame_a_call_on_memory_changes_nothing() {
    whichever_is_missing(|what| !what.contains("grant"));
}

#[test]
fn without_the_nth_frame_a_call_on_grants_changes_nothing() {
    whichever_is_missing(|what| what.contains("grant"));
}

#[test]
fn xsa_246_a_place_that_stage_2_cannot_hold_is_refused_and_not_given_half() {
    whichever_is_missing(|what| what.starts_with("place"));
}

#[test]
fn xsa_388_an_extent_of_which_a_page_is_missing_counts_no_page() {
    whichever_is_missing(|what| what.starts_with("populate"));
}

#[test]
fn xsa_159_an_exchange_which_arm_does_not_do_takes_and_frees_no_frame() {
    let world = World::new(DOMAINS);
    let caller = guest(&world, 2);
    let before = seen(&world);
    world.machine.frames.fail_after(0);
    reservation(caller, &[PAGE], 0);
    let of: Reservation = caller.read(ARG);
    let output = Reservation { extent_start: GuestHandle(LIST + 8), ..of };
    let (result, told) = caller.with(
        number::MEMORY_OP,
        MemoryOp::Exchange.number(),
        MemoryExchange { input: of, output, nr_exchanged: 0 },
    );
    assert!(result < 0 && told.nr_exchanged == 0, "{result}");
    assert!(caller.with(number::MEMORY_OP, MemoryOp::ClaimPages.number(), of).0 < 0);
    assert!(!world.machine.frames.has_failed());
    world.machine.frames.fail_after(u32::MAX);
    assert_eq!(seen(&world), before);
}
