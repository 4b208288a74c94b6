//! The shipping library does what the specification says, whatever two or three guests call.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use hypervisor::domain::{Life, Stage};
use hypervisor::evtchn::check_channels;
use hypervisor::fake::World;
use hypervisor::frame::Role;
use hypervisor::hardware::CpuId;
use hypervisor::life;
use hypervisor::sched_op::end_domain;
use pavo_tests::drive::{Run, Sequence, Setup, shrink};
use pv_abi::DomId;
use pv_abi::sched::ShutdownReason;

fn plays(setup: impl Into<Setup>, seeds: std::ops::Range<u64>, steps: usize) {
    let setup = setup.into();
    for seed in seeds {
        let sequence = Sequence::of_seed(seed, steps);
        if let Err(failure) = Run::play(setup, &sequence, false) {
            let (small, failure) = shrink(setup, &sequence, &failure);
            panic!("seed {seed}: {}\n{}\n--seed {setup}:{small}", failure.what, failure.story.join("\n"));
        }
    }
}

#[test]
fn two_domains_do_what_is_specified() {
    plays(2, 0..6, 400);
}

#[test]
fn domains_that_a_control_domain_pauses_do_what_is_specified() {
    for paging in [false, true] {
        plays(Setup { domains: 2, paging, control: true, most: None }, 500..503, 400);
    }
}

#[test]
fn three_domains_do_what_is_specified() {
    plays(3, 100..103, 400);
}

#[test]
fn a_domain_with_checked_page_tables_does_what_is_specified() {
    plays(Setup::PAGING, 200..206, 400);
}

/// That guests take events out of queues while they can rely on what comes is no rare thing.
#[test]
fn events_are_taken_out_of_queues_as_promised() {
    let taken: u64 = (400..404)
        .map(|seed| {
            let mut run = Run::new(2);
            for step in &Sequence::of_seed(seed, 1500).0 {
                run.step(step).unwrap();
            }
            run.taken
        })
        .sum();
    assert!(taken > 50, "{taken} events");
}

#[test]
fn counts_that_are_full_refuse() {
    plays(Setup::TINY, 300..303, 400);
    plays(Setup { paging: false, ..Setup::TINY }, 303..305, 400);
}

/// Lets the hypervisor work until it has nothing to do.
fn work(world: &World) {
    for _ in 0..10_000 {
        for cpu in 0..2 {
            world.machine.frames.quiescent.pass(CpuId(cpu));
        }
        world.machine.frames.reclaim();
        if life::work(&world.machine, CpuId(0), 0) == u64::MAX {
            return;
        }
    }
    panic!("it never ends");
}

/// Domains are ended one after the other, in whatever state calls have left them, page tables half-way pinned included: each leaves a
/// machine in order, and with the last everything is back but root tables and shared info, which stay with a domain's number.
#[test]
fn xsa_310_domains_that_end_in_any_state_give_everything_back() {
    for seed in 0..6 {
        let (steps, setup) = ([40, 90, 160][seed % 3], if seed % 2 == 0 { Setup::PAGING } else { 3.into() });
        let mut run = Run::new(setup);
        let table = &run.world.machine.frames.table;
        let owned = |id: u16| Role::ALL.map(|role| table.total(DomId(id), role)).iter().sum::<u64>();
        let all = run.world.machine.frames.free_frames() + (1..=setup.domains).map(owned).sum::<u64>();
        for step in &Sequence::of_seed(400 + seed as u64, steps).0 {
            run.step(step).unwrap();
        }
        let world = &run.world;
        for id in 1..=setup.domains {
            let ended = Life::Shutdown(ShutdownReason::Poweroff);
            // They leave their CPUs.
            for vcpu in world.domain(id).vcpus {
                vcpu.run.set(hypervisor::vcpu::Run::Offline);
                let _ = world.current(id, vcpu.number);
                world.machine.hw.leave_roots();
            }
            end_domain(&world.machine, &world.current(id, 0), world.domain(id), ended);
            work(world);
            world.check();
            check_channels(&world.machine).unwrap();
            assert_eq!(world.domain(id).life.stage(), Stage::Dead, "seed {seed}, domain {id}");
        }
        let table = &world.machine.frames.table;
        let left =
            Role::ALL.map(|role| (1..=setup.domains).map(|id| table.total(DomId(id), role)).sum::<u64>());
        let stays = u64::from(setup.domains);
        for (role, left) in Role::ALL.into_iter().zip(left) {
            let expected = match role {
                Role::Shared => stays,
                Role::Stage2Table => 2 * stays,
                _ => 0,
            };
            assert_eq!(left, expected, "seed {seed}: {role:?}");
        }
        assert_eq!(
            table.total(DomId::XEN, Role::Data),
            0,
            "seed {seed}: what nobody has mapped any more is free"
        );
        let back = world.machine.frames.free_frames() + table.total(DomId::XEN, Role::Limbo);
        assert_eq!(back, all - 3 * stays, "seed {seed}");
    }
}
