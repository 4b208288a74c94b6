//! What went wrong in Xen where two CPUs did things at once, and where a domain was taken apart: one test a row of
//! `tests/advisories.toml`, named after it. vCPUs run on threads of the host.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::panic, reason = "tests")]

use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};

use hypervisor::addr::Ipa;
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{FakeHardware, Op, RAM, Random, World};
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};
use pavo_tests::{ARG, Guest, guest, number, two};
use pv_abi::grant::{EntryFlags, GrantOp, MapGrantRef, UnmapGrantRef};
use pv_abi::{DomId, GrantHandle, GrantRef};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: u64 = RAM + 0x3_0000;
const HOST_MAP: u32 = 2;
const DOMCTL: u64 = 36;
const DESTROY: u32 = 2;

/// A vCPU on a thread of its own, its arguments in a page of its own.
struct Thread<'m> {
    machine: &'m Machine<FakeHardware>,
    id: u16,
    vcpu: u32,
    reschedule: Cell<bool>,
}

impl<'m> Thread<'m> {
    fn new(machine: &'m Machine<FakeHardware>, id: u16, vcpu: u32) -> Self {
        Self { machine, id, vcpu, reschedule: Cell::new(false) }
    }

    fn grant<T: IntoBytes + FromBytes + Immutable + Copy>(&self, op: GrantOp, arg: T) -> (i64, T) {
        let domain = self.machine.domain(DomId(self.id)).unwrap();
        let vcpu = domain.vcpu(self.vcpu).unwrap();
        let current = Current { domain, vcpu, cpu: CpuId(self.vcpu as u8), reschedule: &self.reschedule };
        let at = RAM + 0x1_0000 + u64::from(self.vcpu) * 0x1000;
        let place = Ipa::new(at).unwrap();
        self.machine.hw.guest_write(domain.vmid, domain.stage2_root, place, arg.as_bytes()).unwrap();
        let mut args = [op.number().into(), at, 1, 0, 0];
        for _ in 0..1000 {
            match hypercall(self.machine, &current, number::GRANT_TABLE_OP, args) {
                Outcome::Done(result) => {
                    let mut back = T::new_zeroed();
                    self.machine
                        .hw
                        .guest_read(domain.vmid, domain.stage2_root, place, back.as_mut_bytes())
                        .unwrap();
                    return (result, back);
                }
                Outcome::Restart(left) => args = left,
            }
        }
        panic!("it never ends");
    }

    fn map(&self, dom: u16, gref: u32, at: u64) -> MapGrantRef {
        let op = MapGrantRef {
            host_addr: at,
            flags: HOST_MAP,
            gref: GrantRef(gref),
            dom: DomId(dom),
            ..MapGrantRef::default()
        };
        self.grant(GrantOp::MapGrantRef, op).1
    }

    fn unmap(&self, handle: GrantHandle, at: u64) -> i16 {
        let op = UnmapGrantRef { host_addr: at, handle, ..UnmapGrantRef::default() };
        self.grant(GrantOp::UnmapGrantRef, op).1.status
    }
}

/// Each of two domains grants the other a page by each of some references.
fn granting(references: u32) -> World {
    let world = two();
    for id in 1..=2 {
        for gref in 8..8 + references {
            guest(&world, id).grants(gref, 3 - id, PAGE >> 12, EntryFlags::empty());
        }
    }
    world
}

fn settled(world: &World) {
    check_channels(&world.machine).unwrap();
    world.check();
    for id in 1..=2 {
        assert_eq!(guest(world, id).count(PAGE), 0);
    }
}

#[test]
fn xsa_73_two_domains_that_map_each_others_pages_at_once_wait_for_each_other_and_not_for_ever() {
    let world = granting(4);
    std::thread::scope(|threads| {
        for (id, vcpu) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let thread = Thread::new(&world.machine, id, vcpu);
            threads.spawn(move || {
                for round in 0..100 {
                    let at = 0x5000_0000 + u64::from(vcpu) * 0x1000;
                    let done = thread.map(3 - id, 8 + round % 4, at);
                    if done.status == 0 {
                        assert_eq!(thread.unmap(done.handle, at), 0);
                    }
                }
            });
        }
    });
    settled(&world);
}

