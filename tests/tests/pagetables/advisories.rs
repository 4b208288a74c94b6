//! What went wrong in Xen with page tables that guests change (`tests/advisories.toml`), where it concerns more than one table or domain.
use super::*;
use pv_abi::GrantHandle;
use pv_abi::grant::{EntryFlags, MapGrantRef, UnmapGrantRef};

/// `GNTMAP_host_map`, and with `GNTMAP_readonly`.
const FOR_WRITING: u32 = 2;
const FOR_READING: u32 = 6;
/// Reference and place of grants.
const GREF: u32 = 8;
const HERE: u64 = 0x3800_5000;

/// A domain grants another a page, which maps it at [`HERE`]. (Domain 1's tables are checked.)
fn mapped(from: &Guest<'_>, to: &Guest<'_>, page: u64, entry: EntryFlags, flags: u32) -> GrantHandle {
    from.grants(GREF, to.id, page >> 12, entry);
    let map = MapGrantRef {
        host_addr: HERE,
        flags,
        gref: pv_abi::GrantRef(GREF),
        dom: from.dom(),
        ..MapGrantRef::default()
    };
    let (result, map) = to.with(number::GRANT_TABLE_OP, 0, map);
    assert_eq!((result, map.status), (0, 0));
    map.handle
}

#[test]
fn xsa_217_a_page_that_another_domain_has_let_go_is_a_table_that_it_does_not_write() {
    let world = world();
    let [one, two] = [1, 2].map(|id| guest(&world, id));
    clear(&one, L3);
    let handle = mapped(&one, &two, L3, EntryFlags::empty(), FOR_WRITING);
    assert_eq!(pin(&one, 3, L3), EBUSY);
    // Warm in its TLB.
    tries_to_write(&two, HERE).unwrap();
    let unmap = UnmapGrantRef { host_addr: HERE, handle, ..UnmapGrantRef::default() };
    assert_eq!(two.with(number::GRANT_TABLE_OP, 1, unmap).1.status, 0);
    clear(&one, L3);
    assert_eq!(pin(&one, 3, L3), 0);
    assert_eq!(tries_to_write(&two, HERE), Err(Stage2Fault::Translation));
    world.check();
}

#[test]
fn xsa_234_an_entry_that_says_writable_writes_no_page_that_was_granted_for_reading() {
    let world = world();
    let [one, two] = [1, 2].map(|id| guest(&world, id));
    install(&one);
    let handle = mapped(&two, &one, PAGES, EntryFlags::READONLY, FOR_READING);
    assert_eq!(update(&one, L3 + 8, HERE | DATA), 0);
    assert_eq!(access(&one, VA, GuestAccess::Read), Ok(two.place(PAGES).frame().get()));
    assert_eq!(access(&one, VA, GuestAccess::Write), Err(GuestFault::Stage2));
    // And the other way round: the handle of a mapping whose entry was changed gives it back all the same.
    assert_eq!(update(&one, L3 + 8, HERE | DATA | READ_ONLY), 0);
    let unmap = UnmapGrantRef { host_addr: HERE, handle, ..UnmapGrantRef::default() };
    assert_eq!(one.with(number::GRANT_TABLE_OP, 1, unmap).1.status, 0);
    assert_eq!(access(&one, VA, GuestAccess::Read), Err(GuestFault::Stage2));
    world.check();
}

#[test]
fn xsa_113_commands_that_are_not_offered_keep_no_reference_however_often() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let gfn = PAGES + 0x7000;
    for _ in 0..2000 {
        // MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_PRESERVE_AD, MMU_PT_UPDATE_NO_TRANSLATE, and none.
        for command in 1..8 {
            assert_ne!(quick(&one, gfn | command, gfn >> 12), 0);
            assert_ne!(quick(&one, (L3 + 8 * 9) | command, gfn | DATA), 0);
        }
    }
    assert_eq!(role(&one, gfn), (Role::Data, 0));
    one.write(ARG + 0x100, &(gfn >> 12).to_le_bytes());
    let asked = Reservation {
        extent_start: GuestHandle(ARG + 0x100),
        nr_extents: 1,
        domid: DomId::SELF,
        ..Reservation::default()
    };
    assert_eq!(one.with(number::MEMORY_OP, 1, asked).0, 1, "it can be given back, once");
    assert_eq!(one.with(number::MEMORY_OP, 1, asked).0, 0);
    world.check();
}

/// Runs are of some 4000 instructions, so of some twenty links: those of the table itself, and not 512 times as many for what is below.
const RUNS: u32 = 30;

#[test]
fn xsa_290_a_tree_that_has_the_same_tables_everywhere_costs_what_its_tables_do() {
    let world = world();
    let one = guest(&world, 1);
    clear(&one, L3);
    for (page, below) in [(L2, L3), (L1, L2), (ROOT, L1)] {
        for index in 0..512 {
            put(&one, page + 8 * index, below | LINK);
        }
    }
    let runs = |cmd: u32, page: u64| {
        let mut args = [OPS, 1, 0, SELF, 0];
        one.write(OPS, &[u64::from(cmd), page >> 12, 0].map(u64::to_le_bytes).concat());
        (1..=512).find(|_| match one.once(MMUEXT_OP, args) {
            Outcome::Done(result) => {
                assert_eq!(result, 0);
                true
            }
            Outcome::Restart(rest) => {
                args = rest;
                false
            }
        })
    };
    for (level, page) in [(3, L3), (2, L2), (1, L1), (0, ROOT)] {
        assert!(runs(PIN[level], page) <= Some(RUNS), "level {level}");
    }
    assert_eq!([ROOT, L1, L2, L3].map(|page| role(&one, page).1), [0, 512, 512, 512]);
    for page in [ROOT, L1, L2, L3] {
        assert!(runs(UNPIN, page) <= Some(RUNS));
    }
    world.check();
}

#[test]
fn xsa_494_each_vcpu_is_served_by_its_own_roots() {
    let world = world();
    let one = guest(&world, 1);
    install(&one);
    let other = Guest { world: &world, id: 1, vcpu: 1 };
    let domain = world.domain(1);
    assert!(
        hypervisor::pagetable::start(&world.machine, domain, &mut domain.state.lock(), &domain.vcpus[1])
            .is_some()
    );
    // A lower half of its own, whose table of level 3 is another.
    let [root, l1, l2, l3] = [0, 1, 2, 3].map(|index| PAGES + 0x8000 + 0x1000 * index);
    for (page, index, below) in [(l3, 0, 0), (l2, 0, l3 | LINK), (l1, 0x100, l2 | LINK), (root, 0, l1 | LINK)]
    {
        clear(&one, page);
        put(&one, page + 8 * index, below);
    }
    for (level, page) in [(3, l3), (2, l2), (1, l1), (0, root)] {
        assert_eq!(pin(&one, level, page), 0, "level {level}");
    }
    assert_eq!(ext(&other, NEW_USER_BASEPTR, root >> 12, 6), 0);
    let entry = |table: u64, index: u64| one.read::<u64>(table + 8 * index);
    assert_eq!(other.call(UPDATE_VA_MAPPING, [VA + 0x5000, PAGES | DATA, 1, 0, 0]), 0);
    assert_eq!((entry(L3, 6), entry(l3, 6)), (0, PAGES | DATA));
    assert_eq!(one.call(UPDATE_VA_MAPPING, [VA + 0x6000, PAGES | DATA, 1, 0, 0]), 0);
    assert_eq!((entry(L3, 7), entry(l3, 7)), (PAGES | DATA, 0));
    world.check();
}
