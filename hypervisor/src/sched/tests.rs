//! What guests get of CPUs, in the model: shares, caps, affinities, wake-ups.
use super::model::{Does, Guest, Model, SECOND, STEP, with_cpus};
use super::settings::{set_affinity, set_cap, set_weight};
use super::*;
use crate::domain::{Fault, Life, Stage};
use crate::fake::{Op, Random, World};

/// Whether each part of the whole is within 5 % of its weight.
fn assert_shares(ran: &[u64], weights: &[u64]) {
    let (all, total) = (ran.iter().sum::<u64>(), weights.iter().sum::<u64>());
    for (ran, weight) in ran.iter().zip(weights) {
        let due = all * weight / total;
        assert!(ran.abs_diff(due) * 20 <= due, "{ran} instead of {due}, of {all}");
    }
}

#[test]
fn equals_share_a_cpu_equally_and_all_of_it() {
    let world = World::new(4);
    let mut model = Model::new(&world, 1, &[Does::Spins; 8]);
    model.run_for(SECOND);
    assert_shares(&model.ran(), &[1; 8]);
    assert!(model.ran().iter().sum::<u64>() >= SECOND - 2 * STEP);
    assert!(model.switches[0] <= 501, "turns are 2 ms: {}", model.switches[0]);
}

#[test]
fn weights_share_a_cpu_in_their_ratio() {
    let world = World::new(4);
    for (domain, weight) in world.machine.domains.iter().zip([128, 256, 512, 1024]) {
        set_weight(domain, weight);
    }
    let mut model = Model::new(&world, 1, &[Does::Spins; 8]);
    model.run_for(SECOND);
    assert_shares(&model.ran(), &[1, 1, 2, 2, 4, 4, 8, 8]);
}

#[test]
fn odd_numbers_share_two_cpus_equally_by_moving() {
    for count in [3, 5, 7] {
        let world = World::new(4);
        let mut model = Model::new(&world, 2, &vec![Does::Spins; count]);
        model.run_for(SECOND);
        assert_shares(&model.ran(), &vec![1; count]);
        assert!(model.ran().iter().sum::<u64>() >= 2 * SECOND - 40 * STEP, "both are busy");
    }
}

#[test]
fn weights_hold_over_two_cpus_and_nobody_gets_more_than_one() {
    let world = World::new(4);
    for (domain, weight) in world.machine.domains.iter().zip([64, 128, 256, 512]) {
        set_weight(domain, weight);
    }
    let mut model = Model::new(&world, 2, &[Does::Spins; 8]);
    model.run_for(SECOND);
    // 1 + 1 + 2 + 2 + 4 + 4 + 8 + 8 = 30 parts of two CPUs: the largest is 0.53 of one.
    assert_shares(&model.ran(), &[1, 1, 2, 2, 4, 4, 8, 8]);

    let world = World::new(2);
    set_weight(&world.machine.domains[0], 60_000);
    let mut model = Model::new(&world, 2, &[Does::Spins; 4]);
    model.run_for(SECOND);
    let ran = model.ran();
    // Both heavy ones have a CPU each, nearly.
    assert!(ran[0] + ran[1] > 2 * SECOND * 95 / 100, "{ran:?}");
}

#[test]
fn a_vcpu_that_outweighs_its_cpu_does_not_save_time_up_against_newcomers() {
    let world = World::new(2);
    set_weight(&world.machine.domains[0], 2560);
    let mut model = Model::new(&world, 2, &[Does::Spins, Does::Spins, Does::Spins]);
    // The second vCPU weighs as much and has a CPU too; the third gets 1/21 of two.
    model.run_for(SECOND);
    let before = model.ran();
    assert!(before[0].abs_diff(before[1]) < SECOND / 20, "{before:?}");
    // One that comes now shares with the other light one, at once.
    let fourth = &world.machine.domains[1].vcpus[1];
    model.guests.push(Guest {
        vcpu: fourth,
        does: Does::Spins,
        left: u64::MAX,
        wakes: 0,
        ran: 0,
        latest: 0,
        woke: Some(model.now),
        given: 0,
    });
    assert!(start(&world.machine, fourth));
    model.serve_kicks();
    model.run_for(SECOND);
    let (third, fourth) = (model.ran()[2] - before[2], model.ran()[3]);
    assert!(third.abs_diff(fourth) * 10 < third, "{third} {fourth}");
}

#[test]
fn a_cap_holds_on_an_idle_machine_and_for_all_vcpus_together() {
    for (percent, spinning) in [(30, 1), (50, 2), (120, 2)] {
        let world = World::new(1);
        set_cap(&world.machine.domains[0], percent);
        let mut model = Model::new(&world, 2, &vec![Does::Spins; spinning]);
        model.run_for(SECOND);
        let (ran, due) = (model.ran().iter().sum::<u64>(), SECOND * u64::from(percent) / 100);
        assert!(ran.abs_diff(due) * 20 <= due, "{ran} instead of {due}");
    }
}

