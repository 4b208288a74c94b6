//! The protocols: what each thread does, by calls of the shipping library, and what must hold when all have ended.
use std::cell::Cell;
use std::rc::Rc;

use hypervisor::addr::{FrameAddr, Ipa, Mfn};
use hypervisor::devicetree::Paging;
use hypervisor::domain::{Fault, Life};
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{FakeHardware, Op, RAM, World, free_frames};
use hypervisor::hardware::{CpuId, Hardware};
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};
use hypervisor::vcpu::{CpuCell, Run, Vcpu};
use hypervisor::vgic::{Intid, PrivateIntid, VcpuShared};
use hypervisor::{pause, runstate, sched, sched_op, stage2};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::thread;
use pv_abi::DomId;

use crate::closing;
use crate::entries;
use crate::granted::granted;
use crate::queues;

/// Something that is done without a lock.
pub struct Protocol {
    pub name: &'static str,
    pub what: &'static str,
    /// How lines of the shipping source begin, behind the name of their function, whose orderings must be missed when they are taken away.
    pub needs: &'static [&'static str],
    pub body: fn(),
}

pub const ALL: &[Protocol] = &[
    Protocol {
        name: "mailbox",
        what: "interrupts for a vCPU elsewhere: none is lost, and who takes one sees what it is about",
        needs: &["post: self.mailbox.fetch_or(", "take_mail: let mail = self.mailbox.swap("],
        body: mailbox,
    },
    Protocol {
        name: "registers",
        what: "a vCPU's registers are saved before another CPU loads them",
        needs: &["get: match self.0.load(Ordering::Acquire)", "clear: self.0.store("],
        body: registers,
    },
    Protocol {
        name: "limbo",
        what: "a frame that was looked up without a lock is not used again before its users have passed",
        needs: &[
            "pass: count.store(",
            "pass: fence(",
            "now: fence(",
            "now: self.0.each_ref().map(|count| count.load(",
        ],
        body: limbo,
    },
    Protocol {
        name: "block",
        what: "a vCPU that blocks and one that wakes it: the wake-up is not lost",
        needs: &["wake: fence(", "block: fence("],
        body: block,
    },
    Protocol {
        name: "poll",
        what: "a vCPU that polls a masked port and one that sends to it, as hypercalls",
        needs: &["block: fence("],
        body: poll,
    },
    Protocol {
        name: "close",
        what: "both ends of a channel are closed at once, each chosen without a lock: both are free, and nobody waits for ever",
        needs: &[],
        body: close,
    },
    Protocol {
        name: "close-again",
        what: "a port is closed while its peer binds to it: the close is made again with both locks, and no end is left alone",
        needs: &[],
        body: closing::again,
    },
    Protocol {
        name: "pause",
        what: "a domain is paused while a CPU chooses its vCPU: what is still when the pause is over stays still",
        needs: &["pause: fence(", "decide: fence("],
        body: pause,
    },
    Protocol {
        name: "unpause",
        what: "the last pause ends while a CPU chooses the vCPU: it is not forgotten",
        needs: &["hold: fence(", "unpause: fence("],
        body: unpause,
    },
    Protocol {
        name: "idle",
        what: "a CPU runs out of work while another queues a vCPU: somebody runs it, or is told",
        needs: &["choose: fence(", "offer: fence("],
        body: idle,
    },
    Protocol {
        name: "end",
        what: "a domain ends while a CPU chooses its vCPU: it does not run on untold; the first end counts",
        needs: &["decide: fence(", "announce: fence("],
        body: end,
    },
    Protocol {
        name: "role",
        what: "a run-state area is moved and its page becomes text while a CPU tells the vCPU's times there: text is not written",
        needs: &[],
        body: role,
    },
    Protocol {
        name: "granted",
        what: "a granted page is given back and becomes text while a call of a sibling's writes its result there: text is not written",
        needs: &[],
        body: granted,
    },
    Protocol {
        name: "queue-take",
        what: "an event is linked behind one that the guest is just taking out: each comes once",
        needs: &[],
        body: queues::take,
    },
    Protocol {
        name: "queue-mask",
        what: "an event is linked behind one that the guest masks and unmasks meanwhile: each comes once",
        needs: &[],
        body: queues::mask,
    },
    Protocol {
        name: "queue-grow",
        what: "an event is sent while its array page comes: it comes once",
        needs: &[],
        body: queues::grow,
    },
    Protocol {
        name: "entry",
        what: "a granter ends access while a call copies: nothing that it writes afterwards is seen, and the entry's marks are gone",
        needs: &[],
        body: entries::entry,
    },
];

