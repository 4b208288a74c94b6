//! FIFO queues of events: others send while the guest takes its events, masks one and unmasks it, or gives the array its first page.
use hypervisor::addr::{FrameAddr, Ipa};
use hypervisor::fake::{FakeHardware, RAM};
use hypervisor::hardware::Hardware;
use hypervisor::machine::{Current, Machine};
use hypervisor::stage2;

use crate::protocols::{EVENT_CHANNEL_OP, both, call, channel, current, machine};

/// How often Loom takes a thread from its CPU where it need not: each word of a queue is a place where it could.
pub const PREEMPTIONS: usize = 3;
/// What is wrong when one of `seeded.rs` is planted, a model must miss.
pub const PLANTED: &[(&str, &str)] = &[
    ("close-again", "close-while-bound"),
    ("queue-take", "fifo-link-race"),
    ("queue-mask", "fifo-link-race"),
    ("queue-grow", "fifo-page-unlocked"),
];

/// Bits of a word, from `public/event_channel.h`.
const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const BUSY: u32 = 1 << 28;
const LINK: u32 = (1 << 17) - 1;
/// `EVTCHNOP_*`.
const SEND: u64 = 4;
const UNMASK: u64 = 9;
const RESET: u64 = 10;
const INIT_CONTROL: u64 = 11;
const EXPAND_ARRAY: u64 = 12;
/// Where the control block and the first page of the array are; ports have the priority of new ones.
const CONTROL: u64 = RAM + 0x6_0000;
const ARRAY: u64 = RAM + 0x6_1000;
const PRIORITY: u32 = 7;

/// The guest that takes events, with its words.
#[derive(Clone, Copy)]
struct Taker {
    machine: &'static Machine<FakeHardware>,
    current: &'static Current<'static>,
}

impl Taker {
    fn at(&self, address: u64) -> FrameAddr {
        let ipa = Ipa::new(address).unwrap();
        let found = stage2::lookup(&self.machine.hw, self.current.domain.stage2_root, ipa.frame()).unwrap();
        FrameAddr::new(found.mfn, usize::try_from(address % 4096).unwrap()).unwrap()
    }

    fn word(&self, port: u32) -> FrameAddr {
        self.at(ARRAY + u64::from(port) * 4)
    }

    fn call(&self, cmd: u64, words: &[u32]) {
        assert_eq!(call(self.machine, self.current, EVENT_CHANNEL_OP, cmd, words), 0);
    }

    fn init_control(&self) {
        self.call(INIT_CONTROL, &[u32::try_from(CONTROL >> 12).unwrap(), 0, 0, 0, 0, 0]);
    }

    fn expand_array(&self) {
        self.call(EXPAND_ARRAY, &[u32::try_from(ARRAY >> 12).unwrap(), 0]);
    }

    /// An exclusive pair, until it succeeds; what was there.
    fn change(&self, at: FrameAddr, with: impl Fn(u32) -> u32) -> u32 {
        let mut seen = self.machine.hw.load_u32(at);
        loop {
            match self.machine.hw.compare_exchange_u32(at, seen, with(seen)).unwrap() {
                found if found == seen => return seen,
                found => seen = found,
            }
        }
    }

    fn is_told(&self) -> bool {
        self.machine.hw.load_u32(FrameAddr::start(self.current.domain.shared_info)) & 0xFF != 0
    }

    /// The handler of an upcall, for the one queue that there is: every event that is pending and not masked, in order.
    fn take(&self) -> Vec<u32> {
        let (mut taken, mut next) = (Vec::new(), 0);
        self.machine.hw.swap_u8(FrameAddr::start(self.current.domain.shared_info), 0).unwrap();
        let mut ready = self.change(self.at(CONTROL), |_| 0);
        while ready != 0 {
            let head = self.at(CONTROL + 8 + 4 * u64::from(PRIORITY));
            let port = if next == 0 { self.machine.hw.load_u32(head) } else { next };
            let before = self.change(self.word(port), |word| word & !(LINKED | LINK));
            next = before & LINK;
            if next == 0 {
                ready = 0;
            }
            if before & (PENDING | MASKED) == PENDING {
                self.change(self.word(port), |word| word & !PENDING);
                taken.push(port);
            }
            ready |= self.change(self.at(CONTROL), |_| 0);
        }
        taken
    }

