use std::vec::Vec;

use super::*;
use crate::fake::{FakeHardware, Op, Random, Stage2Fault, free_frames};

const ONE: DomId = DomId(1);
const VMID: Vmid = Vmid(7);

fn gfn(number: u64) -> Gfn {
    Gfn::new(number).unwrap()
}

fn mfn(number: u64) -> Mfn {
    Mfn::new(number).unwrap()
}

fn setup(frames: u64, limit: u32) -> (FakeHardware, Frames, Stage2) {
    let (hw, frames) = FakeHardware::with_frames(frames);
    let stage2 = Stage2::new(&hw, &frames, ONE, VMID, limit).unwrap();
    (hw, frames, stage2)
}

#[expect(clippy::unnecessary_wraps, reason = "what lookups give")]
fn at(mfn: Mfn, kind: Kind) -> Option<Mapping> {
    Some(Mapping { mfn, kind })
}

fn write(hw: &FakeHardware, stage2: &Stage2, gfn: Gfn, byte: u8) -> Result<(), Stage2Fault> {
    hw.guest_write(VMID, stage2.root(), gfn.base(), &[byte])
}

fn read(hw: &FakeHardware, stage2: &Stage2, gfn: Gfn) -> Result<u8, Stage2Fault> {
    let mut byte = [0];
    hw.guest_read(VMID, stage2.root(), gfn.base(), &mut byte)?;
    Ok(byte[0])
}

fn unmap(hw: &FakeHardware, stage2: &Stage2, gfn: Gfn) -> Option<Mapping> {
    stage2.page(hw, gfn).and_then(|slot| slot.clear(hw))
}

#[test]
fn the_root_is_two_tables_side_by_side() {
    let (_, frames, stage2) = setup(64, 8);
    assert_eq!(stage2.root().base().get() % 8192, 0);
    assert_eq!((stage2.tables(), frames.table.total(ONE, Role::Stage2Table)), (2, 2));
    assert_eq!(Stage2::vttbr(stage2.root(), VMID), 7 << 48 | stage2.root().base().get());
}

#[test]
fn a_limit_without_room_for_the_root_is_refused() {
    let (hw, frames) = FakeHardware::with_frames(64);
    assert!(Stage2::new(&hw, &frames, ONE, VMID, 1).is_none());
    assert_eq!(frames.free_frames(), 64);
}

#[test]
fn a_committed_page_is_there_for_software_and_guest() {
    let (hw, frames, mut stage2) = setup(64, 8);
    let frame = frames.allocate_clear(&hw, 0, ONE, Role::Data).unwrap();
    // The far end of the second root table too.
    for gfn in [gfn(0x4_0123), gfn(GFN_LIMIT - 1)] {
        assert_eq!(stage2.lookup(&hw, gfn), None);
        assert_eq!(write(&hw, &stage2, gfn, 1), Err(Stage2Fault::Translation));
        let slot = stage2.prepare(&hw, &frames, gfn).unwrap();
        assert_eq!(slot.commit(&hw, frame, Kind::Ram), None);
        assert_eq!(stage2.lookup(&hw, gfn), at(frame, Kind::Ram));
        assert_eq!(write(&hw, &stage2, gfn, 1), Ok(()));
        assert_eq!(unmap(&hw, &stage2, gfn), at(frame, Kind::Ram));
        assert_eq!(write(&hw, &stage2, gfn, 1), Err(Stage2Fault::Translation));
        assert_eq!(unmap(&hw, &stage2, gfn), None);
    }
    assert_eq!(stage2.highest_gfn(), gfn(GFN_LIMIT - 1));
    assert_eq!(hw.stale_translation(), None);
}

