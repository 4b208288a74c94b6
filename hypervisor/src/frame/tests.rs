use super::*;
use crate::fake::free_frames;

const ONE: DomId = DomId(1);
const TWO: DomId = DomId(2);

fn mfn(number: u64) -> Mfn {
    Mfn::new(number).unwrap()
}

#[test]
fn every_state_survives_packing() {
    for role in Role::ALL {
        for (owner, order, count) in [(0, 0, 0), (0xFFFF, 0xFF, u32::MAX), (0x1234, 18, 7)] {
            let state = FrameState { owner: DomId(owner), role, order, count };
            assert_eq!(FrameState::unpack(state.pack()), state);
        }
    }
    assert_eq!(FrameEntry::new().state(), FrameState::unreferenced(DomId::XEN, Role::NotRam));
}

#[test]
fn only_the_owners_data_can_be_referenced() {
    let frames = free_frames(mfn(0x100), 8);
    let data = frames.allocate(0, ONE, Role::Data).unwrap();
    let shared = frames.allocate(0, ONE, Role::Shared).unwrap();
    let table = frames.allocate(0, ONE, Role::Stage2Table).unwrap();
    let table_of_frames = &frames.table;
    assert_eq!(table_of_frames.reference(data, ONE), Ok(()));
    assert_eq!(table_of_frames.reference(data, TWO), Err(FrameError::WrongOwner));
    assert_eq!(table_of_frames.reference(shared, ONE), Err(FrameError::WrongRole));
    assert_eq!(table_of_frames.reference(table, ONE), Err(FrameError::WrongRole));
    assert_eq!(table_of_frames.reference(mfn(0xFF), ONE), Err(FrameError::NoFrame));
    assert_eq!(table_of_frames.reference(mfn(0x108), ONE), Err(FrameError::NoFrame));
    assert_eq!(table_of_frames.state(data).unwrap().count, 1);
}

#[test]
fn xsa_249_a_count_refuses_at_its_end_and_never_wraps() {
    let frames = free_frames(mfn(0x100), 1);
    let data = frames.allocate(0, ONE, Role::Data).unwrap();
    let entry = frames.table.entry(data).unwrap();
    let state = entry.state();
    assert!(entry.change(state, FrameState { count: MAX_COUNT - 1, ..state }));
    assert_eq!(frames.table.reference(data, ONE), Ok(()));
    assert_eq!(frames.table.reference(data, ONE), Err(FrameError::TooManyReferences));
    assert_eq!(entry.state().count, MAX_COUNT);
}

#[test]
fn what_is_released_was_referenced() {
    let frames = free_frames(mfn(0x100), 1);
    let data = frames.allocate(0, ONE, Role::Data).unwrap();
    assert_eq!(frames.table.release(data), Err(FrameError::NotReferenced));
    frames.table.reference(data, ONE).unwrap();
    assert_eq!(frames.free(data), Err(FrameError::Referenced), "a frame with references stays");
    assert_eq!(frames.table.release(data), Ok(()));
    assert_eq!(frames.free(data), Ok(()));
    assert_eq!(frames.table.release(data), Err(FrameError::NotReferenced));
}

#[test]
fn a_home_is_kept_for_frames_that_have_one() {
    let frames = free_frames(mfn(0x100), 4);
    let data = frames.allocate(0, ONE, Role::Data).unwrap();
    assert_eq!(frames.table.home(data), None);
    frames.table.set_home(data, Gfn::new(0x4_0000));
    assert_eq!(frames.table.home(data), Gfn::new(0x4_0000));
    frames.table.set_home(data, None);
    assert_eq!(frames.table.home(data), None);
    // A free frame's links are the allocator's.
    let free = mfn(0x103);
    assert_eq!(frames.table.state(free).unwrap().role, Role::Free);
    frames.table.set_home(free, Gfn::new(1));
    assert_eq!(frames.table.home(free), None);
    while frames.allocate(0, TWO, Role::Data).is_some() {}
    assert_eq!(frames.table.total(TWO, Role::Data), 3, "the lists are whole");
}

#[test]
fn totals_follow_owners_and_roles() {
    let frames = free_frames(mfn(0x100), 64);
    let table = &frames.table;
    assert_eq!((table.total(DomId::XEN, Role::Free), table.total(ONE, Role::Data)), (64, 0));
    let data = frames.allocate(4, ONE, Role::Data).unwrap();
    let _ = frames.allocate(0, ONE, Role::Shared).unwrap();
    assert_eq!((table.total(ONE, Role::Data), table.total(ONE, Role::Shared)), (16, 1));
    assert_eq!(table.total(DomId::XEN, Role::Free), 47);
    frames.free_block(data, 4).unwrap();
    assert_eq!((table.total(ONE, Role::Data), table.total(DomId::XEN, Role::Free)), (0, 63));
}

#[test]
fn the_hypervisors_frames_are_claimed_once_and_can_be_given_later() {
    let entries = std::boxed::Box::leak(std::boxed::Box::new([const { FrameEntry::new() }; 8]));
    let frames = crate::frame_alloc::Frames::new(FrameTable::new(mfn(0x10), entries).unwrap());
    assert_eq!(frames.table.claim(mfn(0x11)), Ok(()));
    assert!(frames.table.claim(mfn(0x11)).is_err());
    assert_eq!(frames.table.total(DomId::XEN, Role::Hypervisor), 1);
    assert_eq!(frames.give(mfn(0x10)..mfn(0x18)), 8);
    assert_eq!(frames.table.total(DomId::XEN, Role::Hypervisor), 0);
    assert_eq!(frames.give(mfn(0x10)..mfn(0x18)), 0, "free already");
    assert!(frames.table.claim(mfn(0x11)).is_err(), "a free frame is not there for claiming");
}

#[test]
fn a_table_beyond_48_bits_does_not_exist() {
    let entries: &'static [FrameEntry] =
        std::boxed::Box::leak(std::boxed::Box::new([const { FrameEntry::new() }; 2]));
    assert!(FrameTable::new(mfn((1 << 36) - 2), entries).is_some());
    assert!(FrameTable::new(mfn((1 << 36) - 1), entries).is_none());
    assert!(FrameTable::new(mfn(0), &[]).is_none());
}