#[test]
fn what_a_capped_domain_may_not_use_goes_to_the_others() {
    let world = World::new(2);
    set_cap(&world.machine.domains[0], 20);
    let mut model = Model::new(&world, 1, &[Does::Spins, Does::Spins, Does::Spins]);
    model.run_for(SECOND);
    assert_shares(&model.ran(), &[10, 10, 80]);
}

#[test]
fn who_sleeps_a_lot_runs_soon_after_waking_beside_four_that_spin() {
    let world = World::new(3);
    // By its own running it comes as close behind the pool's time as it can.
    let does = [Does::Sleeps(STEP, SECOND / 1000), Does::Spins, Does::Spins, Does::Spins, Does::Spins];
    let mut model = Model::new(&world, 1, &does);
    // At first nobody has had anything.
    model.run_for(SECOND / 50);
    model.guests[0].latest = 0;
    model.run_for(SECOND);
    let grain = Ticks::new(SECOND).grain;
    assert!(model.guests[0].latest <= grain + 2 * STEP, "{} ticks", model.guests[0].latest);
    assert_shares(&model.ran()[1..], &[1; 4]);
}

#[test]
fn who_yields_gives_the_cpu_to_another_however_little_it_has_had() {
    let world = World::new(1);
    let mut model = Model::new(&world, 1, &[Does::Spins, Does::Yields(STEP)]);
    model.run_for(SECOND);
    // The one spins for its turns of 2 ms, the other yields after a step: each of its stays is followed by a turn.
    let turns = model.ran()[0] / Ticks::new(SECOND).turn;
    let stays = model.ran()[1] / STEP;
    assert!(stays <= turns + turns / 4, "{stays} stays, {turns} turns");
}

#[test]
fn storms_of_wake_ups_and_yields_take_nothing_from_who_spins() {
    for attack in [Does::Sleeps(STEP, STEP), Does::Yields(STEP), Does::Sleeps(8 * STEP, STEP)] {
        let world = World::new(3);
        let does = [Does::Spins, Does::Spins, attack, attack, attack, attack];
        let mut model = Model::new(&world, 1, &does);
        model.run_for(SECOND);
        for spinner in &model.ran()[..2] {
            // A sixth of the CPU is theirs, whatever the others do.
            assert!(*spinner >= SECOND / 6 * 98 / 100, "{spinner}: {attack:?}");
        }
        // Invariant 4: who is interrupted has had the CPU for a grain each time. And the attack is one: it does interrupt, unless it only yields.
        let spun = model.ran()[..2].iter().sum::<u64>();
        let most = spun / Ticks::new(SECOND).grain;
        assert!(model.preemptions <= most, "{} of {most}: {attack:?}", model.preemptions);
        let wakes = matches!(attack, Does::Sleeps(..));
        assert!(!wakes || model.preemptions > most / 20, "{} of {most}: {attack:?}", model.preemptions);
    }
}

#[test]
fn two_that_start_each_other_and_go_off_have_what_they_run_on_their_account() {
    for runs in [STEP, 10 * STEP, 90 * STEP, 110 * STEP] {
        let world = World::new(2);
        let does = [Does::Relays(runs, 1), Does::Relays(runs, 0), Does::Spins];
        let mut model = Model::new(&world, 1, &does);
        model.run_for(SECOND);
        let ran = model.ran();
        // They weigh twice as much as the third.
        assert!(ran[2] >= SECOND / 3 * 98 / 100, "{ran:?}: {runs}");
        assert!(ran[0] + ran[1] > SECOND / 4, "{ran:?}: {runs}");

        let world = World::new(2);
        set_cap(&world.machine.domains[0], 10);
        let mut model = Model::new(&world, 1, &does);
        model.run_for(SECOND);
        let ran = model.ran();
        let most = SECOND / 10 + Ticks::new(SECOND).turn;
        assert!(ran[0] + ran[1] <= most, "{ran:?}: {runs}");
    }
}

#[test]
fn who_is_paused_again_and_again_has_what_it_runs_on_its_account() {
    let world = World::new(2);
    let mut model = Model::new(&world, 1, &[Does::Spins, Does::Sleeps(STEP, 1 << 60), Does::Spins]);
    let domain = &world.machine.domains[0];
    let control = world.current(2, 0);
    while model.now < SECOND {
        // Just before the end of its turn, if it has one.
        let guest = &model.guests[0];
        if guest.vcpu.run.get() == Run::Running && guest.ran - guest.given >= 90 * STEP {
            pause::pause(&world.machine, &control, domain).unwrap();
            model.look[0] = 0;
            model.run_for(STEP);
            pause::unpause(&world.machine, &control, domain).unwrap();
            // The caller is on that CPU.
            model.look[0] = 0;
        }
        model.run_for(STEP);
    }
    let ran = model.ran();
    assert!(ran[2] >= SECOND / 2 * 95 / 100, "{ran:?}");
}