/// A machine of two domains with two vCPUs each, for one execution.
pub fn machine() -> &'static Machine<FakeHardware> {
    let machine = built(|| Box::leak(Box::new(World::tight(2).machine)));
    for (cpu, id) in [(0, 1), (1, 2)] {
        let vcpu = vcpu(machine, id);
        vcpu.home.set(CpuId(cpu));
        vcpu.run.set(Run::Running);
    }
    machine
}

/// Made on a stack that is large enough: Loom's threads have small ones.
pub fn built<T: Sync>(make: impl FnOnce() -> &'static mut T + Send + 'static) -> &'static T {
    std::thread::spawn(|| -> &'static T { make() }).join().unwrap()
}

fn vcpu(machine: &Machine<FakeHardware>, id: u16) -> &Vcpu {
    machine.domain(DomId(id)).unwrap().vcpu(0).unwrap()
}

/// vCPU 0 of a domain as the caller on a CPU.
pub fn current(machine: &'static Machine<FakeHardware>, id: u16, cpu: u8) -> Current<'static> {
    let reschedule = Box::leak(Box::new(Cell::new(false)));
    Current {
        domain: machine.domain(DomId(id)).unwrap(),
        vcpu: vcpu(machine, id),
        cpu: CpuId(cpu),
        reschedule,
    }
}

fn choose(machine: &'static Machine<FakeHardware>, cpu: u8) -> Option<&'static Vcpu> {
    machine.sched.choose(machine, CpuId(cpu), 0, None).next
}

/// Runs two threads to their ends.
pub fn both<A: 'static, B: 'static>(
    one: impl FnOnce() -> A + 'static,
    other: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let one = thread::spawn(one);
    let other = other();
    (one.join().unwrap(), other)
}

/// The first run-state area, and the next; and where the arguments of calls are.
const AREAS: [u64; 2] = [RAM + 0x3_0000, RAM + 0x3_1000];
const ARGUMENTS: u64 = RAM + 0x1_0000;

fn role() {
    let machine = built(|| Box::leak(Box::new(World::with_paging(1, Paging::Pv).machine)));
    let current = current(machine, 1, 0);
    let (domain, other) = (current.domain, current.domain.vcpu(1).unwrap());
    model_core::begin();
    let calls = move |current: &Current<'static>, number: u64, args: [u64; 2], words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        machine
            .hw
            .guest_write(domain.vmid, domain.stage2_root, Ipa::new(ARGUMENTS).unwrap(), &bytes)
            .unwrap();
        let [first, second] = args;
        let args = if number == MMUEXT_OP {
            [ARGUMENTS, 1, 0, u64::from(DomId::SELF.0), 0]
        } else {
            [first, second, ARGUMENTS, 0, 0]
        };
        assert_eq!(hypercall(machine, current, number, args), Outcome::Done(0));
    };
    let moves = move |current: &Current<'static>, to: u64| calls(current, VCPU_OP, [5, 1], &[to]);
    let text = move |current: &Current<'static>, cmd: u64| {
        calls(current, MMUEXT_OP, [0; 2], &[cmd, AREAS[0] >> 12, 0]);
    };
    let page =
        stage2::lookup(&machine.hw, domain.stage2_root, Ipa::new(AREAS[0]).unwrap().frame()).unwrap().mfn;
    // Rehearsal.
    moves(&current, AREAS[0]);
    runstate::publish(machine, other);
    moves(&current, AREAS[1]);
    text(&current, PIN_TEXT);
    text(&current, UNPIN);
    moves(&current, AREAS[0]);
    let tells = move || runstate::publish(machine, other);
    let becomes = move || {
        moves(&current, AREAS[1]);
        machine.hw.write(FrameAddr::start(page), &[0; 4096]);
        text(&current, PIN_TEXT);
        machine.hw.frame_bytes(page)
    };
    let ((), checked) = both(tells, becomes);
    assert!(machine.hw.frame_bytes(page) == checked, "text is written");
}

const VCPU_OP: u64 = 24;
const MMUEXT_OP: u64 = 26;
/// Ours: text of EL0; `MMUEXT_UNPIN_TABLE`.
const PIN_TEXT: u64 = 0x8001;
const UNPIN: u64 = 4;

