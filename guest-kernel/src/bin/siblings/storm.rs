//! More interrupts at once than the controller has list registers: none is lost, none is made up, and the most urgent come first.
extern crate alloc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{self, Channel};
use guest_kernel::interrupt::{self, Intid};
use guest_kernel::lock::Lock;
use guest_kernel::smp::{self, Cpu, MAX_CPUS};
use guest_kernel::{Guest, cpu, hypercall, println, time, timer, tree};

use super::meet::{Meeting, on_all};
use super::{Failed, ok};

/// SGIs of the storm; 15 is the guest kernel's.
const SGIS: u32 = 15;
/// Shared interrupts of a guest's distributor.
const SPIS: core::ops::Range<u32> = 32..64;
const EVENTS: u32 = 31;
const TIMER: u32 = 27;
/// Looks at the controller after the last that is expected.
const MORE: u32 = 2000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Whose: a number and, of a `GICv2`'s SGI, the sender; as acknowledged.
type Taken = (u32, u32);

pub(crate) fn check(guest: &Guest, rounds: u32) -> Result<(), Failed> {
    let old = matches!(guest.tree.gic, Some(tree::Gic::V2 { .. }));
    let spis = Spis::of(guest)?;
    for target in smp::all() {
        masses(old, spis, target)?;
    }
    ok("of masses of interrupts at once none is lost or made up", true)?;
    alive(rounds)
}

/// The distributor's registers of shared interrupts.
#[derive(Clone, Copy)]
struct Spis {
    distributor: guest_kernel::mmio::Registers,
    old: bool,
}

impl Spis {
    fn of(guest: &Guest) -> Result<Self, Failed> {
        let distributor = interrupt::distributor().map_err(|_| Failed::Check("a distributor"))?;
        let old = matches!(guest.tree.gic, Some(tree::Gic::V2 { .. }));
        Ok(Self { distributor, old })
    }

    /// All to `target`, each with a priority of its own, enabled.
    fn route(self, target: Cpu) {
        for spi in SPIS {
            let at = spi as usize;
            // IHI 0048 4.3: GICD_IPRIORITYR, GICD_ITARGETSR, a byte each; IHI 0069 12.9: GICD_IROUTER, 8 bytes each from 32 on.
            let lane = (spi % 4) * 8;
            let set = |base: usize, byte: u32| {
                let register = base + at / 4 * 4;
                let others = self.distributor.read32(register) & !(0xff << lane);
                self.distributor.write32(register, others | byte << lane);
            };
            set(0x400, priority(spi));
            if self.old {
                set(0x800, 1 << target.number());
            } else {
                self.distributor.write64(0x6000 + at * 8, guest_kernel::psci::affinity(target.number()));
            }
        }
        if !self.old {
            self.distributor.write32(0x084, u32::MAX);
        }
        self.distributor.write32(0x104, u32::MAX);
    }

    /// All pending at once.
    fn raise(self) {
        self.distributor.write32(0x204, u32::MAX);
    }

    fn disable(self) {
        self.distributor.write32(0x184, u32::MAX);
    }
}

/// More urgent than the lowest that a `GICv2`'s mask lets through, 0xf0; all but two differ.
fn priority(intid: u32) -> u32 {
    match intid {
        32.. => (intid * 7 % 30) * 8,
        _ => 0xa0,
    }
}

static MEETING: Meeting = Meeting::new();
static CHANNEL: Lock<Option<Channel>> = Lock::new(None);
static TAKEN: Lock<Vec<Taken>> = Lock::new(Vec::new());

