//! The machine's console: whole texts, one CPU at a time. While guests run nobody waits for the UART, which needs milliseconds for a line:
//! texts go into a ring, and what the UART has no room for now is sent later, by whichever CPU's timer fires or is idle.
//!
//! Invariants
//! 1. `head` and `tail` count bytes and wrap together; `tail - head` is at most [`RING`]. Both change under the lock.
//! 2. A text is taken whole or not at all. A guest's that is not taken now is offered again; it leaves room for the hypervisor's own
//!    ([`KEPT`]). What cannot be offered again and is not taken is lost, and the next text that fits comes after a line that says so.
//! 3. What is typed comes by the UART's interrupt, to the CPU that booted; one interrupt takes [`KEYS`] bytes, and comes again for more.
//! 4. One call sends at most [`AT_ONCE`] bytes while guests run.
//! 5. What was sent stays in the ring until newer bytes take its place: the control domain reads the last [`RING`] bytes of the console there.
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use heapless::Vec;
use hypervisor::console::keyboard;
use hypervisor::devicetree::HostMachine;
use hypervisor::hardware::CpuId;
use hypervisor::lock::{Lock, rank};
use hypervisor::machine::Machine;
use platform::uart::Console;

use super::arm::Arm;
use super::percpu::{self, PerCpu};
use super::{passthrough, timer};

/// Bytes that may wait: a second and a half at 115200 baud.
const RING: usize = 16 << 10;
/// Bytes that one call sends at most: 5000 instructions under QEMU. UARTs have room for 8 to 32, but QEMU's always have; and so many come each
/// [`AGAIN_MICROSECONDS`].
const AT_ONCE: usize = 128;
/// When bytes that wait are looked after again: the mini-UART's 8 bytes last 700 microseconds at 115200 baud.
const AGAIN_MICROSECONDS: u64 = 500;
/// Bytes of room that guests leave.
const KEPT: usize = 2 << 10;
/// Bytes that one interrupt takes.
const KEYS: usize = 32;
const LOST: &[u8] = b"pavo: console output was lost\n";

struct State {
    console: Option<Console>,
    head: usize,
    tail: usize,
    /// Bytes before this one were read back, for who asks for what was not.
    read: usize,
    lost: bool,
    /// Whether guests run; before, and when all is over, writers wait for the UART.
    buffered: bool,
}

/// Rank 60: the last lock, nothing is taken under it.
static CONSOLE: Lock<State, { rank::UART }> =
    Lock::new(State { console: None, head: 0, tail: 0, read: 0, lost: false, buffered: false });
/// The bytes that wait; atomic only to be a static, all accesses are under the lock.
static BYTES: [AtomicU8; RING] = [const { AtomicU8::new(0) }; RING];
/// Whether any wait.
static WAITING: AtomicBool = AtomicBool::new(false);

/// The CPU that left them.
static WRITER: AtomicU8 = AtomicU8::new(0);

/// Uses this UART from now on.
pub fn init(console: Console) {
    CONSOLE.lock().console = Some(console);
}

/// INTID of the UART; 0 while nobody listens.
static INTERRUPT: AtomicU32 = AtomicU32::new(0);

/// Lets what is typed in, where the tree names the UART's interrupt.
pub fn listen(host: &HostMachine<'_>) {
    if let Some(intid) = host.uart.and_then(|uart| uart.interrupt).filter(|intid| *intid >= 32)
        && let Some(console) = CONSOLE.lock().console.as_mut()
    {
        INTERRUPT.store(intid, Ordering::Relaxed);
        console.listen();
        passthrough::enable(host, intid, false, CpuId(0));
    }
}

/// Whether an interrupt is the UART's.
pub fn is_mine(intid: u32) -> bool {
    INTERRUPT.load(Ordering::Relaxed) == intid && intid != 0
}

/// Takes what was typed, and asks the scheduler: somebody may have woken.
#[cold]
#[inline(never)]
pub fn receive(cpu: &PerCpu) {
    let mut keys: Vec<u8, KEYS> = Vec::new();
    if let Some(console) = CONSOLE.lock().console.as_mut() {
        while !keys.is_full()
            && let Some(key) = console.take()
        {
            let _ = keys.push(key);
        }
    }
    if let Some(machine) = cpu.machine.get() {
        keyboard::typed(machine, cpu.id, &cpu.reschedule, &keys);
    }
    cpu.reschedule.set(true);
}

/// From now on nobody waits for the UART.
pub fn buffer() {
    CONSOLE.lock().buffered = true;
}

/// Writes a text; newlines become CR LF.
pub fn write(text: &[u8]) {
    let mut state = CONSOLE.lock();
    if state.lost && state.takes(LOST, 0) {
        state.lost = false;
    }
    if !state.takes(text, 0) {
        state.lost = true;
    }
    state.finish();
}

