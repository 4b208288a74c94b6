use zerocopy::IntoBytes;

use super::*;
use crate::addr::Ipa;
use crate::fake::{MEMORY_KIB, RAM, World};
use crate::frame::Role;
use crate::hypercall::Stop;

/// A page of the guest's own for arguments.
const ARG: u64 = RAM + 0x1_0000;
/// A guest frame in the space that Xen leaves for grant tables.
const GRANT_GFN: u64 = 0x3_8000;

fn call(world: &World, cmd: u64, arg: &[u8]) -> Result<u64, Errno> {
    world.guest_write(1, ARG, arg);
    let mut args = [cmd, ARG, 0, 0, 0];
    for _ in 0..64 {
        let result = memory_op(&world.machine, &world.current(1, 0), &args);
        world.check();
        match result {
            Ok(value) => return Ok(value),
            Err(Stop::Errno(errno)) => return Err(errno),
            Err(Stop::Restart(rest)) => args = rest,
        }
    }
    panic!("it never ends")
}

fn request(space: u32, idx: u64, gpfn: u64) -> AddToPhysmap {
    AddToPhysmap { domid: DomId::SELF, size: 1, space, idx, gpfn }
}

fn add(world: &World, request: &AddToPhysmap) -> Result<u64, Errno> {
    call(world, 7, request.as_bytes())
}

fn remove(world: &World, gpfn: u64) -> Result<u64, Errno> {
    call(world, 15, RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn }.as_bytes())
}

fn at(world: &World, gfn: u64) -> Option<Mapping> {
    crate::stage2::lookup(&world.machine.hw, world.domain(1).stage2_root, Gfn::new(gfn).unwrap())
}

#[expect(clippy::unnecessary_wraps, reason = "what lookups give")]
fn shared(mfn: Mfn) -> Option<Mapping> {
    Some(Mapping { mfn, kind: Kind::Shared })
}

#[test]
fn the_shared_info_page_appears_where_the_guest_wants_it() {
    let world = World::new(1);
    assert_eq!(add(&world, &request(0, 0, GRANT_GFN)), Ok(0));
    assert_eq!(at(&world, GRANT_GFN), shared(world.domain(1).shared_info));
    assert_eq!(world.guest_read::<4>(1, GRANT_GFN << 12), [0; 4]);
    assert_eq!(add(&world, &request(0, 1, GRANT_GFN + 1)), Err(Errno::Einval), "there is one");
}

#[test]
fn a_shared_page_is_at_one_place_until_it_leaves_it() {
    let world = World::new(1);
    let info = world.domain(1).shared_info;
    assert_eq!(add(&world, &request(0, 0, GRANT_GFN)), Ok(0));
    assert_eq!(add(&world, &request(0, 0, GRANT_GFN + 1)), Err(Errno::Ebusy));
    assert_eq!(add(&world, &request(0, 0, GRANT_GFN)), Err(Errno::Ebusy), "Xen refuses the same place too");
    assert_eq!(remove(&world, GRANT_GFN), Ok(0));
    assert_eq!(at(&world, GRANT_GFN), None);
    assert_eq!(add(&world, &request(0, 0, GRANT_GFN + 1)), Ok(0));
    assert_eq!(at(&world, GRANT_GFN + 1), shared(info));
    assert_eq!(world.machine.frames.table.home(info), Gfn::new(GRANT_GFN + 1));
    // Replaced by a page of the grant table, it is free to go elsewhere.
    assert_eq!(add(&world, &request(1, 0, GRANT_GFN + 1)), Ok(0));
    assert_eq!(world.machine.frames.table.home(info), None);
    assert_eq!(add(&world, &request(0, 0, GRANT_GFN + 2)), Ok(0));
    assert_eq!(at(&world, GRANT_GFN + 2), shared(info));
}

