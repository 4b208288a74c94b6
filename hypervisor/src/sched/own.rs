//! Wake-ups on the waker's own CPU: it asks the scheduler at once.
use std::vec::Vec;

use super::settings::{set_cap, set_weight};
use super::*;
use crate::fake::{COUNTER_FREQUENCY, Op, World};

/// 2 ms and 250 us, in ticks.
const TURN: u64 = COUNTER_FREQUENCY / 500;
const GRAIN: u64 = COUNTER_FREQUENCY / 4_000;
const CPU: CpuId = CpuId(0);

/// The only CPU, which runs the first domain beside others that sleep and weigh more: as all have had as much, their requests are served before.
struct One<'w> {
    world: &'w World,
    running: Option<&'w Vcpu>,
}

impl<'w> One<'w> {
    fn beside_sleepers(world: &'w World) -> Self {
        let mut cpu = One { world, running: None };
        for domain in world.machine.domains.get(1..).unwrap() {
            set_weight(domain, 512);
            assert!(start(&world.machine, cpu.vcpu(domain.id.0)));
            cpu.look();
            cpu.sleep();
        }
        assert!(start(&world.machine, cpu.vcpu(1)));
        cpu.look();
        assert_eq!(cpu.runs(), Some(1));
        cpu
    }

    fn vcpu(&self, id: u16) -> &'w Vcpu {
        self.world.domain(id).vcpu(0).unwrap()
    }

    /// Whose vCPU runs.
    fn runs(&self) -> Option<u16> {
        self.running.map(|vcpu| vcpu.domain.0)
    }

    /// Asks the scheduler; what was asked for before is done with.
    fn look(&mut self) {
        let machine = &self.world.machine;
        let before = self.running.filter(|vcpu| vcpu.run.get() == Run::Running);
        self.running = machine.sched.choose(machine, CPU, machine.hw.counter(), before).next;
        self.world.take_reschedule();
        machine.hw.take_ops();
        machine.hw.take_look(CPU);
    }

    fn sleep(&mut self) {
        let running = self.running.unwrap();
        block(&self.world.machine, &self.world.current(running.domain.0, 0), None, || false);
        self.look();
    }

    fn advance(&self, ticks: u64) {
        self.world.machine.hw.advance(ticks);
    }

    /// The first domain wakes another; what was done to the machine for it.
    fn wake(&self, id: u16) -> Vec<Op> {
        wake(&self.world.machine, &self.world.current(1, 0), self.vcpu(id));
        assert_eq!(self.vcpu(id).run.get(), Run::Runnable);
        self.world.machine.hw.take_ops()
    }
}

#[test]
fn a_wake_up_on_ones_own_cpu_preempts_at_once_who_has_had_its_grain() {
    let world = World::with_cpus(2, 1);
    let mut cpu = One::beside_sleepers(&world);
    let given = world.machine.hw.counter();
    cpu.advance(GRAIN);
    // The timer that is due already counts where a CPU that has just asked wakes somebody: it asks again when its guest has exited.
    assert_eq!(cpu.wake(2), [Op::LookBy(CPU, given + GRAIN)]);
    assert!(world.take_reschedule());
    assert_eq!(world.machine.sched.looks(CPU), 0, "it looks at once");
    cpu.look();
    assert_eq!(cpu.runs(), Some(2));
}

#[test]
fn a_wake_up_on_ones_own_cpu_preempts_at_once_who_has_had_its_turn_in_less_than_a_grain() {
    let world = World::with_cpus(2, 1);
    let mut cpu = One::beside_sleepers(&world);
    cpu.advance(TURN - 100);
    // It takes its blocking back: it has the CPU anew, and the rest of its turn.
    block(&world.machine, &world.current(1, 0), None, || true);
    cpu.look();
    assert_eq!(cpu.runs(), Some(1));
    cpu.advance(100);
    cpu.wake(2);
    assert!(world.take_reschedule());
    cpu.look();
    assert_eq!(cpu.runs(), Some(2));
}

#[test]
fn a_wake_up_on_ones_own_cpu_leaves_a_timer_that_comes_earlier() {
    let world = World::with_cpus(2, 1);
    // A hundredth of 10 ms, from the second period on: less than a grain.
    set_cap(world.domain(1), 1);
    world.machine.hw.advance(COUNTER_FREQUENCY / 100);
    let mut cpu = One::beside_sleepers(&world);
    let looks = world.machine.sched.looks(CPU);
    assert!(looks < world.machine.hw.counter() + GRAIN, "its allowance ends");
    cpu.advance(100);
    assert_eq!(cpu.wake(2), []);
    assert!(!world.take_reschedule());
    cpu.advance(looks - world.machine.hw.counter());
    cpu.look();
    assert_eq!(cpu.runs(), Some(2));
}

#[test]
fn a_wake_up_where_nobody_runs_is_looked_at_at_once() {
    let world = World::with_cpus(2, 1);
    let mut cpu = One::beside_sleepers(&world);
    cpu.sleep();
    assert!(cpu.running.is_none());
    // Before a grain has passed since the machine started: no moment says by itself that nobody runs.
    assert!(world.machine.hw.counter() < GRAIN);
    cpu.wake(2);
    assert!(world.take_reschedule());
    cpu.look();
    assert_eq!(cpu.runs(), Some(2));
}
