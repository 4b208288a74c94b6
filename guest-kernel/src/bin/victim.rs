//! Half of a pair that must not notice what others do: two of these work in step through a granted page and a static channel, and say
//! at their ends what they have in memory, which events are pending and which of their registers changed. Alone or attacked, that must
//! be the same, word for word; only the line with the time may differ.
//!
//! Command line: `role=` `first` or `second`; `rounds=` (200); `peer=`, `port=` and `ref=` as xtask writes them.
#![no_std]
#![no_main]
#![allow(clippy::cast_possible_truncation, reason = "usize has 64 bits on the one target")]
#![expect(unsafe_code, reason = "reads and writes registers that nobody else uses")]
extern crate alloc;
use alloc::vec;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{Channel, Wake};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant, MappedGrant};
use guest_kernel::{Guest, interrupt, println, time, timer};
use pv_abi::{DomId, GrantRef, Port};

guest_kernel::main!(main);

/// Words of memory that each round changes.
const WORDS: usize = 64 << 10;
/// Longest silence of the other half.
const PATIENCE: Duration = Duration::from_secs(60);
/// Channels beside the static one, on some of which events are left pending.
const CHANNELS: u32 = 8;
/// The third domain, which may be an attacker.
const THIRD: DomId = DomId(3);
/// Words of the shared page: the turn, and the ports.
const TURN: usize = 0;
const PORTS: usize = 8;

/// How often the third interrupted.
static STORMED: AtomicU32 = AtomicU32::new(0);

fn main(guest: &Guest) -> Result<(), &'static str> {
    let number = |key| guest.args().number(key).and_then(|value| u32::try_from(value).ok());
    let first = guest.args().text("role") == Some("first");
    let rounds = number("rounds").unwrap_or(200);
    let peer = number("peer").and_then(|id| u16::try_from(id).ok()).map(DomId).ok_or("peer= is missing")?;
    let channel = Channel::fixed(number("port").map(Port).ok_or("port= is missing")?)
        .map_err(|_| "no event channels")?;
    interrupt::start(guest.tree.gic).map_err(|_| "no interrupts")?;
    if first {
        let grant =
            Grant::new(Frame::boxed(), peer, Access::ReadWrite).map_err(|_| "the page cannot be granted")?;
        work(grant.frame(), &channel, peer, 0, rounds)?;
        let mut grant = grant;
        while let Err(still) = grant.end() {
            grant = still;
            timer::sleep(Duration::from_millis(1)).map_err(|_| "no timer")?;
        }
    } else {
        let reference = GrantRef(number("ref").ok_or("ref= is missing")?);
        let mapped = loop {
            match MappedGrant::map(peer, reference, Access::ReadWrite) {
                Ok(mapped) => break mapped,
                Err(_) => timer::sleep(Duration::from_millis(1)).map_err(|_| "no timer")?,
            }
        };
        let page = mapped.frame().ok_or("the page is not mapped for writing")?;
        work(page, &channel, peer, 1, rounds)?;
        mapped.unmap().map_err(|_| "the page cannot be given back")?;
    }
    Ok(())
}

/// The rounds: this half's turns are those of its parity.
fn work(page: &Frame, channel: &Channel, peer: DomId, parity: u32, rounds: u32) -> Result<(), &'static str> {
    let mut memory: Vec<u64> = (0..WORDS as u64)
        .map(|index| (index + u64::from(parity)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    // Two ports for whoever is the third, whatever it does with them; the rest goes on.
    let [open, masked] =
        [(); 2].map(|()| Channel::unbound(THIRD)).map(|offer| offer.map_err(|_| "no channel to offer"));
    let (open, masked) = (open?, masked?);
    open.handle(|_| _ = STORMED.fetch_add(1, Ordering::Relaxed)).map_err(|_| "no handler")?;
    let channels = channels(page, channel, peer, parity)?;
    let registers = Registers::fill(parity);
    let began = time::now();
    for round in 0..rounds {
        wait_for(page, channel, round * 2 + parity)?;
        for (word, index) in memory.iter_mut().zip(0..) {
            *word = word.rotate_left(7) ^ u64::from(round) ^ index;
        }
        // Some events are left pending at the other half.
        if let Some(extra) = channels.get((round % CHANNELS) as usize)
            && round < CHANNELS
            && round % 3 == parity
        {
            extra.notify().map_err(|_| "an event was refused")?;
        }
        if round % 16 == 0 {
            timer::sleep(Duration::from_millis(1)).map_err(|_| "no timer")?;
        }
        registers.check().map_err(|()| "a register has changed")?;
        page.words()[TURN].store(round * 2 + parity + 1, Ordering::Release);
        channel.notify().map_err(|_| "an event was refused")?;
    }
    if parity == 0 {
        wait_for(page, channel, rounds * 2)?;
    }
    println!("victim: time {} us", began.elapsed().as_micros());
    println!("victim: heartbeat {rounds}");
    println!("victim: memory {:016x}", sum(&memory));
    let pending: Vec<u8> = channels.iter().map(|channel| u8::from(channel.take())).collect();
    println!("victim: pending {pending:?}");
    println!("victim: unexpected interrupts {}", interrupt::unhandled());
    let left = u32::from(masked.take()) + u32::from(masked.take());
    println!("storm: port {} interrupted {} times", open.port().0, STORMED.load(Ordering::Relaxed));
    println!("storm: port {} has {left} pending", masked.port().0);
    println!("victim: registers are as they were");
    page.words()[TURN].store(u32::MAX, Ordering::Release);
    Ok(())
}

/// Waits until it is this half's turn.
fn wait_for(page: &Frame, channel: &Channel, turn: u32) -> Result<(), &'static str> {
    while page.words()[TURN].load(Ordering::Acquire) < turn {
        match channel.wait_for(PATIENCE) {
            Ok(Wake::Event) => {}
            Ok(Wake::TimedOut) => return Err("the other half is silent"),
            Err(_) => return Err("waiting was refused"),
        }
    }
    Ok(())
}

