//! Code that may fail: instructions that are written at run time, run at EL1 or EL0 with registers of the caller's choice, and the
//! exception that they took, if any. For guests that test their hypervisor.
//!
//! 1. An attempt runs with interrupts masked; one at a time on each vCPU, whose context is in [`CURRENT`] meanwhile.
//! 2. Instructions are written through one mapping and run through another, which nobody can write.
#![expect(unsafe_code, reason = "runs instructions that are made at run time")]
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use aarch64_cpu::registers::{ESR_EL1, FAR_EL1, Readable};

use crate::exception::Frame;
use crate::lock::Lock;
use crate::paging;
use crate::smp::{self, MAX_CPUS};

global_asm!(include_str!("asm/attempt.S"), options(raw));

unsafe extern "C" {
    static attempt_return: u8;
    static attempt_taken: u8;
    fn attempt_enter(context: *mut u64, pc: u64, spsr: u64) -> u64;
}

/// Registers of an attempt, before it and after it.
pub type Registers = [u64; 31];

#[repr(C)]
struct Context {
    x: Registers,
    sp: u64,
    taken: Option<Taken>,
}

// attempt.S knows this.
const _: () = assert!(core::mem::offset_of!(Context, sp) == 31 * 8);

/// An exception that ended an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Which of the sixteen vectors.
    pub vector: usize,
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
    /// `ELR_EL1`.
    pub elr: u64,
    /// `SPSR_EL1`.
    pub spsr: u64,
}

impl Taken {
    /// The exception class.
    pub const fn class(&self) -> u64 {
        self.esr >> 26
    }
}

/// Classes that attempts meet (Arm ARM D24.2.40).
pub mod class {
    #![expect(missing_docs, reason = "named as there")]
    pub const UNKNOWN: u64 = 0x00;
    pub const FLOATING_POINT: u64 = 0x07;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const SVC32: u64 = 0x11;
    pub const SVC64: u64 = 0x15;
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    pub const INSTRUCTION_ABORT: u64 = 0x21;
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    pub const DATA_ABORT: u64 = 0x25;
}

/// Where an attempt runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// EL1; it comes back by `ret`.
    El1,
    /// EL0; it comes back by an exception, `svc` for example.
    El0,
    /// EL0 in AArch32 state, A32 or T32 (bit 0 of the address) instructions.
    El0In32,
    /// EL0 with interrupts let in, and every register the caller's.
    Process,
    /// This `SPSR_EL1`, whatever it means.
    State(u64),
}

impl Level {
    const fn spsr(self) -> u64 {
        match self {
            Self::El1 => 0x3c5,
            Self::El0 => 0x3c0,
            Self::El0In32 => 0x1d0,
            Self::Process => 0,
            Self::State(spsr) => spsr,
        }
    }
}

static CURRENT: [AtomicPtr<Context>; MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_CPUS];

/// Runs what is at `pc` with these registers, which then are as it left them; x30 is the way back. `None` if it came back by itself.
///
/// # Safety
/// What it does must not break this guest.
pub unsafe fn run(level: Level, pc: u64, x: &mut Registers) -> Option<Taken> {
    let mut context = Context { x: *x, sp: 0, taken: None };
    if !matches!(level, Level::El0In32 | Level::Process) {
        context.x[30] = (&raw const attempt_return).addr() as u64;
    }
    let current = &CURRENT[smp::this().index()];
    let pointer = &raw mut context;
    current.store(pointer, Ordering::Release);
    let spsr = level.spsr() | if level == Level::El0In32 && pc & 1 != 0 { 1 << 5 } else { 0 };
    // SAFETY: the caller's promise; the assembly keeps to the C ABI.
    unsafe { attempt_enter(pointer.cast(), pc & !1, spsr) };
    current.store(null_mut(), Ordering::Release);
    *x = context.x;
    context.taken
}