    /// What comes of upcalls that it has not taken yet.
    fn rest(&self, taken: &mut Vec<u32>) {
        while self.is_told() {
            taken.extend(self.take());
        }
    }
}

/// Domain 1 takes events that domain 2 sends to its ports 1 and 2.
fn two() -> (Taker, Current<'static>) {
    let machine = machine();
    let taker = Taker { machine, current: Box::leak(Box::new(current(machine, 1, 0))) };
    let sender = current(machine, 2, 1);
    channel(taker.current, &sender, machine);
    taker.call(6, &[0x2_7FF0, 0]);
    assert_eq!(call(machine, &sender, EVENT_CHANNEL_OP, 0, &[1, 2, 0]), 0);
    (taker, sender)
}

fn send(machine: &'static Machine<FakeHardware>, sender: &Current<'static>, port: u32) {
    assert_eq!(call(machine, sender, EVENT_CHANNEL_OP, SEND, &[port]), 0);
}

/// [`two`], with queues; each thing was done once (rehearsal).
fn ready() -> (Taker, Current<'static>) {
    let (taker, sender) = two();
    taker.init_control();
    taker.expand_array();
    model_core::begin();
    taker.change(taker.word(1), |word| word | MASKED);
    send(taker.machine, &sender, 1);
    taker.call(UNMASK, &[1]);
    send(taker.machine, &sender, 2);
    assert_eq!(taker.take(), [1, 2]);
    (taker, sender)
}

/// An event is linked behind one that is just being taken out.
pub fn take() {
    let (taker, sender) = ready();
    send(taker.machine, &sender, 1);
    let machine = taker.machine;
    let (mut taken, ()) = both(move || taker.take(), move || send(machine, &sender, 2));
    taker.rest(&mut taken);
    taken.sort_unstable();
    assert_eq!(taken, [1, 2], "an event is lost, or comes twice");
    assert!((1..3).all(|port| machine.hw.load_u32(taker.word(port)) == 0), "something is left behind");
}

/// An event is linked behind one that is masked and unmasked meanwhile.
pub fn mask() {
    let (taker, sender) = ready();
    send(taker.machine, &sender, 1);
    let machine = taker.machine;
    let masks = move || {
        let at = taker.word(1);
        taker.change(at, |word| word | MASKED);
        // By itself what is not pending, once it is not busy; else by the call.
        let seen = machine.hw.load_u32(at);
        let free = seen & !(BUSY | PENDING);
        let unmasked =
            seen & PENDING == 0 && machine.hw.compare_exchange_u32(at, free, free & !MASKED).unwrap() == free;
        if !unmasked {
            taker.call(UNMASK, &[1]);
        }
    };
    both(masks, move || send(machine, &sender, 2));
    let mut taken = Vec::new();
    taker.rest(&mut taken);
    assert_eq!(taken, [1, 2], "an event is lost, or comes twice");
}

/// An event is sent while its word's page comes.
pub fn grow() {
    let (taker, sender) = two();
    let machine = taker.machine;
    model_core::begin();
    // Rehearsal: kept, and raised; then all begins anew.
    taker.init_control();
    send(machine, &sender, 2);
    taker.expand_array();
    assert_eq!(taker.take(), [2]);
    taker.call(RESET, &[0x7FF0]);
    channel(taker.current, &sender, machine);
    taker.init_control();
    // Its third port, to the first one of domain 1.
    both(move || taker.expand_array(), move || send(machine, &sender, 3));
    let mut taken = Vec::new();
    taker.rest(&mut taken);
    assert_eq!(taken, [1], "an event is lost, or comes twice");
}