fn mailbox() {
    let shared: Rc<VcpuShared> = Rc::new(VcpuShared::new());
    model_core::begin();
    let events = Intid::Private(PrivateIntid::EVENT_UPCALL);
    let timer = Intid::Private(PrivateIntid::VIRTUAL_TIMER);
    let _ = (shared.raise_remote(events), shared.emptied());
    // Of an event, and of the timer: what there is to be seen, and whether the owner was told.
    let about = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
    let told = Arc::new(AtomicBool::new(false));
    let poster = |intid: Intid, which: usize| {
        let (shared, about, told) = (shared.clone(), about.clone(), told.clone());
        move || {
            about[which].store(true, Relaxed);
            if shared.raise_remote(intid) {
                told.store(true, Relaxed);
            }
        }
    };
    let look = {
        let (shared, about) = (shared.clone(), about.clone());
        move || {
            let taken = shared.emptied();
            for (bit, about) in
                [PrivateIntid::EVENT_UPCALL, PrivateIntid::VIRTUAL_TIMER].into_iter().zip(about.iter())
            {
                assert!(
                    taken & bit.bit() == 0 || about.load(Relaxed),
                    "an interrupt comes before what it is about"
                );
            }
            taken
        }
    };
    let posters = [thread::spawn(poster(events, 0)), thread::spawn(poster(timer, 1))];
    let mut taken = look();
    for poster in posters {
        poster.join().unwrap();
    }
    if told.load(Relaxed) {
        taken |= look();
    }
    let both = PrivateIntid::EVENT_UPCALL.bit() | PrivateIntid::VIRTUAL_TIMER.bit();
    assert_eq!(taken, both, "an interrupt is lost");
}

fn registers() {
    let on = Rc::new(CpuCell::none());
    model_core::begin();
    on.set(CpuId(0));
    let registers = Arc::new(UnsafeCell::new(0));
    let (first, saved) = (on.clone(), registers.clone());
    let leaves = move || {
        // Loom says so when another thread reads at the same time.
        saved.with_mut(|_| ());
        first.clear();
    };
    let arrives = move || {
        if on.get().is_none() {
            registers.with(|_| ());
            on.set(CpuId(1));
        }
    };
    both(leaves, arrives);
}

fn limbo() {
    let frames = built(|| Box::leak(Box::new(free_frames(Mfn::new(0x4_0000).unwrap(), 4))));
    let quiescent = &frames.quiescent;
    quiescent.pass(CpuId(0));
    model_core::begin();
    quiescent.pass(CpuId(0));
    let _ = quiescent.now();
    // A table entry, written with its flush done, and what it leads to.
    let mapped = Arc::new(AtomicBool::new(true));
    let frame = Arc::new(UnsafeCell::new(0));
    let (entry, used) = (mapped.clone(), frame.clone());
    let uses = move || {
        for _ in 0..2 {
            if entry.load(Relaxed) {
                used.with(|_| ());
            }
            quiescent.pass(CpuId(0));
        }
    };
    let takes = move || {
        mapped.store(false, Relaxed);
        let then = quiescent.now();
        for _ in 0..2 {
            if quiescent.late(&then).next().is_none() {
                frame.with_mut(|_| ());
                return;
            }
        }
    };
    both(uses, takes);
}

fn block() {
    let machine = machine();
    model_core::begin();
    let (sleeper, waker) = (current(machine, 1, 0), current(machine, 2, 1));
    // Rehearsal.
    sched::block(machine, &sleeper, None, || false);
    sched::wake(machine, &waker, sleeper.vcpu);
    let _ = (choose(machine, 1), choose(machine, 0));
    sleeper.vcpu.home.set(CpuId(0));
    assert_eq!(sleeper.vcpu.run.get(), Run::Running);
    let event = Arc::new(AtomicBool::new(false));
    let (seen, vcpu) = (event.clone(), sleeper.vcpu);
    let sleeps = move || sched::block(machine, &sleeper, None, || seen.load(Relaxed));
    let wakes = move || {
        event.store(true, Relaxed);
        sched::wake(machine, &waker, vcpu);
    };
    both(sleeps, wakes);
    assert_eq!(vcpu.run.get(), Run::Runnable, "a wake-up is lost");
    let runs = choose(machine, 0).is_some() || choose(machine, 1).is_some();
    assert!(runs, "a vCPU is runnable and in no queue");
}