#[test]
fn guest_frames_beyond_40_bits_do_not_exist() {
    let (hw, frames, mut stage2) = setup(64, 8);
    for number in [GFN_LIMIT, GFN_LIMIT + 1, (1 << 40) - 1] {
        assert_eq!(stage2.prepare(&hw, &frames, gfn(number)).map(|_| ()), Err(MapError::BadGfn));
        assert_eq!(stage2.lookup(&hw, gfn(number)), None);
        assert_eq!(unmap(&hw, &stage2, gfn(number)), None);
        let mapped = stage2.map_blocks(&hw, &frames, gfn(number), mfn(0x4_0000), 0, Kind::Ram);
        assert_eq!(mapped, Err(MapError::BadGfn));
    }
    assert_eq!(stage2.tables(), 2);
}

#[test]
fn a_read_only_grant_is_not_written() {
    let (hw, frames, mut stage2) = setup(64, 8);
    let frame = frames.allocate_clear(&hw, 0, ONE, Role::Data).unwrap();
    let slot = stage2.prepare(&hw, &frames, gfn(5)).unwrap();
    let _ = slot.commit(&hw, frame, Kind::GrantReadOnly);
    assert_eq!(read(&hw, &stage2, gfn(5)), Ok(0));
    assert_eq!(write(&hw, &stage2, gfn(5), 1), Err(Stage2Fault::Permission));
}

#[test]
fn making_valid_needs_a_barrier_and_no_flush() {
    let (hw, frames, mut stage2) = setup(64, 8);
    let slot = stage2.prepare(&hw, &frames, gfn(5)).unwrap();
    let (table, index) = (slot.table, slot.index);
    hw.take_ops();
    let _ = slot.commit(&hw, mfn(0x4_0030), Kind::Shared);
    let entry = Descriptor::leaf(mfn(0x4_0030), Kind::Shared, 3).raw();
    assert_eq!(hw.take_ops(), [Op::TableWrite { table, index, entry }, Op::TablesWritten]);
}

#[test]
fn a_new_table_is_empty_for_all_walkers_before_it_is_linked() {
    let (hw, frames, mut stage2) = setup(64, 8);
    hw.take_ops();
    let _ = stage2.prepare(&hw, &frames, gfn(5)).unwrap();
    let ops = hw.take_ops();
    let links: Vec<_> = (0..ops.len()).filter(|n| matches!(ops[*n], Op::TableWrite { .. })).collect();
    assert_eq!(links.len(), 2, "of level 2 and of level 3");
    for link in links {
        let Op::TableWrite { entry, .. } = ops[link] else { continue };
        let table = Descriptor::from_raw(entry).as_table().unwrap();
        assert_eq!(ops[link - 2..link], [Op::Clear(table), Op::TablesWritten]);
        assert_eq!(ops[link + 1], Op::TablesWritten);
    }
}

#[test]
fn splitting_fills_the_table_breaks_flushes_and_links() {
    let (hw, frames, mut stage2) = setup(0x1000, 8);
    stage2.map_blocks(&hw, &frames, gfn(0x200), mfn(0x4_0200), 9, Kind::Ram).unwrap();
    hw.take_ops();
    let slot = stage2.prepare(&hw, &frames, gfn(0x2FF)).unwrap();
    let ops = hw.take_ops();
    assert_eq!(ops.len(), 1 + 512 + 4);
    assert_eq!(ops[0], Op::Clear(slot.table));
    for (index, op) in ops[1..513].iter().enumerate() {
        let entry = Descriptor::leaf(mfn(0x4_0200 + index as u64), Kind::Ram, 3).raw();
        assert_eq!(*op, Op::TableWrite { table: slot.table, index, entry });
    }
    let Op::TableWrite { table, index: 1, entry: broken } = ops[513] else { panic!("{:?}", ops[513]) };
    assert_eq!(broken, Descriptor::leaf(mfn(0x4_0200), Kind::Ram, 2).raw() & !1);
    let entry = Descriptor::table(slot.table).raw();
    let made = [Op::FlushAll(VMID), Op::TableWrite { table, index: 1, entry }, Op::TablesWritten];
    assert_eq!(ops[514..], made);
}