/// Ends this vCPU's attempt with an exception, if one is under way.
pub(crate) fn take(frame: &mut Frame, vector: usize) -> bool {
    let current = CURRENT[smp::this().index()].swap(null_mut(), Ordering::AcqRel);
    let Some(mut context) = NonNull::new(current) else { return false };
    // SAFETY: invariant 1: `run` of this vCPU waits, and nobody else uses its context.
    let context = unsafe { context.as_mut() };
    context.taken =
        Some(Taken { vector, esr: ESR_EL1.get(), far: FAR_EL1.get(), elr: frame.elr, spsr: frame.spsr });
    context.x = frame.x;
    frame.elr = (&raw const attempt_taken).addr() as u64;
    frame.spsr = Level::El1.spsr();
    frame.sp = context.sp;
    true
}

/// Words that fit a [`Code`].
pub const WORDS: usize = 4096;
/// Where instructions run: EL1 and EL0 may read and execute here. No guest has RAM or devices there, and AArch32 reaches it.
const TEXT: u64 = 0x3e00_0000;

#[repr(C, align(4096))]
struct Text(UnsafeCell<[u32; WORDS]>);

// SAFETY: written by the holder of `CODE` only.
unsafe impl Sync for Text {}

static INSTRUCTIONS: Text = Text(UnsafeCell::new([0; WORDS]));
static CODE: Lock<Option<Code>> = Lock::new(Some(Code(())));

/// Room for instructions. There is one.
pub struct Code(());

impl Code {
    /// Takes it, once.
    pub fn take() -> Option<Self> {
        let code = CODE.lock().take()?;
        let from = INSTRUCTIONS.0.get().expose_provenance() as u64;
        paging::map_alias(TEXT, from, (WORDS * 4) as u64, paging::Access::SharedText).ok()?;
        Some(code)
    }

    /// Writes instructions from the start on; the address where they run.
    pub fn write(&mut self, words: impl IntoIterator<Item = u32>) -> u64 {
        // SAFETY: there is one `Code`, borrowed exclusively; the other mapping is only executed.
        let text = unsafe { &mut *INSTRUCTIONS.0.get() };
        let mut written = 0;
        for (slot, word) in text.iter_mut().zip(words) {
            *slot = word;
            written += 1;
        }
        crate::cpu::sync_instructions(text.as_ptr().addr(), written * 4);
        TEXT
    }
}

/// Guest physical addresses at will, a GiB at a time.
pub struct Window(u64);

/// How a window shows memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// As device registers.
    Device,
    /// As ordinary memory.
    Memory,
    /// As instructions, at EL1 and EL0.
    Text,
    /// As device registers, at EL1 and EL0.
    SharedDevice,
}

impl Window {
    /// The one window.
    pub fn take() -> Option<Self> {
        static WINDOW: Lock<Option<Window>> = Lock::new(Some(Window(0x70_0000_0000)));
        WINDOW.lock().take()
    }

    /// Shows the GiB around `address`; the address where `address` itself then is.
    pub fn show(&mut self, address: u64, shown: Shown) -> Option<u64> {
        let access = match shown {
            Shown::Device => paging::Access::Device,
            Shown::Memory => paging::Access::Data,
            Shown::Text => paging::Access::SharedText,
            Shown::SharedDevice => paging::Access::SharedDevice,
        };
        paging::show(self.0, address, access).ok()?;
        Some(self.0 + address % (1 << 30))
    }
}

/// What a second mapping of memory allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Maps pages of this guest's memory, `size` bytes from `from`, a second time at `at`, an address from 484 GiB on that nothing else uses.
/// Nothing is mapped behind them.
pub fn alias(at: u64, from: u64, size: u64, rights: Rights) -> bool {
    let access = match rights {
        Rights::Read => paging::Access::Constant,
        Rights::ReadWrite => paging::Access::Data,
    };
    paging::map_alias(at, from, size, access).is_ok()
}