/// The further channels: the first half offers them, and the second binds to them.
fn channels(page: &Frame, channel: &Channel, peer: DomId, parity: u32) -> Result<Vec<Channel>, &'static str> {
    let mut all = Vec::new();
    let told = page.words().iter().skip(PORTS).take(CHANNELS as usize);
    if parity == 0 {
        for word in told {
            let offer = Channel::unbound(peer).map_err(|_| "no channel to offer")?;
            word.store(offer.port().0, Ordering::Release);
            all.push(offer);
        }
        channel.notify().map_err(|_| "an event was refused")?;
        // The second half says that it has bound them, by the word behind the ports.
        while page.words()[PORTS + CHANNELS as usize].load(Ordering::Acquire) == 0 {
            channel.wait_for(PATIENCE).map_err(|_| "waiting was refused")?;
        }
    } else {
        for word in told {
            while word.load(Ordering::Acquire) == 0 {
                channel.wait_for(PATIENCE).map_err(|_| "waiting was refused")?;
            }
            all.push(
                Channel::bind(peer, Port(word.load(Ordering::Acquire)))
                    .map_err(|_| "a channel cannot be bound")?,
            );
        }
        page.words()[PORTS + CHANNELS as usize].store(1, Ordering::Release);
        channel.notify().map_err(|_| "an event was refused")?;
    }
    Ok(all)
}

fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, word| (sum ^ word).wrapping_mul(0x100_0000_01b3))
}

/// Registers that no code of this guest uses: vectors 0 to 31, their status, and some of EL1's.
struct Registers {
    vectors: Vec<u64>,
    system: [u64; 6],
}

impl Registers {
    fn fill(parity: u32) -> Self {
        let mut vectors = vec![0; 64];
        for (word, index) in vectors.iter_mut().zip(1..) {
            *word = u64::from(parity + 1) << 32 | (index * 0x0101_0101);
        }
        let mark = u64::from(parity + 1) * 0x1111;
        // SAFETY: floating point is let in, and nothing here uses it: softfloat. The system registers have no effect on what runs.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd",
                "mrs {t}, cpacr_el1", "orr {t}, {t}, #0x300000", "msr cpacr_el1, {t}", "isb",
                "ld1 {{v0.2d-v3.2d}}, [{p}], #64", "ld1 {{v4.2d-v7.2d}}, [{p}], #64",
                "ld1 {{v8.2d-v11.2d}}, [{p}], #64", "ld1 {{v12.2d-v15.2d}}, [{p}], #64",
                "ld1 {{v16.2d-v19.2d}}, [{p}], #64", "ld1 {{v20.2d-v23.2d}}, [{p}], #64",
                "ld1 {{v24.2d-v27.2d}}, [{p}], #64", "ld1 {{v28.2d-v31.2d}}, [{p}], #64",
                "msr contextidr_el1, {m}", "msr amair_el1, {m}", "msr afsr0_el1, {m}", "msr sp_el0, {m}", "msr s3_3_c4_c4_1, {m}", "msr csselr_el1, {c}",
                t = out(reg) _, p = inout(reg) vectors.as_ptr() => _, m = in(reg) mark, c = in(reg) u64::from(parity) * 2,
            );
        }
        let system = Self::system();
        Self { vectors, system }
    }

    fn system() -> [u64; 6] {
        let mut values = [0; 6];
        // SAFETY: reads registers, and stores them into `values`.
        unsafe {
            asm!(
                "mrs {a}, contextidr_el1", "mrs {b}, amair_el1", "stp {a}, {b}, [{p}]",
                "mrs {a}, afsr0_el1", "mrs {b}, sp_el0", "stp {a}, {b}, [{p}, #16]",
                "mrs {a}, s3_3_c4_c4_1", "mrs {b}, csselr_el1", "stp {a}, {b}, [{p}, #32]",
                a = out(reg) _, b = out(reg) _, p = in(reg) values.as_mut_ptr(),
                options(nostack, preserves_flags),
            );
        }
        values
    }

    fn check(&self) -> Result<(), ()> {
        let mut now = vec![0_u64; 64];
        // SAFETY: stores 512 bytes into `now`.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd",
                "st1 {{v0.2d-v3.2d}}, [{p}], #64", "st1 {{v4.2d-v7.2d}}, [{p}], #64",
                "st1 {{v8.2d-v11.2d}}, [{p}], #64", "st1 {{v12.2d-v15.2d}}, [{p}], #64",
                "st1 {{v16.2d-v19.2d}}, [{p}], #64", "st1 {{v20.2d-v23.2d}}, [{p}], #64",
                "st1 {{v24.2d-v27.2d}}, [{p}], #64", "st1 {{v28.2d-v31.2d}}, [{p}], #64",
                p = inout(reg) now.as_mut_ptr() => _,
            );
        }
        if now == self.vectors && Self::system() == self.system { Ok(()) } else { Err(()) }
    }
}