#[test]
fn replacing_breaks_flushes_and_makes() {
    let (hw, frames, mut stage2) = setup(64, 8);
    let _ = stage2.prepare(&hw, &frames, gfn(5)).unwrap().commit(&hw, mfn(0x4_0030), Kind::Ram);
    // The TLB remembers the old page.
    read(&hw, &stage2, gfn(5)).unwrap();
    let slot = stage2.prepare(&hw, &frames, gfn(5)).unwrap();
    let (table, index) = (slot.table, slot.index);
    hw.take_ops();
    assert_eq!(slot.commit(&hw, mfn(0x4_0031), Kind::Shared), at(mfn(0x4_0030), Kind::Ram));
    let entry = Descriptor::leaf(mfn(0x4_0031), Kind::Shared, 3).raw();
    assert_eq!(
        hw.take_ops(),
        [
            Op::TableWrite { table, index, entry: 0 },
            Op::FlushPage(VMID, gfn(5).base()),
            Op::TableWrite { table, index, entry },
            Op::TablesWritten,
        ]
    );
    assert_eq!(hw.stale_translation(), None);
    write(&hw, &stage2, gfn(5), 9).unwrap();
    assert_eq!(hw.frame_bytes(mfn(0x4_0031))[0], 9);
}

/// (gfn, order) of every leaf.
fn leaves(hw: &FakeHardware, stage2: &Stage2) -> Vec<(u64, u32)> {
    let mut leaves = Vec::new();
    walk(hw, stage2.root(), |entry| {
        match entry {
            Entry::Leaf { gfn, order, valid, .. } => {
                assert!(valid);
                leaves.push((gfn.get(), order));
            }
            Entry::Table { .. } => {}
            Entry::Malformed { .. } => panic!("{entry:?}"),
        }
        true
    });
    leaves
}

#[test]
fn memory_is_mapped_in_the_largest_blocks() {
    let base = mfn(0x4_0000);
    let count = 1 << 19;
    let hw = FakeHardware::new(base, count);
    let frames = free_frames(base, count);
    let mut stage2 = Stage2::new(&hw, &frames, ONE, VMID, 8).unwrap();
    // 1 GiB; 4 MiB in blocks of 2 MiB; 8 pages.
    stage2.map_blocks(&hw, &frames, gfn(1 << 18), mfn(2 << 18), 18, Kind::Ram).unwrap();
    stage2.map_blocks(&hw, &frames, gfn(2 << 18), mfn(1 << 10), 10, Kind::Ram).unwrap();
    stage2.map_blocks(&hw, &frames, gfn((2 << 18) + 1024), mfn(8), 3, Kind::Ram).unwrap();
    let pages = (0..8).map(|n| ((2 << 18) + 1024 + n, 0));
    let expected = [(1 << 18, 18), (2 << 18, 9), ((2 << 18) + 512, 9)];
    assert_eq!(leaves(&hw, &stage2), expected.into_iter().chain(pages).collect::<Vec<_>>());
    assert_eq!(stage2.tables(), 4);
    for (number, machine) in [((1 << 18) + 0x3_FFFF, (2 << 18) + 0x3_FFFF), ((2 << 18) + 700, 1024 + 700)] {
        assert_eq!(stage2.lookup(&hw, gfn(number)), at(mfn(machine), Kind::Ram));
    }
    assert_eq!(stage2.lookup(&hw, gfn((2 << 18) + 1024 + 8)), None);
    assert_eq!(stage2.highest_gfn(), gfn((2 << 18) + 1024 + 7));
}

