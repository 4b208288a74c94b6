//! How long EL2 keeps interrupts masked: from an exception's entry to the return to a guest, or to where the CPU waits for an interrupt. In images with the
//! self-check only; where instructions are counted (`-icount`, one a tick) the lengths are instructions, without the few of vectors.S.
//!
//! The log is told of each cause whose longest stretch has grown by an eighth, with its cause: `stretch LENGTH CLASS NUMBER OPERATION`. CLASS is the exception
//! class, or 0x40 for an interrupt, 0x41 for what a CPU that waited did next, 0x42 for one that tells of a crash; NUMBER and OPERATION are a hypercall's, or the function of a PSCI call.
//! `held LENGTH CLASS NUMBER OPERATION WHAT` is told likewise, of locks.
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hypervisor::lock::{self, rank};
use hypervisor::sched::MAX_CPUS;
use pv_abi::HYPERCALL_TAG;

use super::context::Frame;
use super::percpu;
use super::regs;

const INTERRUPT: u64 = 0x40;
const WAITED: u64 = 0x41;
const TOLD: u64 = 0x42;
/// `ESR_EL2.EC` of `hvc`.
const HVC: u64 = 0x16;
/// Calls of the control domain's alone.
const SYSCTL: u64 = 35;
const DOMCTL: u64 = 36;
/// Shorter ones are not told.
const LEAST: u64 = 1000;

/// What each CPU is at: when it began, and the cause; 0 for nothing that counts.
static BEGAN: [[AtomicU64; 2]; MAX_CPUS] = [const { [const { AtomicU64::new(0) }; 2] }; MAX_CPUS];
/// The longest time for which a lock of each rank was held, in calls that all guests have, and by a CPU that had waited or for the control
/// domain; and causes with their longest stretches.
static HELD: [[AtomicU64; 2]; rank::ALL.len()] =
    [const { [const { AtomicU64::new(0) }; 2] }; rank::ALL.len()];
static LONGEST: [[AtomicU64; 2]; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

fn begin(cause: u64) {
    if let Some([began, of]) = BEGAN.get(usize::from(percpu::this().id.0)) {
        of.store(cause, Relaxed);
        began.store(regs::cntpct_el0::read(), Relaxed);
    }
}

/// A synchronous exception was taken.
pub fn exception(frame: &Frame, esr: u64) {
    let class = esr >> 26;
    let (number, operation) = match (class, esr & 0xFFFF) {
        (HVC, tag) if tag == u64::from(HYPERCALL_TAG) => (frame.get(16), frame.get(0)),
        (HVC, _) => (0xFFFF, frame.get(0)),
        _ => (0, 0),
    };
    begin(class << 48 | (number & 0xFFFF) << 32 | operation & 0xFFFF_FFFF);
}

/// An interrupt was taken.
pub fn interrupt() {
    begin(INTERRUPT << 48);
}

/// A CPU waits no more.
pub fn waited() {
    begin(WAITED << 48);
}

/// A CPU tells of a crash, and has just let interrupts in.
pub fn told() {
    begin(TOLD << 48);
}

/// What is under way does not count: nobody has it in an image that is shipped.
pub fn forgive() {
    if let Some([_, of]) = BEGAN.get(usize::from(percpu::this().id.0)) {
        of.store(0, Relaxed);
    }
}

/// Class, number and operation of a cause.
const fn parts(cause: u64) -> [u64; 3] {
    [cause >> 48, cause >> 32 & 0xFFFF, cause & 0xFFFF_FFFF]
}

/// Tells how long locks were held meanwhile, unless that does not count.
fn holds(cause: u64) {
    let [class, number, operation] = parts(cause);
    let rare = class == WAITED || (class == HVC && [SYSCTL, DOMCTL].contains(&number));
    for ((rank, name), [often, rarely]) in rank::ALL.into_iter().zip(&HELD) {
        let longest = if rare { rarely } else { often };
        let (length, before) = (lock::take_longest_held(rank), longest.load(Relaxed));
        if cause != 0 && length > before.saturating_add(before >> 3) {
            longest.store(length, Relaxed);
            defmt::info!(
                "held {=u64} {=u64:#x} {=u64:#x} {=u64:#x} {=str}",
                length,
                class,
                number,
                operation,
                name
            );
        }
    }
}

/// The CPU returns to a guest, or waits.
pub fn end() {
    let now = regs::cntpct_el0::read();
    let Some([began, of]) = BEGAN.get(usize::from(percpu::this().id.0)) else { return };
    let (length, cause) = (now.saturating_sub(began.load(Relaxed)), of.swap(0, Relaxed));
    holds(cause);
    if cause == 0 || length < LEAST {
        return;
    }
    for [known, longest] in &LONGEST {
        let is = known.compare_exchange(0, cause, Relaxed, Relaxed).map_or_else(|is| is, |_| cause);
        if is == cause {
            let before = longest.load(Relaxed);
            if length > before.saturating_add(before >> 3) {
                longest.store(length, Relaxed);
                let [class, number, operation] = parts(cause);
                defmt::info!(
                    "stretch {=u64} {=u64:#x} {=u64:#x} {=u64:#x}",
                    length,
                    class,
                    number,
                    operation
                );
            }
            return;
        }
    }
}
