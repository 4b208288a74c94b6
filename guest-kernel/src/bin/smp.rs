//! Several vCPUs of one domain: starts all, has them count under a lock, pass interrupts and events around a ring, sleep, go off and on
//! again, and powers off from the last one. Prints an `ok` line for each; ends as crashed when one fails. `rounds=` on the command
//! line says how often the ring and the counting go round (default 50), `pv` that its page tables are checked.
#![no_std]
#![no_main]
extern crate alloc;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use guest_kernel::event::{self, Channel};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::lock::Lock;
use guest_kernel::psci::{CpuOnError, Power};
use guest_kernel::smp::{self, Cpu, MAX_CPUS, StartError, Started};
use guest_kernel::{Guest, hypercall, power, println, pv, time, timer};

guest_kernel::main!(main);

#[derive(Debug)]
#[expect(dead_code, reason = "shown when the guest ends")]
enum Failed {
    Check(&'static str),
    Start(StartError),
}

impl From<StartError> for Failed {
    fn from(why: StartError) -> Self {
        Self::Start(why)
    }
}

fn ok(what: &'static str, holds: bool) -> Result<(), Failed> {
    if holds {
        println!("ok - {what}");
        Ok(())
    } else {
        println!("not ok - {what}");
        Err(Failed::Check(what))
    }
}

/// Events or interrupts that a vCPU has received and not passed on.
static RECEIVED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

fn received() {
    RECEIVED[smp::this().index()].fetch_add(1, Ordering::SeqCst);
}

fn main(guest: &Guest) -> Result<(), Failed> {
    let rounds = guest.args().number("rounds").and_then(|n| u32::try_from(n).ok()).unwrap_or(50);
    let others: Vec<Cpu> = smp::all().skip(1).collect();
    println!("smp: {} vCPUs, {rounds} rounds", smp::count());
    ok("whose page tables they are is as configured", pv::is_on() == guest.args().has("pv"))?;
    ok("the interrupt controller starts", interrupt::start(guest.tree.gic).is_ok())?;
    ok("this is the first vCPU, and on", smp::this() == Cpu::FIRST && Cpu::FIRST.power() == Power::On)?;
    ok("the others are off", others.iter().all(|cpu| cpu.power() == Power::Off))?;
    ok("a vCPU that is on cannot be started", smp::switch_on(Cpu::FIRST) == Err(CpuOnError::AlreadyOn))?;
    count(&others, rounds)?;
    ok("all are off again", others.iter().all(|cpu| cpu.power() == Power::Off))?;
    ring("interrupts went around", rounds, send_interrupt)?;
    make_channels().ok_or(Failed::Check("channels"))?;
    ring("events went around", rounds, send_event)?;
    sleep(&others)?;
    idle(&others)?;
    again(&others, rounds)?;
    race(&others)?;
    let Some((last, busy)) = others.split_last() else { return Ok(()) };
    for cpu in busy {
        let _never = smp::start(*cpu, || {
            loop {
                core::hint::spin_loop();
            }
        })?;
    }
    println!("vCPU {} powers off", last.number());
    let _never = smp::start(*last, || {
        // The first waits and the others run: the domain ends all the same.
        power::power_off()
    })?;
    interrupt::wait_until(|| false);
    Ok(())
}

/// Runs `work` on all vCPUs at the same time, on this one too, and waits for all.
fn on_all(work: impl Fn(Cpu) + Send + Clone + 'static) -> Result<(), Failed> {
    let started: Result<Vec<Started>, StartError> = smp::all()
        .skip(1)
        .map(|cpu| {
            let work = work.clone();
            smp::start(cpu, move || work(cpu))
        })
        .collect();
    let started = started?;
    work(Cpu::FIRST);
    started.into_iter().for_each(Started::join);
    Ok(())
}

fn count(others: &[Cpu], rounds: u32) -> Result<(), Failed> {
    // Two words that differ whenever two vCPUs are inside at once.
    static COUNTERS: Lock<(u64, u64)> = Lock::new((0, 0));
    static MIXED: AtomicU64 = AtomicU64::new(0);
    on_all(move |cpu| {
        if smp::this() != cpu {
            MIXED.fetch_add(1, Ordering::SeqCst);
        }
        for _ in 0..rounds {
            let mut counters = COUNTERS.lock();
            if counters.0 != counters.1 {
                MIXED.fetch_add(1, Ordering::SeqCst);
            }
            counters.0 += 1;
            core::hint::black_box(&mut counters);
            counters.1 += 1;
        }
    })?;
    let all = (others.len() as u64 + 1) * u64::from(rounds);
    ok("all counted under one lock", *COUNTERS.lock() == (all, all) && MIXED.load(Ordering::SeqCst) == 0)
}

static CHANNELS: Lock<Vec<Channel>> = Lock::new(Vec::new());

/// A channel to every vCPU, at its number. [`received`] runs where the events arrive.
fn make_channels() -> Option<()> {
    for cpu in smp::all() {
        let channel = Channel::ipi(cpu).ok()?;
        channel.handle(|_| received()).ok()?;
        CHANNELS.lock().push(channel);
    }
    Some(())
}

fn send_interrupt(to: Cpu) {
    if let Some(sgi) = Intid::sgi(1) {
        let _ = interrupt::send(to, sgi);
    }
}

fn send_event(to: Cpu) {
    let port = CHANNELS.lock().get(to.index()).map(Channel::port);
    if let Some(port) = port {
        let _ = hypercall::event_send(port);
    }
}

/// Each vCPU waits for one from the vCPU before it and sends one to the next, so often. The first begins.
fn ring(what: &'static str, rounds: u32, send: fn(Cpu)) -> Result<(), Failed> {
    let (ready, extra) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (all, wrong) = (smp::count(), extra.clone());
    on_all(move |cpu| {
        let listens = Intid::sgi(1).is_some_and(|sgi| interrupt::enable(sgi, received).is_ok());
        if !listens || event::listen().is_err() {
            extra.fetch_add(1, Ordering::SeqCst);
        }
        ready.fetch_add(1, Ordering::SeqCst);
        smp::wake(Cpu::FIRST);
        let next = smp::cpu(cpu.number() + 1).unwrap_or(Cpu::FIRST);
        if cpu == Cpu::FIRST {
            interrupt::wait_until(|| ready.load(Ordering::SeqCst) == all);
            send(next);
        }
        let mine = &RECEIVED[cpu.index()];
        for round in 0..rounds {
            interrupt::wait_until(|| mine.load(Ordering::SeqCst) > 0);
            if mine.fetch_sub(1, Ordering::SeqCst) != 1 {
                extra.fetch_add(1, Ordering::SeqCst);
            }
            if cpu != Cpu::FIRST || round + 1 < rounds {
                send(next);
            }
        }
    })?;
    let left: u32 = RECEIVED.iter().map(|mine| mine.load(Ordering::SeqCst)).sum();
    ok(what, left == 0 && wrong.load(Ordering::SeqCst) == 0)
}

/// Every vCPU's own timer.
fn sleep(others: &[Cpu]) -> Result<(), Failed> {
    static EARLY: AtomicU32 = AtomicU32::new(0);
    static SLEPT: AtomicU32 = AtomicU32::new(0);
    on_all(|cpu| {
        // All different, so that one vCPU's timer does not wake another.
        for step in 1..4 {
            let (began, long) = (time::now(), Duration::from_millis(u64::from(step * (cpu.number() + 1))));
            if timer::sleep(long).is_err() || began.elapsed() < long {
                EARLY.fetch_add(1, Ordering::SeqCst);
            }
        }
        SLEPT.fetch_add(1, Ordering::SeqCst);
    })?;
    let slept = SLEPT.load(Ordering::SeqCst) as usize;
    ok("all slept, each by its own timer", slept == others.len() + 1 && EARLY.load(Ordering::SeqCst) == 0)
}

/// A vCPU that waits is on, and waits for as long as nobody wakes it.
fn idle(others: &[Cpu]) -> Result<(), Failed> {
    let flag = Arc::new(AtomicU32::new(0));
    let mut started = Vec::new();
    for cpu in others {
        let flag = flag.clone();
        started.push(smp::start(*cpu, move || interrupt::wait_until(|| flag.load(Ordering::SeqCst) == 1))?);
    }
    ok("sleep while all others wait", timer::sleep(Duration::from_millis(20)).is_ok())?;
    ok("who waits is on", others.iter().all(|cpu| cpu.power() == Power::On))?;
    ok("and cannot be started", others.iter().all(|cpu| smp::switch_on(*cpu) == Err(CpuOnError::AlreadyOn)))?;
    let twice = others.iter().all(|cpu| matches!(smp::start(*cpu, || ()), Err(StartError::AlreadyOn)));
    ok("nor given another job", twice)?;
    flag.store(1, Ordering::SeqCst);
    for cpu in others {
        smp::wake(*cpu);
    }
    started.into_iter().for_each(Started::join);
    ok("all that waited have ended", others.iter().all(|cpu| cpu.power() == Power::Off))
}

/// Off and on again, as fast as it goes: nothing of the time before is left.
fn again(others: &[Cpu], rounds: u32) -> Result<(), Failed> {
    static RAN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..rounds {
        for cpu in others {
            smp::start(*cpu, || {
                RAN.fetch_add(1, Ordering::SeqCst);
            })?
            .join();
        }
    }
    ok("off and on again", RAN.load(Ordering::SeqCst) as usize == others.len() * rounds as usize)
}

/// All but the last switch the last one on at the same time: one succeeds.
fn race(others: &[Cpu]) -> Result<(), Failed> {
    static SUCCEEDED: AtomicU32 = AtomicU32::new(0);
    static TRIED: AtomicU32 = AtomicU32::new(0);
    static ALREADY: AtomicU32 = AtomicU32::new(0);
    let Some((last, others)) = others.split_last() else { return Ok(()) };
    let last = *last;
    let all = smp::count() - 1;
    // It has no job, so it would go off at once; holding its lock keeps it on until all have tried.
    let hold = smp::keep_from_job(last);
    let mut started = Vec::new();
    let attempt = move || {
        match smp::switch_on(last) {
            Ok(()) => SUCCEEDED.fetch_add(1, Ordering::SeqCst),
            Err(CpuOnError::AlreadyOn) => ALREADY.fetch_add(1, Ordering::SeqCst),
            Err(_) => 0,
        };
        TRIED.fetch_add(1, Ordering::SeqCst);
        smp::wake(Cpu::FIRST);
    };
    for cpu in others {
        started.push(smp::start(*cpu, attempt)?);
    }
    attempt();
    interrupt::wait_until(|| TRIED.load(Ordering::SeqCst) == all);
    drop(hold);
    started.into_iter().for_each(Started::join);
    while last.power() == Power::On {
        let _ = hypercall::sched_yield();
    }
    let (won, refused) = (SUCCEEDED.load(Ordering::SeqCst), ALREADY.load(Ordering::SeqCst));
    ok("of several that switch one vCPU on, one succeeds", won == 1 && refused == all - 1)
}