#[test]
fn blocks_are_mapped_where_nothing_is_and_aligned() {
    let (hw, frames, mut stage2) = setup(64, 8);
    let _ = stage2.prepare(&hw, &frames, gfn(5)).unwrap().commit(&hw, mfn(0x4_0030), Kind::Ram);
    let map = |stage2: &mut Stage2, at: u64, to: u64, order| {
        stage2.map_blocks(&hw, &frames, gfn(at), mfn(to), order, Kind::Ram)
    };
    assert_eq!(map(&mut stage2, 4, 0x4_0034, 1), Err(MapError::Occupied));
    assert_eq!(map(&mut stage2, 0, 0x4_0000, 9), Err(MapError::Occupied), "a table is there");
    assert_eq!(map(&mut stage2, 1, 0x4_0034, 1), Err(MapError::BadGfn));
    assert_eq!(map(&mut stage2, 8, 0x4_0035, 1), Err(MapError::BadGfn));
    assert_eq!(map(&mut stage2, 0, 0, 28), Err(MapError::BadGfn));
    assert_eq!(map(&mut stage2, 0, 0, u32::MAX), Err(MapError::BadGfn));
}

#[test]
fn splitting_a_block_changes_no_mapping_and_breaks_before_it_makes() {
    let base = mfn(0x4_0000);
    let count = 1 << 18;
    let hw = FakeHardware::new(base, count);
    let frames = free_frames(mfn(0x7_F000), 0x1000);
    let mut stage2 = Stage2::new(&hw, &frames, ONE, VMID, 8).unwrap();
    stage2.map_blocks(&hw, &frames, gfn(1 << 18), base, 18, Kind::Ram).unwrap();
    let page = (1 << 18) + 0x1_2345;
    // The TLB remembers pages of the block, near and far.
    for number in [1 << 18, page - 1, page, (2 << 18) - 1] {
        write(&hw, &stage2, gfn(number), 0x5A).unwrap();
    }
    let slot = stage2.prepare(&hw, &frames, gfn(page)).unwrap();
    assert_eq!(stage2.tables(), 4, "one of 2 MiB blocks, one of pages");
    let all = leaves(&hw, &stage2);
    assert_eq!(all.len(), 511 + 512);
    for number in (1 << 18..2 << 18).step_by(97) {
        assert_eq!(stage2.lookup(&hw, gfn(number)), at(mfn(number - (1 << 18) + base.get()), Kind::Ram));
    }
    assert_eq!(hw.stale_translation(), None);
    assert_eq!(slot.commit(&hw, mfn(0x4_0000), Kind::Shared), at(mfn(0x4_0000 + 0x1_2345), Kind::Ram));
    assert_eq!(read(&hw, &stage2, gfn(page - 1)), Ok(0x5A));
    assert_eq!(hw.stale_translation(), None);
}

#[test]
fn software_sees_a_block_while_it_is_split() {
    let block = Descriptor::leaf(mfn(0x4_0200), Kind::Ram, 2);
    let (hw, frames, mut stage2) = setup(0x1000, 8);
    stage2.map_blocks(&hw, &frames, gfn(0x200), mfn(0x4_0200), 9, Kind::Ram).unwrap();
    let place = Place::first(stage2.root(), gfn(0x200)).unwrap();
    let place = place.below(place.read(&hw).as_table().unwrap(), gfn(0x200));
    assert_eq!(place.read(&hw), block);
    place.write(&hw, block.in_transit());
    hw.tables_written();
    assert_eq!(stage2.lookup(&hw, gfn(0x234)), at(mfn(0x4_0234), Kind::Ram));
    assert_eq!(write(&hw, &stage2, gfn(0x234), 1), Err(Stage2Fault::Translation), "the guest retries");
}