#[test]
fn shared_info_over_ram_hides_a_page_that_stays_the_domains() {
    let world = World::new(1);
    let gfn = (RAM >> 12) + 5;
    world.guest_write(1, gfn << 12, b"before");
    let before = at(&world, gfn).unwrap();
    let had = world.machine.frames.table.total(DomId(1), Role::Data);
    // The page lies in a block, which is split.
    assert_eq!(add(&world, &request(0, 0, gfn)), Ok(0));
    assert_eq!(world.guest_read::<6>(1, gfn << 12), [0; 6]);
    assert_eq!(world.guest_read::<6>(1, (gfn + 1) << 12), [0; 6]);
    assert_eq!(world.machine.frames.table.total(DomId(1), Role::Data), had);
    assert_eq!(world.machine.frames.table.state(before.mfn).unwrap().owner, DomId(1));
}

#[test]
fn the_grant_table_grows_to_the_frame_that_is_mapped_and_no_further() {
    let world = World::new(1);
    assert_eq!(world.domain(1).state.lock().grants.frames(), 1);
    assert_eq!(add(&world, &request(1, 2, GRANT_GFN)), Ok(0));
    let frames: std::vec::Vec<_> =
        (0..3).map(|n| world.domain(1).state.lock().grants.frame(n).unwrap()).collect();
    assert_eq!(at(&world, GRANT_GFN), shared(frames[2]));
    assert_eq!(world.guest_read::<8>(1, GRANT_GFN << 12), [0; 8]);
    assert_eq!(add(&world, &request(1, 0, GRANT_GFN + 1)), Ok(0));
    assert_eq!(at(&world, GRANT_GFN + 1), shared(frames[0]));
    for idx in [4, 0xFFFF_FFFF] {
        assert_eq!(add(&world, &request(1, idx, GRANT_GFN + 2)), Err(Errno::Einval), "the quota is 4 frames");
    }
    assert_eq!(add(&world, &request(1, 1 << 32 | 1, GRANT_GFN + 2)), Ok(0), "Xen looks at 32 bits");
    assert_eq!(at(&world, GRANT_GFN + 2), shared(frames[1]));
    assert_eq!(world.domain(1).state.lock().grants.frames(), 3);
}

#[test]
fn each_space_answers_as_xen_on_arm_does() {
    let world = World::new(2);
    // Numbers of XENMAPSPACE_*: 2 gmfn, 3 gmfn_range, 4 gmfn_foreign, 5 dev_mmio.
    for (space, errno) in
        [(2, Errno::Enosys), (3, Errno::Enosys), (4, Errno::Enosys), (5, Errno::Eacces), (6, Errno::Enosys)]
    {
        assert_eq!(add(&world, &request(space, 0, GRANT_GFN)), Err(errno), "space {space}");
    }
    assert_eq!(add(&world, &AddToPhysmap { size: 0, ..request(3, 0, GRANT_GFN) }), Ok(0), "nothing to do");
    assert_eq!(add(&world, &AddToPhysmap { size: 2, ..request(3, 0, u64::MAX - 1) }), Err(Errno::Eoverflow));
    assert_eq!(call(&world, 7 | 2 << 6, request(3, 0, GRANT_GFN).as_bytes()), Err(Errno::Eilseq));
    assert_eq!(call(&world, 7 | 0x1_0000 << 6, request(0, 0, GRANT_GFN).as_bytes()), Err(Errno::Edom));
    for gpfn in [u64::MAX, 1 << 28, 1 << 40, 1 << 52] {
        assert_eq!(add(&world, &request(0, 0, gpfn)), Err(Errno::Einval), "no such guest frame");
    }
    let of = |domid| AddToPhysmap { domid, ..request(0, 0, GRANT_GFN) };
    assert_eq!(add(&world, &of(DomId(2))), Err(Errno::Eperm));
    assert_eq!(add(&world, &of(DomId(3))), Err(Errno::Esrch));
    assert_eq!(at(&world, GRANT_GFN), None);
    assert_eq!(add(&world, &of(DomId(1))), Ok(0), "by its own number");
}

#[test]
fn without_a_table_nothing_is_placed() {
    for nth in 0..3 {
        let world = World::new(1);
        world.machine.frames.fail_after(nth);
        let far = 1 << 27;
        let placed = add(&world, &request(0, 0, far));
        assert_eq!(placed, if nth < 2 { Err(Errno::Enomem) } else { Ok(0) });
        assert_eq!(at(&world, far).is_some(), nth == 2);
        world.machine.frames.fail_after(u32::MAX);
        assert_eq!(
            add(&world, &request(0, 0, far + 1)).is_ok(),
            nth < 2,
            "a refused page is free to be placed"
        );
    }
}

