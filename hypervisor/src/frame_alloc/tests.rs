use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::*;
use crate::fake::{FakeHardware, Op, Random, free_frames};

const ONE: DomId = DomId(1);

fn mfn(number: u64) -> Mfn {
    Mfn::new(number).unwrap()
}

/// Reads the lists as they are and checks invariants 1 and 2; gives the free blocks.
fn blocks(frames: &Frames) -> BTreeMap<u64, u32> {
    let lists = frames.free.lock();
    let mut blocks = BTreeMap::new();
    for (order, first) in (0..).zip(lists.heads) {
        let (mut link, mut before) = (first, NO_LINK);
        while link != NO_LINK {
            let start = frames.table.base().get() + u64::from(link);
            let entry = frames.table.entry(mfn(start)).unwrap();
            assert_eq!(entry.prev(), before);
            assert_eq!(entry.state(), head(order));
            assert_eq!(start % (1 << order), 0, "aligned");
            for inner in start + 1..start + (1 << order) {
                assert_eq!(frames.table.state(mfn(inner)), Some(FREE));
            }
            assert_eq!(blocks.insert(start, order), None, "in one list once");
            (before, link) = (link, entry.next());
        }
    }
    for (start, order) in &blocks {
        let buddy = start ^ (1 << order);
        assert!(*order == MAX_ORDER || blocks.get(&buddy) != Some(order), "buddies are joined");
    }
    assert_eq!(blocks.values().map(|order| 1 << order).sum::<u64>(), lists.frames);
    blocks
}

#[test]
fn given_ranges_become_the_largest_blocks() {
    let frames = free_frames(mfn(3), 30);
    assert_eq!(blocks(&frames), BTreeMap::from([(3, 0), (4, 2), (8, 3), (16, 4), (32, 0)]));
}

#[test]
fn a_hole_is_never_allocated_nor_joined() {
    let entries = std::boxed::Box::leak((0..16).map(|_| FrameEntry::new()).collect::<std::boxed::Box<[_]>>());
    let frames = Frames::new(FrameTable::new(mfn(0), entries).unwrap());
    assert_eq!(frames.give(mfn(0)..mfn(7)), 7);
    assert_eq!(frames.give(mfn(8)..mfn(100)), 8, "what the table does not have is left out");
    assert_eq!(blocks(&frames), BTreeMap::from([(0, 2), (4, 1), (6, 0), (8, 3)]));
    assert_eq!(frames.free(mfn(7)), Err(FrameError::WrongRole));
    while frames.allocate(0, ONE, Role::Data).is_some() {}
    assert_eq!(frames.table.state(mfn(7)).unwrap().role, Role::NotRam);
    assert_eq!(frames.table.total(ONE, Role::Data), 15);
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let frames = free_frames(mfn(0), 24);
    let before = blocks(&frames);
    for order in [5, MAX_ORDER, MAX_ORDER + 1, 64, u32::MAX] {
        assert_eq!(frames.allocate(order, ONE, Role::Data), None);
    }
    assert_eq!(blocks(&frames), before);
}

#[test]
fn a_frame_is_freed_once() {
    let frames = free_frames(mfn(0), 4);
    let data = frames.allocate(0, ONE, Role::Data).unwrap();
    assert_eq!(frames.free(data), Ok(()));
    assert_eq!(frames.free(data), Err(FrameError::WrongRole));
    assert_eq!(frames.free(mfn(4)), Err(FrameError::NoFrame));
    assert_eq!(blocks(&frames), BTreeMap::from([(0, 2)]));
}

#[test]
fn cleared_frames_are_cleared_one_by_one() {
    let (hw, frames) = FakeHardware::with_frames(16);
    let block = frames.allocate_clear(&hw, 2, ONE, Role::Data).unwrap();
    let each = (0..4).map(|n| block.checked_add(n).unwrap());
    let expected: Vec<_> = each.flat_map(|frame| [Op::Clear(frame), Op::CleanToMemory(frame)]).collect();
    assert_eq!(hw.take_ops(), expected);
    assert_eq!(hw.frame_bytes(block), [0; 4096]);
    // No guest sees a table.
    let table = frames.allocate_clear(&hw, 0, ONE, Role::Stage2Table).unwrap();
    assert_eq!(hw.take_ops(), [Op::Clear(table)]);
}

#[test]
fn everything_of_an_owner_comes_back_but_what_is_referenced() {
    let frames = free_frames(mfn(0), 64);
    let _ = frames.allocate(4, ONE, Role::Data).unwrap();
    let held = frames.allocate(0, ONE, Role::Data).unwrap();
    let _ = frames.allocate(0, DomId(2), Role::Data).unwrap();
    frames.table.reference(held, ONE).unwrap();
    assert_eq!(frames.free_owner(ONE), 16);
    assert_eq!((frames.free_frames(), frames.table.total(ONE, Role::Data)), (62, 1));
}

/// Random allocations and frees beside a set of free frames: an allocation succeeds exactly when the set has such an aligned block.
#[test]
fn the_lists_agree_with_a_naive_model() {
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        let (base, count) = (random.below(64), 200 + random.below(300));
        let frames = free_frames(mfn(base), count);
        let mut free: BTreeSet<u64> = (base..base + count).collect();
        let mut held: Vec<(u64, u32)> = Vec::new();
        for _ in 0..400 {
            if random.below(5) < 3 {
                let order = u32::try_from(random.below(7)).unwrap();
                let size = 1 << order;
                let fits = (0..=(base + count) / size)
                    .any(|n| (n * size..(n + 1) * size).all(|frame| free.contains(&frame)));
                let found = frames.allocate(order, ONE, Role::Data);
                assert_eq!(found.is_some(), fits);
                if let Some(found) = found {
                    assert!(found.is_aligned(order));
                    for frame in found.get()..found.get() + size {
                        assert!(free.remove(&frame), "it was free");
                    }
                    held.push((found.get(), order));
                }
            } else if !held.is_empty() {
                let index = usize::try_from(random.below(held.len() as u64)).unwrap();
                let (start, order) = held.swap_remove(index);
                if order > 0 && random.below(2) == 0 {
                    // Half of it: a block need not come back as it went.
                    frames.free_block(mfn(start), order - 1).unwrap();
                    free.extend(start..start + (1 << (order - 1)));
                    held.push((start + (1 << (order - 1)), order - 1));
                } else {
                    frames.free_block(mfn(start), order).unwrap();
                    free.extend(start..start + (1 << order));
                }
            }
            let listed: BTreeSet<u64> =
                blocks(&frames).into_iter().flat_map(|(start, order)| start..start + (1 << order)).collect();
            assert_eq!(listed, free);
        }
    }
}
