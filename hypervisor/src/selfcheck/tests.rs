use super::*;
use crate::fake::{RAM, World};
use crate::frame::FrameState;
use crate::stage2::lookup;

const ONE: DomId = DomId(1);

fn ram(n: u64) -> Gfn {
    Gfn::new((RAM >> 12) + n).unwrap()
}

/// Maps anything in domain 1, past all checks.
fn map(world: &World, gfn: Gfn, mfn: Mfn, kind: Kind) {
    let machine = &world.machine;
    let mut state = world.domain(1).state.lock();
    let slot = state.stage2.prepare(&machine.hw, &machine.frames, gfn).unwrap();
    let _ = slot.commit(&machine.hw, mfn, kind);
}

fn frame(world: &World, id: u16, n: u64) -> Mfn {
    lookup(&world.machine.hw, world.domain(id).stage2_root, ram(n)).unwrap().mfn
}

#[test]
fn a_new_machine_is_in_order() {
    World::new(3).check();
}

#[test]
fn another_domains_frame_is_found() {
    let world = World::new(2);
    let theirs = frame(&world, 2, 3);
    for kind in [Kind::Ram, Kind::Shared, Kind::GrantWritable, Kind::GrantReadOnly, Kind::Device] {
        map(&world, ram(9), theirs, kind);
        assert_eq!(check(&world.machine), Err(Violation::Mapped(ONE, ram(9), Mapping { mfn: theirs, kind })));
    }
}

#[test]
fn the_hypervisors_frames_are_found() {
    let world = World::new(1);
    let root = world.domain(1).stage2_root;
    map(&world, ram(9), root, Kind::Ram);
    assert!(matches!(check(&world.machine), Err(Violation::Mapped(..))));
}

#[test]
fn a_frame_mapped_twice_is_found() {
    let world = World::new(1);
    map(&world, ram(9), frame(&world, 1, 3), Kind::Ram);
    assert_eq!(check(&world.machine), Err(Violation::Home(ONE, ram(9))));
}

#[test]
fn a_count_without_a_holder_is_found_and_so_is_a_holder_without_a_count() {
    let world = World::new(1);
    let data = frame(&world, 1, 3);
    world.machine.frames.table.reference(data, ONE).unwrap();
    assert_eq!(check(&world.machine), Err(Violation::Count(data)));
    let info = &world.domain(1).vcpus[1].info;
    info.store(data.base().get() + 64, core::sync::atomic::Ordering::Release);
    assert_eq!(check(&world.machine), Ok(()));
    world.machine.frames.table.release(data).unwrap();
    assert_eq!(check(&world.machine), Err(Violation::Count(data)));
}

#[test]
fn a_lost_frame_and_a_lost_table_are_found() {
    let world = World::new(1);
    let frames = &world.machine.frames;
    let data = frames.allocate(0, ONE, Role::Data).unwrap();
    assert_eq!(check(&world.machine), Err(Violation::Memory(ONE)));
    frames.free(data).unwrap();
    let table = frames.allocate(0, ONE, Role::Stage2Table).unwrap();
    assert_eq!(check(&world.machine), Err(Violation::Tables(ONE)));
    frames.free(table).unwrap();
    world.check();
}

#[test]
fn an_entry_changed_behind_the_tables_back_is_found() {
    let world = World::new(1);
    let table = &world.machine.frames.table;
    let data = frame(&world, 1, 3);
    let entry = table.entry(data).unwrap();
    let state = entry.state();
    assert!(entry.change(state, FrameState { owner: DomId::XEN, role: Role::Hypervisor, ..state }));
    assert!(matches!(check(&world.machine), Err(Violation::Total(..))));
}