#[test]
fn a_vcpu_that_may_use_one_cpu_is_never_elsewhere_and_is_moved_when_that_changes() {
    let world = World::new(2);
    let mut model = Model::new(&world, 2, &[Does::Spins; 4]);
    assert!(!set_affinity(&world.machine, model.guests[0].vcpu, 0b100), "there is no such CPU");
    let mut random = Random::new(3);
    for _ in 0..200 {
        let guest = usize::try_from(random.below(4)).unwrap();
        let vcpu = model.guests[guest].vcpu;
        let cpus = u32::try_from(1 + random.below(3)).unwrap();
        assert!(set_affinity(&world.machine, vcpu, cpus));
        for cpu in 0..2 {
            // What the image does at the kick.
            if model.running[cpu] == Some(guest)
                && !world.machine.sched.allows(vcpu, CpuId(u8::try_from(cpu).unwrap()))
            {
                vcpu.on.clear();
                model.running[cpu] = None;
                world.machine.sched.put_out(&world.machine, vcpu);
                model.look[cpu] = 0;
            }
        }
        model.serve_kicks();
        model.run_for(random.below(SECOND / 100));
    }
}

#[test]
fn who_waits_for_its_allowance_goes_on_where_it_may_run_by_then() {
    let world = World::new(1);
    set_cap(&world.machine.domains[0], 10);
    let mut model = Model::new(&world, 2, &[Does::Spins]);
    model.run_for(SECOND / 200);
    let vcpu = model.guests[0].vcpu;
    assert!(vcpu.share.parked.load(Relaxed), "a millisecond of ten was its allowance");
    let other = CpuId(1 - vcpu.home.get().0);
    assert!(set_affinity(&world.machine, vcpu, bit(other)));
    // Where it runs the model looks.
    let before = model.ran()[0];
    model.run_for(SECOND / 50);
    assert_eq!(vcpu.home.get(), other);
    assert!(model.ran()[0] > before);
}

#[test]
fn turns_that_end_late_change_nobodys_share() {
    let world = with_cpus(4, false);
    let mut model = Model::new(&world, 4, &[Does::Spins; 4]);
    model.run_for(SECOND / 20);
    for guest in &model.guests[..3] {
        assert!(set_affinity(&world.machine, guest.vcpu, 0b1000));
    }
    model.serve_kicks();
    // Up to a turn.
    model.late = SECOND / 500;
    model.run_for(SECOND / 50);
    let ran = model.ran_in(SECOND);
    for spun in &ran[..3] {
        assert!(spun.abs_diff(SECOND / 3) * 20 <= SECOND / 3, "{ran:?}");
    }
}

#[test]
fn a_partition_leaves_the_ends_of_others_to_cpus_that_are_none_and_tells_one_of_them_once() {
    let world = with_cpus(2, true);
    let machine = &world.machine;
    let (fair, own) = (CpuId(0), CpuId(1));
    let alone = world.domain(8);
    machine.hw.take_ops();
    assert!(end(&world, 1), "its end begins");
    let attend = |cpu, has| crate::life::attend(machine, cpu, machine.hw.counter(), has);
    assert_eq!(attend(own, Some(alone)), u64::MAX);
    assert!(machine.hw.take_ops().contains(&Op::Kick(fair)), "somebody has to");
    assert_eq!(attend(own, Some(alone)), u64::MAX);
    assert!(!machine.hw.take_ops().contains(&Op::Kick(fair)), "it knows");
    // The other CPU does it all.
    let mut steps = 0;
    while attend(fair, None) != u64::MAX {
        for cpu in [fair, own] {
            pass(machine, cpu, machine.hw.counter());
        }
        assert_eq!(attend(own, Some(alone)), u64::MAX);
        steps += 1;
        assert!(steps < 10_000);
    }
    assert_eq!(world.domain(1).life.stage(), Stage::Dead);
    // Whose domain has ended has nothing else to do.
    assert!(end(&world, 2));
    assert!(end(&world, 8));
    assert_ne!(attend(own, Some(alone)), u64::MAX);
}

/// Ends a domain that comes not again.
fn end(world: &World, id: u16) -> bool {
    let domain = world.domain(id);
    domain.life.end(Life::Destroyed(Fault::ByControl));
    crate::life::destroy(&world.machine, domain);
    domain.life.stage() == Stage::Dying
}