/// Writes a guest's text if there is room.
pub fn offer(text: &[u8]) -> bool {
    let mut state = CONSOLE.lock();
    let taken = state.takes(text, KEPT);
    state.finish();
    taken
}

/// Copies what was written from a byte on (counted modulo 2^32); from the first that is there and was not read for `None`, or for one that is not there.
/// Returns the first byte's number and how many were copied.
pub fn read_back(from: Option<u32>, into: &mut [u8]) -> (u32, usize) {
    let state = CONSOLE.lock();
    let oldest = state.tail.saturating_sub(RING).max(state.read);
    // How far back: a number that is not there is too far.
    let back = from.map_or(usize::MAX, |from| low(state.tail).wrapping_sub(from) as usize);
    let first = if back <= state.tail.wrapping_sub(oldest) { state.tail.wrapping_sub(back) } else { oldest };
    let count = state.tail.wrapping_sub(first).min(into.len());
    for (to, number) in into.iter_mut().zip(first..state.tail) {
        *to = BYTES.get(number % RING).map_or(0, |byte| byte.load(Ordering::Relaxed));
    }
    (low(first), count)
}

/// What came before this byte is read.
pub fn read_until(until: u32) {
    let mut state = CONSOLE.lock();
    let back = low(state.tail).wrapping_sub(until) as usize;
    state.read = state.tail.saturating_sub(back).max(state.read);
}

#[expect(clippy::cast_possible_truncation, reason = "bytes are numbered modulo 2^32 for the control domain")]
const fn low(number: usize) -> u32 {
    number as u32
}

/// Sends some of what waits, unless another CPU is about it.
pub fn pump() {
    if WAITING.load(Ordering::Relaxed)
        && let Some(mut state) = CONSOLE.try_lock()
    {
        state.send(AT_ONCE);
    }
}

/// When this CPU must look here again, if that is before `at` (system time). One that is a partition looks after what it wrote itself.
pub fn deadline(machine: &Machine<Arm>, cpu: CpuId, at: u64) -> u64 {
    if WAITING.load(Ordering::Relaxed)
        && (WRITER.load(Ordering::Relaxed) == cpu.0 || !machine.sched.is_partition(cpu))
    {
        at.min(timer::now().saturating_add(timer::ticks(AGAIN_MICROSECONDS)))
    } else {
        at
    }
}

/// Writes even if the lock is held by a CPU that will never give it back: for dying only.
pub fn write_anyway(text: &[u8]) {
    for _ in 0..1_000_000_u32 {
        if let Some(mut state) = CONSOLE.try_lock() {
            state.buffered = false;
            state.send(RING);
            let _ = state.takes(text, 0);
            state.send(RING);
            return;
        }
    }
}

/// Sends everything and waits, for a bounded time, until it has left: nobody writes afterwards.
pub fn drain() {
    write_anyway(b"");
    if let Some(state) = CONSOLE.try_lock()
        && let Some(console) = state.console.as_ref()
    {
        // A FIFO's worth at 9600 baud, by the time that register reads take.
        let _ = (0..1_000_000_u32).any(|_| console.is_idle());
    }
}

impl State {
    /// Takes a text into the ring; false when it does not fit as a whole with `kept` bytes left.
    #[inline(never)]
    fn takes(&mut self, text: &[u8], kept: usize) -> bool {
        let room = RING.saturating_sub(kept).saturating_sub(self.tail.wrapping_sub(self.head));
        let bytes =
            text.iter().fold(0_usize, |sum, byte| sum.wrapping_add(if *byte == b'\n' { 2 } else { 1 }));
        if bytes > room {
            return false;
        }
        for byte in text {
            if *byte == b'\n' {
                self.push(b'\r');
            }
            self.push(*byte);
        }
        true
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = BYTES.get(self.tail % RING) {
            slot.store(byte, Ordering::Relaxed);
            self.tail = self.tail.wrapping_add(1);
        }
    }

    /// Sends what the UART has room for; the scheduler is asked, and sets the timer, when some is left.
    fn finish(&mut self) {
        self.send(AT_ONCE);
        if self.head != self.tail {
            let cpu = percpu::this();
            WRITER.store(cpu.id.0, Ordering::Relaxed);
            cpu.reschedule.set(true);
        }
    }

    /// Sends what waits: what the UART has room for, or, while nobody minds waiting, all of it.
    #[inline(never)]
    fn send(&mut self, most: usize) {
        let most = if self.buffered { most } else { RING };
        let Some(console) = self.console.as_mut() else { return };
        for _ in 0..most {
            if self.head == self.tail || (self.buffered && !console.has_room()) {
                break;
            }
            console.put(BYTES.get(self.head % RING).map_or(0, |byte| byte.load(Ordering::Relaxed)));
            self.head = self.head.wrapping_add(1);
        }
        WAITING.store(self.head != self.tail, Ordering::Relaxed);
    }
}