/// All send everything to one that has interrupts masked; then that takes them by hand.
fn masses(old: bool, spis: Spis, target: Cpu) -> Result<(), Failed> {
    *CHANNEL.lock() = Some(Channel::ipi(target)?);
    TAKEN.lock().clear();
    on_all(move |cpu| {
        for sgi in (0..SGIS).filter_map(Intid::sgi) {
            let _ = interrupt::enable(sgi, || {});
        }
        let _ = (interrupt::enable(Intid::TIMER, timer::disarm), event::listen());
        // Whatever came until here is over when all are here with interrupts masked.
        MEETING.wait();
        cpu::mask_interrupts();
        interrupt::dispatch();
        MEETING.wait();
        if cpu == target {
            spis.route(target);
            spis.raise();
            timer::arm(time::now());
        }
        for sgi in (0..SGIS).filter_map(Intid::sgi) {
            // Twice is once: pending is a state.
            let _ = (interrupt::send(target, sgi), interrupt::send(target, sgi));
        }
        if let Some(channel) = &*CHANNEL.lock() {
            let _ = (channel.unmask(), hypercall::event_send(channel.port()));
        }
        cpu::synchronize();
        MEETING.wait();
        if cpu == target {
            *TAKEN.lock() = take(expected(old).len());
            spis.disable();
        }
        MEETING.wait();
        cpu::unmask_interrupts();
    })?;
    *CHANNEL.lock() = None;
    let taken = TAKEN.lock().clone();
    let urgent = taken.windows(2).all(|pair| priority(pair[0].0) <= priority(pair[1].0));
    let mut sorted = taken.clone();
    sorted.sort_unstable();
    let expected = expected(old);
    if sorted != expected || !urgent {
        let lost: Vec<_> = expected.iter().filter(|one| !taken.contains(one)).collect();
        println!(
            "{} taken, {} expected; lost: {lost:?}; in order: {urgent}; {taken:?}",
            taken.len(),
            expected.len()
        );
    }
    if sorted != expected {
        return ok("of masses of interrupts at once none is lost or made up", false);
    }
    if !urgent {
        return ok("the most urgent come first", false);
    }
    Ok(())
}

/// What is acknowledged, in order of numbers: each SGI once, and with a `GICv2` once a sender.
fn expected(old: bool) -> Vec<Taken> {
    let senders = if old { smp::count() } else { 1 };
    let mut all: Vec<Taken> =
        (0..SGIS).flat_map(|sgi| (0..senders).map(move |sender| (sgi, sender))).collect();
    all.extend([(TIMER, 0), (EVENTS, 0)]);
    all.extend(SPIS.map(|spi| (spi, 0)));
    all
}

/// So many interrupts, or all that come in time, and those that come after.
fn take(expected: usize) -> Vec<Taken> {
    let mut taken = Vec::with_capacity(2 * expected);
    let began = time::now();
    let mut more = MORE;
    while more > 0 && began.elapsed() < PATIENCE && taken.len() < 2 * expected {
        match interrupt::take_by_hand() {
            Some(one) => taken.push(one),
            None if taken.len() >= expected => more -= 1,
            None => {}
        }
    }
    taken
}

/// How often each vCPU got the SGI of each.
static COUNTS: [[AtomicU32; MAX_CPUS]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; MAX_CPUS] }; MAX_CPUS];

fn got(sender: usize) {
    COUNTS[sender][smp::this().index()].fetch_add(1, Ordering::SeqCst);
}

/// All send to all at the same time, each its own SGI, and the next only when the last has arrived: no loss, no standstill.
fn alive(rounds: u32) -> Result<(), Failed> {
    const HANDLERS: [fn(); MAX_CPUS] =
        [|| got(0), || got(1), || got(2), || got(3), || got(4), || got(5), || got(6), || got(7)];
    static LOST: AtomicU32 = AtomicU32::new(0);
    on_all(move |cpu| {
        for (sgi, handler) in (0..).filter_map(Intid::sgi).zip(HANDLERS) {
            let _ = interrupt::enable(sgi, handler);
        }
        let Some(own) = Intid::sgi(cpu.number()) else { return };
        MEETING.wait();
        for _ in 0..rounds {
            for target in smp::all() {
                let count = &COUNTS[cpu.index()][target.index()];
                let before = count.load(Ordering::SeqCst);
                let _ = interrupt::send(target, own);
                let began = time::now();
                while count.load(Ordering::SeqCst) == before {
                    let _ = hypercall::sched_yield();
                    if began.elapsed() > PATIENCE {
                        LOST.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                }
            }
        }
        MEETING.wait();
    })?;
    let exact = smp::all().all(|sender| {
        smp::all().all(|to| COUNTS[sender.index()][to.index()].load(Ordering::SeqCst) == rounds)
    });
    ok("all interrupt all at the same time, and each arrives once", exact && LOST.load(Ordering::SeqCst) == 0)
}