#[test]
fn what_is_removed_is_ram_or_a_shared_page() {
    let world = World::new(2);
    let gfn = (RAM >> 12) + 7;
    let had = world.domain(1).state.lock().memory;
    assert_eq!(remove(&world, gfn), Ok(0));
    assert_eq!(at(&world, gfn), None);
    assert_eq!(remove(&world, gfn), Err(Errno::Enoent));
    assert_eq!(world.domain(1).state.lock().memory, had, "it stays the domain's");
    for nothing in [GRANT_GFN, 1 << 28, u64::MAX] {
        assert_eq!(remove(&world, nothing), Err(Errno::Enoent));
    }
    let of = |domid| RemoveFromPhysmap { domid, pad: [0; 3], gpfn: gfn };
    assert_eq!(call(&world, 15, of(DomId(2)).as_bytes()), Err(Errno::Eperm));
    assert_eq!(call(&world, 15, of(DomId(9)).as_bytes()), Err(Errno::Esrch));
    assert_eq!(call(&world, 15 | 1 << 6, of(DomId(1)).as_bytes()), Err(Errno::Einval));
}

#[test]
fn numbers_are_told_of_the_own_domain() {
    let world = World::new(2);
    let frames = MEMORY_KIB / 4;
    assert_eq!(call(&world, 2, &[]), Ok(world.machine.frames.table.end()));
    for (cmd, number) in [(3, frames), (4, frames), (14, (RAM >> 12) + frames - 1)] {
        assert_eq!(call(&world, cmd, DomId::SELF.as_bytes()), Ok(number));
        assert_eq!(call(&world, cmd, DomId(2).as_bytes()), Err(Errno::Eperm));
        assert_eq!(call(&world, cmd, DomId(3).as_bytes()), Err(Errno::Esrch));
        assert_eq!(call(&world, cmd | 1 << 6, DomId::SELF.as_bytes()), Err(Errno::Einval));
        let current = world.current(1, 0);
        let nowhere = memory_op(&world.machine, &current, &[cmd, 0x1000, 0, 0, 0]);
        assert_eq!(nowhere, Err(Stop::Errno(Errno::Efault)));
    }
    // A page mapped higher moves the highest frame.
    assert_eq!(add(&world, &request(0, 0, 0x10_0000)), Ok(0));
    assert_eq!(call(&world, 14, DomId::SELF.as_bytes()), Ok(0x10_0000));
}

#[test]
fn what_this_machine_does_not_do_is_not_implemented() {
    let world = World::new(1);
    for cmd in [5, 8, 9, 10, 16, 22, 25, 63] {
        assert_eq!(call(&world, cmd, &[0; 64]), Err(Errno::Enosys), "operation {cmd}");
    }
    assert_eq!(
        (call(&world, 18, &[]), call(&world, 19, &[])),
        (Ok(0), Ok(0)),
        "pages shared by deduplication"
    );
}

#[test]
fn a_guest_touches_nothing_of_others_whatever_it_asks() {
    let world = World::new(2);
    let mut random = crate::fake::Random::new(1);
    let secret = Ipa::new(RAM).unwrap();
    world.guest_write(2, secret.get(), b"secret");
    for _ in 0..300 {
        let gpfn = match random.below(3) {
            0 => (RAM >> 12) + random.below(0x500),
            1 => GRANT_GFN + random.below(8),
            _ => random.below(u64::MAX),
        };
        let domid = [DomId::SELF, DomId(1), DomId(2), DomId(3)][usize::try_from(random.below(4)).unwrap()];
        if random.below(3) == 0 {
            let _ = call(&world, 15, RemoveFromPhysmap { domid, pad: [0; 3], gpfn }.as_bytes());
        } else {
            let space = u32::try_from(random.below(7)).unwrap();
            let _ = add(&world, &AddToPhysmap { domid, size: 1, space, idx: random.below(6), gpfn });
        }
        if at(&world, ARG >> 12).is_none_or(|mapping| mapping.kind != Kind::Ram) {
            break;
        }
    }
    assert_eq!(world.guest_read::<6>(2, secret.get()), *b"secret");
    world.check();
}