/// Where arguments lie in a guest's memory.
pub const ARG: u64 = RAM + 0x1_0000;

pub fn call(
    machine: &Machine<FakeHardware>,
    current: &Current<'_>,
    number: u64,
    cmd: u64,
    words: &[u32],
) -> i64 {
    argument(machine, current, words);
    match hypercall(machine, current, number, [cmd, ARG, 1, 0, 0]) {
        Outcome::Done(result) => result,
        Outcome::Restart(_) => panic!("it is short"),
    }
}

/// Writes what a call is given, to [`ARG`].
pub fn argument(machine: &Machine<FakeHardware>, current: &Current<'_>, words: &[u32]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (domain, at) = (current.domain, Ipa::new(ARG).unwrap());
    machine.hw.guest_write(domain.vmid, domain.stage2_root, at, &bytes).unwrap();
}

pub const EVENT_CHANNEL_OP: u64 = 32;
const SCHED_OP: u64 = 29;

/// Domain 1 has made port 1 for domain 2, which has bound to it.
pub fn channel(one: &Current<'_>, other: &Current<'_>, machine: &Machine<FakeHardware>) {
    assert_eq!(call(machine, one, EVENT_CHANNEL_OP, 6, &[0x2_7FF0, 0]), 0);
    assert_eq!(call(machine, other, EVENT_CHANNEL_OP, 0, &[1, 1, 0]), 0);
}

/// The words of port 1 in a domain's shared-info page: pending, mask.
fn words(current: &Current<'_>) -> [FrameAddr; 2] {
    [48, 48 + 512].map(|offset| FrameAddr::new(current.domain.shared_info, offset).unwrap())
}

fn poll() {
    let machine = machine();
    let (sleeper, sender) = (current(machine, 1, 0), current(machine, 2, 1));
    channel(&sleeper, &sender, machine);
    let [pending, mask] = words(&sleeper);
    machine.hw.write(mask, &2_u64.to_le_bytes());
    // A list of one port behind the arguments.
    let list = ARG + 64;
    let at = Ipa::new(list).unwrap();
    machine
        .hw
        .guest_write(sleeper.domain.vmid, sleeper.domain.stage2_root, at, &1_u32.to_le_bytes())
        .unwrap();
    let asked = [u32::try_from(list).unwrap(), 0, 1, 0, 0, 0];
    model_core::begin();
    // Rehearsal: it sleeps, is woken and runs.
    assert_eq!(call(machine, &sleeper, SCHED_OP, 3, &asked), 0);
    assert_eq!(sleeper.vcpu.run.get(), Run::Blocked);
    assert_eq!(call(machine, &sender, EVENT_CHANNEL_OP, 4, &[1]), 0);
    let _ = (choose(machine, 1), choose(machine, 0));
    sleeper.vcpu.home.set(CpuId(0));
    assert_eq!(sleeper.vcpu.run.get(), Run::Running);
    machine.hw.write(pending, &[0; 8]);
    let vcpu = sleeper.vcpu;
    let sleeps = move || assert_eq!(call(machine, &sleeper, SCHED_OP, 3, &asked), 0);
    let sends = move || assert_eq!(call(machine, &sender, EVENT_CHANNEL_OP, 4, &[1]), 0);
    both(sleeps, sends);
    assert_ne!(vcpu.run.get(), Run::Blocked, "an event does not wake who polls for it");
}

fn close() {
    let machine = machine();
    let (one, other) = (current(machine, 1, 0), current(machine, 2, 1));
    model_core::begin();
    // Rehearsal.
    channel(&one, &other, machine);
    assert_eq!(call(machine, &one, EVENT_CHANNEL_OP, 3, &[1]), 0);
    assert_eq!(call(machine, &other, EVENT_CHANNEL_OP, 3, &[1]), 0);
    channel(&one, &other, machine);
    let close = move |current: Current<'static>| {
        assert_eq!(call(machine, &current, EVENT_CHANNEL_OP, 3, &[1]), 0);
        current
    };
    let (one, other) = both(move || close(one), move || close(other));
    // The port can be made anew on both sides: it is free.
    channel(&one, &other, machine);
    check_channels(machine).expect("a channel has one end");
}

