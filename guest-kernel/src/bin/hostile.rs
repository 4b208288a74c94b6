//! A guest that means harm: calls the hypervisor with whatever a seeded generator makes of small numbers, addresses of an arena of its
//! own, addresses that it does not map, and garbage. What it does to itself is its own affair; its neighbours must not notice.
//! Command line: `calls=` how many (100000), `seed=` (1).
//!
//! Left out are calls that would only end the attack: shutting down, blocking without a deadline, watchdogs, giving up its own code.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "hypercalls with arbitrary arguments are what is tested")]
extern crate alloc;
use alloc::vec;
use alloc::vec::Vec;
use guest_kernel::{Guest, hypercall, println};
use pv_abi::Hypercall;
use pv_abi::sched::SchedOp;

guest_kernel::main!(main);

/// Bytes of the arena: the hypervisor may read and write here.
const ARENA: usize = 256 << 10;
/// Words that a call may find behind an address.
const WORDS: usize = 8;
/// Guest frames of the grant region, and some far beyond RAM: where frames may come and go.
const PLACES: [u64; 3] = [0x38_000, 0x60_000, 0x10_0000_0000];

/// Values at the edges: reserved domains, all ones, the first and the last page.
const EDGES: [u64; 8] =
    [0x7FF0, 0x7FF1, 0x7FF2, 0x7FF4, 0xFFFF_FFFF, u64::MAX, 0x1000, 0xFFFF_FFFF_FFFF_F000];

/// Marsaglia's xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of some values.
    fn pick<T: Copy + Default>(&mut self, of: &[T]) -> T {
        let index = self.below(of.len().max(1) as u64);
        usize::try_from(index).ok().and_then(|index| of.get(index)).copied().unwrap_or_default()
    }

    /// A number of the kinds that calls take.
    fn argument(&mut self, arena: u64) -> u64 {
        match self.below(12) {
            0..=3 => self.below(16),
            4..=6 => arena + self.below(ARENA as u64 - 4096),
            7 => self.pick(&PLACES) + self.below(64),
            8 => 1 << self.below(64),
            9 => self.pick(&EDGES),
            10 => u64::MAX - self.below(8192),
            _ => self.next(),
        }
    }
}

fn main(guest: &Guest) {
    let number = |key, default| guest.args().number(key).unwrap_or(default);
    let calls = number("calls", 100_000);
    let mut random = Random(number("seed", 1).max(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut arena = vec![0_u64; ARENA / 8];
    let base = arena.as_mut_ptr().expose_provenance() as u64;
    println!("hostile: {calls} calls");
    let numbers: Vec<u64> = Hypercall::ALL.iter().map(|call| u64::from(call.number())).collect();
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for _ in 0..calls {
        let call = match random.below(16) {
            0 => random.next(),
            1 => random.below(64),
            _ => random.pick(&numbers),
        };
        let mut args = [0; 5];
        for arg in &mut args {
            *arg = random.argument(base);
        }
        // Mostly an operation that exists, on a structure that is there.
        if random.below(8) != 0 {
            args[0] = random.below(16);
            args[1] = base + random.below(ARENA as u64 - 4096) / 8 * 8;
            let first = usize::try_from(args[1] - base).map_or(0, |bytes| bytes / 8);
            for word in arena.iter_mut().skip(first).take(WORDS) {
                *word = random.argument(base) | random.argument(base) << 32;
            }
        }
        if ends_the_attack(call, args[0]) {
            continue;
        }
        // All of its own memory to the console, or taken for a batch of structures, takes its time but shows nothing.
        if call == u64::from(Hypercall::ConsoleIo.number()) {
            args[1] = random.below(512);
        } else if call == u64::from(Hypercall::GrantTableOp.number()) {
            args[2] = random.below(80);
        }
        // SAFETY: the hypervisor writes where the arguments say: into the arena, which holds nothing but numbers, or nowhere. Should it
        // write anywhere else, that is what the test is for.
        if unsafe { hypercall::raw(call, args) } < 0 { refused += 1 } else { accepted += 1 }
    }
    println!("hostile: {accepted} accepted, {refused} refused");
}

/// Calls that end or stop this guest, directly or inside a multicall.
fn ends_the_attack(call: u64, operation: u64) -> bool {
    if call == u64::from(Hypercall::Multicall.number()) {
        return true;
    }
    call == u64::from(Hypercall::SchedOp.number())
        && ![SchedOp::Yield, SchedOp::RemoteShutdown, SchedOp::PinOverride]
            .iter()
            .any(|harmless| u64::from(harmless.number()) == operation & 0xFFFF_FFFF)
}