#[test]
fn xsa_218a_handles_are_found_while_another_vcpu_makes_the_table_of_them_longer() {
    let world = granting(64);
    std::thread::scope(|threads| {
        for vcpu in 0..2 {
            let thread = Thread::new(&world.machine, 2, vcpu);
            threads.spawn(move || {
                let mut random = Random::new(u64::from(vcpu) + 3);
                let mut held = Vec::new();
                for turn in 0..600_u64 {
                    if held.len() < 40 && random.below(3) != 0 {
                        let at = 0x5000_0000 + (u64::from(vcpu) * 1000 + turn) * 0x1000;
                        let done = thread.map(1, 8 + random.below(64) as u32, at);
                        if done.status == 0 {
                            held.push((done.handle, at));
                        }
                    } else if let Some((handle, at)) = held.pop() {
                        assert_eq!(thread.unmap(handle, at), 0);
                    }
                }
                for (handle, at) in held {
                    assert_eq!(thread.unmap(handle, at), 0);
                }
            });
        }
    });
    settled(&world);
}

#[test]
fn xsa_218b_a_mapping_that_two_vcpus_give_back_at_once_is_given_back_once() {
    let world = granting(1);
    let given = AtomicU32::new(0);
    for _ in 0..300 {
        let at = 0x5000_0000;
        let done = Thread::new(&world.machine, 2, 0).map(1, 8, at);
        assert_eq!(done.status, 0);
        given.store(0, Ordering::SeqCst);
        std::thread::scope(|threads| {
            for vcpu in 0..2 {
                let (thread, given) = (Thread::new(&world.machine, 2, vcpu), &given);
                threads.spawn(move || {
                    given.fetch_add(u32::from(thread.unmap(done.handle, at) == 0), Ordering::SeqCst);
                });
            }
        });
        assert_eq!(given.load(Ordering::SeqCst), 1);
    }
    settled(&world);
}

/// Destroys a domain; how many runs it took, and the most that one did to memory and tables.
fn destroy(world: &World, id: u16) -> (u32, usize) {
    let control = guest(world, 0);
    let mut bytes = [0_u8; 144];
    bytes[..4].copy_from_slice(&DESTROY.to_le_bytes());
    bytes[4..8].copy_from_slice(&0x17_u32.to_le_bytes());
    bytes[8..10].copy_from_slice(&id.to_le_bytes());
    control.write(ARG, &bytes);
    let (mut args, mut most) = ([ARG, 0, 0, 0, 0], 0);
    for runs in 1..20_000 {
        world.machine.hw.take_ops();
        let outcome = control.once(DOMCTL, args);
        let ops = world.machine.hw.take_ops();
        most = most.max(ops.iter().filter(|op| !matches!(op, Op::Read { .. })).count());
        match outcome {
            Outcome::Done(result) => {
                assert_eq!(result, 0);
                return (runs, most);
            }
            Outcome::Restart(left) => args = left,
        }
        for cpu in 0..3 {
            hypervisor::sched::pass(&world.machine, CpuId(cpu), 0);
        }
    }
    panic!("it never ends");
}

/// Most operations on memory and tables in one run of a call: what 20000 instructions at EL2 allow.
const RUN: usize = 400;

/// Maps pages of domain 1, as many as it can, but at most so many; how many.
fn maps(user: Guest<'_>, times: u64) -> u64 {
    for index in 0..times {
        let op = MapGrantRef {
            host_addr: 0x5000_0000 + index * 0x1000,
            flags: HOST_MAP,
            gref: GrantRef(8 + (index % 64) as u32),
            dom: DomId(1),
            ..MapGrantRef::default()
        };
        if user.quick_grant(GrantOp::MapGrantRef, op).1.status != 0 {
            return index;
        }
    }
    times
}