/// A domain whose vCPU is queued on CPU 0, and was held up by a pause before.
fn queued() -> (&'static Machine<FakeHardware>, Current<'static>, Current<'static>) {
    let machine = machine();
    let (it, control) = (current(machine, 1, 0), current(machine, 2, 1));
    it.vcpu.run.set(Run::Offline);
    model_core::begin();
    // Rehearsal.
    assert!(sched::start(machine, it.vcpu));
    pause::pause(machine, &control, it.domain).unwrap();
    while choose(machine, 0).is_some() {}
    assert!(pause::is_still(it.domain));
    pause::unpause(machine, &control, it.domain).unwrap();
    let _ = (choose(machine, 0), choose(machine, 1));
    sched::block(machine, &it, None, || false);
    sched::wake(machine, &control, it.vcpu);
    // To CPU 0, if CPU 1 had nothing to do.
    if it.vcpu.home.get() != CpuId(0) {
        assert!(choose(machine, 1).is_some());
        it.vcpu.run.set(Run::Offline);
        it.vcpu.home.set(CpuId(0));
        assert!(sched::start(machine, it.vcpu));
    }
    machine.hw.take_ops();
    (machine, it, control)
}

fn pause() {
    let (machine, it, control) = queued();
    let (domain, vcpu) = (it.domain, it.vcpu);
    let chooses = move || choose(machine, 0).is_some();
    let pauses = move || {
        pause::pause(machine, &control, domain).unwrap();
        pause::is_still(domain)
    };
    let (runs, still) = both(chooses, pauses);
    assert!(!(runs && still), "a vCPU runs while its domain is paused and still");
    if runs {
        let told = machine.hw.take_ops().contains(&Op::Kick(CpuId(0)));
        assert!(told, "a vCPU runs on, and its CPU is not told of the pause");
    } else {
        assert_eq!(vcpu.run.get(), Run::Paused);
    }
}

fn unpause() {
    let (machine, it, control) = queued();
    let (domain, vcpu) = (it.domain, it.vcpu);
    pause::pause(machine, &control, domain).unwrap();
    let chooses = move || choose(machine, 0).is_some();
    let (runs, ()) = both(chooses, move || pause::unpause(machine, &control, domain).unwrap());
    if !runs {
        assert_eq!(vcpu.run.get(), Run::Runnable, "a vCPU is forgotten");
        assert!(choose(machine, 0).is_some() || choose(machine, 1).is_some(), "it is in no queue");
    }
}

fn idle() {
    let machine = machine();
    model_core::begin();
    let (it, other) = (current(machine, 1, 0), current(machine, 2, 0));
    other.vcpu.home.set(CpuId(0));
    // Rehearsal: it sleeps, is woken by the one that runs on CPU 0, runs on CPU 1, and sleeps again.
    let _ = choose(machine, 1);
    sched::block(machine, &it, None, || false);
    sched::wake(machine, &other, it.vcpu);
    while choose(machine, 1).is_none() {}
    let here = current(machine, 1, 1);
    sched::block(machine, &here, None, || false);
    it.vcpu.home.set(CpuId(0));
    // CPU 1 gets something to do: it is not idle. What it had ends.
    let busy = machine.domain(DomId(2)).unwrap().vcpu(1).unwrap();
    busy.home.set(CpuId(1));
    assert!(sched::start(machine, busy) && choose(machine, 1).is_some());
    busy.run.set(Run::Offline);
    machine.hw.take_ops();
    let vcpu = it.vcpu;
    let looks = move || choose(machine, 1).is_some();
    let (runs, ()) = both(looks, move || sched::wake(machine, &other, vcpu));
    let told = machine.hw.take_ops().contains(&Op::Kick(CpuId(1)));
    assert!(runs || told, "a vCPU waits, and a CPU has nothing to do");
}

fn end() {
    let (machine, it, control) = queued();
    let domain = it.domain;
    domain.life.is_running();
    let chooses = move || choose(machine, 0).is_some();
    let ends = move || sched_op::end_domain(machine, &control, domain, Life::Destroyed(Fault::ByControl));
    let (runs, ()) = both(chooses, ends);
    assert_eq!(domain.life.get(), Life::Destroyed(Fault::ByControl));
    assert!(!domain.life.end(Life::Destroyed(Fault::SystemError)), "a domain ends twice");
    if runs {
        // Another one is for the CPU that looks after ends, which is this one here.
        let kicks = machine.hw.take_ops().iter().filter(|op| **op == Op::Kick(CpuId(0))).count();
        assert!(kicks == 2, "a vCPU of a domain that has ended runs, and its CPU is not told");
    }
}