#[test]
fn without_a_table_nothing_changes_whichever_allocation_fails() {
    for exhausted in [false, true] {
        for nth in 0..3 {
            let base = mfn(0x4_0000);
            let hw = FakeHardware::new(base, 1 << 18);
            let frames = free_frames(mfn(0x7_F000), 0x1000);
            let limit = if exhausted { 2 + nth } else { 100 };
            let mut stage2 = Stage2::new(&hw, &frames, ONE, VMID, limit).unwrap();
            stage2.map_blocks(&hw, &frames, gfn(1 << 18), base, 18, Kind::Ram).unwrap();
            if !exhausted {
                frames.fail_after(nth);
            }
            let page = gfn((1 << 18) + 777);
            let prepared = stage2.prepare(&hw, &frames, page).map(|_| ());
            let error = if exhausted { MapError::TableLimit } else { MapError::OutOfMemory };
            assert_eq!(prepared, if nth < 2 { Err(error) } else { Ok(()) });
            for number in [1 << 18, page.get(), (1 << 18) + 0x3_FFFF] {
                let machine = number - (1 << 18) + base.get();
                assert_eq!(stage2.lookup(&hw, gfn(number)), at(mfn(machine), Kind::Ram));
            }
            assert_eq!(u64::from(stage2.tables()), frames.table.total(ONE, Role::Stage2Table));
            assert!(stage2.tables() <= stage2.limit());
            assert_eq!(hw.stale_translation(), None);
        }
    }
}

/// Random maps and unmaps beside a plain dictionary, with a guest that touches pages all the time.
#[test]
fn stage_2_agrees_with_a_dictionary_and_the_tlb_never_lags() {
    let base = mfn(0x4_0000);
    for seed in 1..=8 {
        let hw = FakeHardware::new(base, 0x2000);
        let frames = free_frames(mfn(0x4_1000), 0x1000);
        let mut stage2 = Stage2::new(&hw, &frames, ONE, VMID, 64).unwrap();
        let mut random = Random::new(seed);
        let mut model = std::collections::BTreeMap::new();
        stage2.map_blocks(&hw, &frames, gfn(0x4_0000), base, 9, Kind::Ram).unwrap();
        model.extend((0..512).map(|n| (0x4_0000 + n, (0x4_0000 + n, Kind::Ram))));
        for _ in 0..500 {
            // In and around the block, and at the other end of the space.
            let number = match random.below(3) {
                0 => 0x4_0000 + random.below(1024),
                1 => GFN_LIMIT - 1 - random.below(4),
                _ => random.below(4) << 18,
            };
            let kind = [Kind::Ram, Kind::Shared, Kind::GrantWritable, Kind::GrantReadOnly];
            let kind = kind[usize::try_from(random.below(4)).unwrap()];
            let target = 0x4_0000 + random.below(0x1000);
            let before = model.get(&number).and_then(|(frame, kind)| at(mfn(*frame), *kind));
            match random.below(3) {
                0 => {
                    let slot = stage2.prepare(&hw, &frames, gfn(number)).unwrap();
                    assert_eq!(slot.commit(&hw, mfn(target), kind), before);
                    model.insert(number, (target, kind));
                }
                1 => {
                    let slot = stage2.prepare(&hw, &frames, gfn(number)).unwrap();
                    assert_eq!(slot.clear(&hw), before);
                    model.remove(&number);
                }
                _ => {
                    let wrote = write(&hw, &stage2, gfn(number), 1);
                    let expected = match before {
                        None => Err(Stage2Fault::Translation),
                        Some(Mapping { kind: Kind::GrantReadOnly, .. }) => Err(Stage2Fault::Permission),
                        Some(_) => Ok(()),
                    };
                    assert_eq!(wrote, expected);
                }
            }
            assert_eq!(hw.stale_translation(), None);
        }
        for number in (0x4_0000..0x4_0400).chain(GFN_LIMIT - 4..GFN_LIMIT) {
            let expected = model.get(&number).and_then(|(frame, kind)| at(mfn(*frame), *kind));
            assert_eq!(stage2.lookup(&hw, gfn(number)), expected);
        }
        assert_eq!(leaves(&hw, &stage2).len(), model.len());
    }
}

#[test]
fn a_walk_stops_when_told() {
    let (hw, frames, mut stage2) = setup(64, 8);
    let _ = stage2.prepare(&hw, &frames, gfn(5)).unwrap().commit(&hw, mfn(0x4_0030), Kind::Ram);
    for stop in 1..=3 {
        let mut seen = 0;
        walk(&hw, stage2.root(), |_| {
            seen += 1;
            seen < stop
        });
        assert_eq!(seen, stop);
    }
}