/// Four CPUs' worth of guests on two: CPU 1 has one of its own, which does as told and weighs so much; the others are kept to CPU 0.
fn beside_one_on_its_own<'a>(world: &'a World, own: Does, weight: u16, does: &[Does]) -> Model<'a> {
    set_weight(world.domain(4), weight);
    let mut all = does.to_vec();
    all.resize(6, Does::Sleeps(STEP, 1 << 60));
    all.push(own);
    let mut model = Model::new(world, 2, &all);
    for guest in &model.guests {
        assert!(set_affinity(&world.machine, guest.vcpu, if guest.vcpu.domain.0 == 4 { 0b10 } else { 0b01 }));
    }
    model.serve_kicks();
    model.run_for(SECOND / 50);
    model
}

#[test]
fn weights_hold_whatever_one_does_that_has_a_cpu_of_its_own() {
    for own in [Does::Spins, Does::Sleeps(45 * STEP, 5 * STEP), Does::Yields(3 * STEP)] {
        for weight in [1, 256, 60_000] {
            let world = World::new(4);
            set_weight(world.domain(2), 512);
            let mut model =
                beside_one_on_its_own(&world, own, weight, &[Does::Spins, Does::Spins, Does::Spins]);
            let ran = model.ran_in(SECOND);
            assert_shares(&ran[..3], &[1, 1, 2]);
        }
    }
}

#[test]
fn who_sleeps_wakes_in_time_whatever_one_does_that_has_a_cpu_of_its_own() {
    for weight in [1, 256] {
        let world = World::new(4);
        let sleeper = Does::Sleeps(STEP, 60 * STEP);
        let does = [Does::Spins, Does::Spins, Does::Spins, Does::Spins, sleeper];
        let mut model = beside_one_on_its_own(&world, Does::Sleeps(45 * STEP, 5 * STEP), weight, &does);
        model.guests[4].latest = 0;
        model.run_for(SECOND);
        let grain = Ticks::new(SECOND).grain;
        assert!(
            model.guests[4].latest <= grain + 2 * STEP,
            "{} of {grain}: {weight}",
            model.guests[4].latest
        );
    }
}

#[test]
fn who_comes_from_a_cpu_of_its_own_waits_no_longer_than_others() {
    let world = World::new(4);
    let mut model = beside_one_on_its_own(&world, Does::Spins, 256, &[Does::Spins; 3]);
    model.run_for(SECOND);
    // Now four share the first CPU, and nobody makes up for what that one had.
    assert!(set_affinity(&world.machine, model.guests[6].vcpu, 0b01));
    model.serve_kicks();
    model.run_for(SECOND / 50);
    let ran = model.ran_in(SECOND / 2);
    assert_shares(&[ran[0], ran[1], ran[2], ran[6]], &[1; 4]);
    // And back: the CPU that had nothing to do for so long is in the others' time at once.
    assert!(set_affinity(&world.machine, model.guests[6].vcpu, 0b11));
    assert!(set_affinity(&world.machine, model.guests[2].vcpu, 0b11));
    model.serve_kicks();
    model.run_for(SECOND / 50);
    let ran = model.ran_in(SECOND / 2);
    assert_shares(&[ran[0], ran[1], ran[2], ran[6]], &[1; 4]);
}

#[test]
fn heavy_weights_age_by_every_tick() {
    for weight in [256, 1024, 32_768, 65_535] {
        let world = World::new(2);
        for domain in [1, 2] {
            set_weight(world.domain(domain), weight);
        }
        let mut model = Model::new(&world, 1, &[Does::Spins, Does::Sleeps(STEP, 1 << 60), Does::Spins]);
        // One of them is charged each 70 ticks, as who polls is.
        for _ in 0..SECOND / STEP {
            model.step();
            let vcpu = model.guests[0].vcpu;
            if vcpu.run.get() == Run::Running {
                let sched = &world.machine.sched;
                let home = sched.cpu(vcpu.home.get()).unwrap();
                for part in (0..STEP).step_by(70) {
                    sched.charge(&world.machine, home, vcpu, model.now - STEP + part);
                }
                sched.charge(&world.machine, home, vcpu, model.now);
            }
        }
        let ran = model.ran();
        assert_shares(&[ran[0], ran[2]], &[1, 1]);
    }
}

#[test]
fn who_has_slept_beside_one_that_was_alone_shares_with_it_and_no_more() {
    for blocks in [false, true] {
        let world = World::new(2);
        let mut model = Model::new(&world, 1, &[Does::Spins, Does::Sleeps(2 * SECOND, SECOND)]);
        model.guests[1].left = STEP;
        if blocks {
            // The one that was alone sleeps for a moment when the other comes.
            model.guests[0].does = Does::Sleeps(2 * SECOND, STEP);
            model.guests[0].left = SECOND;
        }
        model.run_for(SECOND + 10 * STEP);
        let ran = model.ran_in(SECOND / 2);
        assert_shares(&ran, &[1, 1]);
    }
}