#[test]
fn xsa_380_a_domain_with_as_many_mappings_as_it_may_have_is_destroyed_piece_by_piece() {
    let world = World::with_control(2);
    for gref in 8..72 {
        guest(&world, 1).grants(gref, 2, PAGE >> 12, EntryFlags::empty());
    }
    assert!(maps(guest(&world, 2), 10_000) > 200, "until its quota ends");
    let (runs, most) = destroy(&world, 2);
    assert!(runs > 10 && most < RUN, "{runs} runs, {most} operations in one");
    assert_eq!(guest(&world, 1).count(PAGE), 0);
    world.check();
}

#[test]
fn xsa_89_a_domain_with_much_memory_in_single_pages_is_destroyed_piece_by_piece() {
    let world = World::with_control(2);
    let two = guest(&world, 2);
    // Every second page once taken away: tables of single pages.
    for gfn in (RAM >> 12..(RAM >> 12) + 0x200).step_by(2) {
        two.write(ARG + 0x1000, gfn.as_bytes());
        let arg = pv_abi::memory::Reservation {
            extent_start: pv_abi::GuestHandle(ARG + 0x1000),
            nr_extents: 1,
            extent_order: 0,
            mem_flags: 0,
            domid: DomId::SELF,
            pad: [0; 3],
        };
        // But for the page of the arguments themselves.
        if gfn != ARG >> 12 && gfn != (ARG >> 12) + 1 {
            assert_eq!(two.quick_with(number::MEMORY_OP, 1, arg).0, 1);
        }
    }
    let (runs, most) = destroy(&world, 2);
    assert!(runs > 10 && most < RUN, "{runs} runs, {most} operations in one");
    world.check();
}

#[test]
fn xsa_77_the_control_domains_calls_have_a_budget_too() {
    let world = World::with_control(3);
    // A list of all domains, counters of each: nothing grows with memory.
    let control = guest(&world, 0);
    for (cmd, payload) in [(6_u32, [0_u64, 64]), (0x8000, [0x7FF2, 0])] {
        let mut bytes = [0_u8; 136];
        bytes[..4].copy_from_slice(&cmd.to_le_bytes());
        bytes[4..8].copy_from_slice(&0x15_u32.to_le_bytes());
        bytes[8..24].copy_from_slice(payload.as_bytes());
        control.write(ARG, &bytes);
        world.machine.hw.take_ops();
        control.once(35, [ARG, 0, 0, 0, 0]);
        assert!(world.machine.hw.take_ops().len() < RUN);
    }
    let (_, most) = destroy(&world, 3);
    assert!(most < RUN, "{most}");
}

#[test]
fn row_144_what_comes_after_a_destroyed_domain_finds_nothing_of_it() {
    let world = World::with_control(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    one.grants(8, 2, PAGE >> 12, EntryFlags::empty());
    assert_eq!(maps(two, 1), 1);
    let port = one.unbound(2);
    let theirs = two.bind(1, port);
    destroy(&world, 2);
    // Nothing that it held is left at its peer, and its id names nobody who could be bound to or mapped from.
    assert_eq!((one.count(PAGE), one.close(port)), (0, 0));
    assert!(!one.entry_flags(8).intersects(EntryFlags::READING | EntryFlags::WRITING));
    let bind = pv_abi::event::BindInterdomain {
        remote_dom: DomId(2),
        pad: 0,
        remote_port: theirs,
        local_port: pv_abi::Port(0),
    };
    assert_ne!(one.event(pv_abi::event::EventOp::BindInterdomain, bind).0, 0);
    let op = MapGrantRef {
        host_addr: 0x5000_0000,
        flags: HOST_MAP,
        gref: GrantRef(8),
        dom: DomId(2),
        ..MapGrantRef::default()
    };
    assert_ne!(one.grant(GrantOp::MapGrantRef, op).1.status, 0);
}
