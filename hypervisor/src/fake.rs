//! The fake machine: [`Hardware`](crate::hardware::Hardware) on plain memory, for tests on the host.
//!
//! It records what is done to it, fails what a test tells it to fail, and models what a TLB may remember: [`FakeHardware::guest_read`]
//! and [`FakeHardware::guest_write`] go through stage 2 as a guest's accesses do, so that a missing flush is seen.
//!
//! Invariants
//! 1. RAM that nobody has written or cleared reads as [`GARBAGE`], never as zero: a missing clear is seen.
//! 2. A use that real hardware would answer with a fault at EL2 (an address that is not RAM, a misaligned word) panics, and so
//!    does a table write that breaks the rules of break-before-make. In a test, that is a failure with a name.
//! 3. A frame that EL2 cleared or wrote and did not clean to memory afterwards panics when a leaf of stage 2 hands it to a domain, in a
//!    [`World`] and where a test asks ([`FakeHardware::watch_caches`]).
#![allow(
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "panics are its failures"
)]

mod caches;
mod guest;
mod hardware;
mod memory;
mod mmu;
mod tlb;
mod world;

use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use crate::addr::{FrameAddr, GuestVa, Ipa, Mfn};
use crate::domain_build::Storage;
use crate::frame::{FrameEntry, FrameTable};
use crate::frame_alloc::Frames;
use crate::hardware::{Contended, CpuId, Vmid};
use crate::log::Event;
use crate::pagetable::Half;
use crate::pagetable::control::Controls;
use crate::tlb::{Barrier, Maintenance, Tlbi};
use crate::vcpu::VcpuIndex;
use crate::vgic::PrivateIntid;
use caches::Caches;
use memory::Ram as Memory;
pub use mmu::{GuestAccess, GuestFault, Stage2Fault, Stale};
use tlb::Tlbs;
pub use world::{MEMORY_KIB, RAM, World};

/// What RAM holds that nobody has written.
pub const GARBAGE: u8 = 0xA5;
/// Ticks per second of the fake's counter.
pub const COUNTER_FREQUENCY: u64 = 62_500_000;

/// Something that was done to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "one for each method of the trait, with its arguments")]
pub enum Op {
    Read {
        at: FrameAddr,
        len: usize,
    },
    /// A word, if loads are recorded ([`FakeHardware::record_loads`]).
    Load {
        at: FrameAddr,
        len: usize,
    },
    Write {
        at: FrameAddr,
        len: usize,
    },
    Copy {
        to: FrameAddr,
        from: FrameAddr,
        len: usize,
    },
    Clear(Mfn),
    CleanToMemory(Mfn),
    SyncInstructions(Mfn),
    Atomic(FrameAddr),
    TableWrite {
        table: Mfn,
        index: usize,
        entry: u64,
    },
    TablesWritten,
    FlushPage(Vmid, Ipa),
    FlushAll(Vmid),
    FlushStage1(Vmid),
    FlushStage1Address(Vmid, GuestVa),
    SetBase(Half, u64),
    Kick(CpuId),
    LookBy(CpuId, u64),
    Raise(PrivateIntid),
    /// The current vCPU takes interrupts from here on.
    Unmask,
}

#[derive(Debug, Default)]
struct Inner {
    ram: Memory,
    tlbs: Tlbs,
    caches: Caches,
    ops: Vec<Op>,
    pages: BTreeMap<u64, (Ipa, bool)>,
    identity: bool,
    loads: bool,
    controls: Controls,
    /// Calls of atomics that still succeed before one answers [`Contended`].
    contend_after: Option<u32>,
    counter: u64,
    console: Vec<u8>,
    /// Bytes of it that were read back.
    console_read: u32,
    /// A word in which another vCPU flips these bits after each of so many looks that EL2 takes at it.
    flips: Option<(FrameAddr, u32, u32)>,
    budget: Option<u32>,
    /// Whether every run is found to be long.
    impatient: bool,
    /// Bytes that the console holds; without a number all.
    console_room: Option<usize>,
    events: Vec<Event>,
    /// CPUs that were kicked and have not been asked about since, as bits.
    kicked: u32,
    /// When CPUs have to look that set their timers and have not been asked about since.
    looks: BTreeMap<u8, u64>,
    /// File and line of every call that kicks; and of the one whose kicks are lost.
    kicks: BTreeSet<(&'static str, u32)>,
    deaf: Option<(&'static str, u32)>,
    /// vCPUs whose registers are in a CPU.
    loaded: BTreeSet<u16>,
}

impl Inner {
    /// EL2 has seen the word at `at`, or an aligned pair with it: its guest may change it now.
    fn looked_at(&mut self, at: FrameAddr) {
        if let Some((word, bits, left)) = &mut self.flips
            && word.frame() == at.frame()
            && (word.offset() == at.offset() || word.offset() & !7 == at.offset())
            && *left != 0
        {
            *left -= 1;
            let flipped = self.ram.half(*word) ^ *bits;
            self.ram.write(*word, &flipped.to_le_bytes());
        }
    }
}

/// A machine with RAM from some address on, and nothing else.
#[derive(Debug)]
pub struct FakeHardware {
    inner: Mutex<Inner>,
    /// Accesses to words that guests share: where a model of what is done without a lock (`tests/models`) sees them.
    shared: AtomicU64,
    /// Whether a model sees writes, flushes and cleaning too.
    watched: std::sync::atomic::AtomicBool,
}

impl FakeHardware {
    /// A machine with `frames` frames of RAM from `base`.
    pub fn new(base: Mfn, frames: u64) -> Self {
        let inner = Inner { ram: Memory::new(base.get()..base.get() + frames), ..Inner::default() };
        Self { inner: Mutex::new(inner), shared: AtomicU64::new(0), watched: false.into() }
    }

    /// Makes writes, flushes of pages and cleaning steps of a model from now on.
    pub fn watch_writes(&self) {
        self.watched.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// A step that a model sees, if it is to.
    fn seen(&self) {
        if self.watched.load(std::sync::atomic::Ordering::Relaxed) {
            self.shared.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets every run be long, so that long calls restart wherever they ask for the time.
    pub fn set_impatient(&self, impatient: bool) {
        self.inner().impatient = impatient;
    }

    /// Units of work that each run of a long call may do from now on; `None` for what the call itself says.
    pub fn set_budget(&self, budget: Option<u32>) {
        self.inner().budget = budget;
    }

    /// A machine with `frames` frames of RAM from 1 GiB, all of them free, its frame table beside it.
    pub fn with_frames(frames: u64) -> (Self, Frames) {
        let base = Mfn::new(0x4_0000).unwrap();
        (Self::new(base, frames), free_frames(base, frames))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked elsewhere on purpose may go on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything done so far, oldest first; starts anew.
    pub fn take_ops(&self) -> Vec<Op> {
        core::mem::take(&mut self.inner().ops)
    }

    /// Whether a CPU was kicked since the last time.
    pub fn take_kick(&self, cpu: CpuId) -> bool {
        let mut inner = self.inner();
        let kicked = inner.kicked & 1 << cpu.0 != 0;
        inner.kicked &= !(1 << cpu.0);
        kicked
    }

    /// When a CPU has to look, if it set its timer since the last time.
    pub fn take_look(&self, cpu: CpuId) -> Option<u64> {
        self.inner().looks.remove(&cpu.0)
    }

    /// File and line of every call that has kicked a CPU, or set a timer.
    pub fn kicks(&self) -> Vec<(&'static str, u32)> {
        self.inner().kicks.iter().copied().collect()
    }

    /// From here on the kicks of this place are lost; a file by the end of its name.
    pub fn lose_kicks_of(&self, file: &'static str, line: u32) {
        self.inner().deaf = Some((file, line));
    }

    /// A CPU has a vCPU's registers, or has them no more.
    pub fn set_loaded(&self, vcpu: VcpuIndex, loaded: bool) {
        let mut inner = self.inner();
        if loaded {
            inner.loaded.insert(vcpu.0);
        } else {
            inner.loaded.remove(&vcpu.0);
        }
    }

    /// Every event logged so far; starts anew.
    pub fn take_events(&self) -> Vec<Event> {
        core::mem::take(&mut self.inner().events)
    }

    /// Shows every frame that anybody has written or cleared since the last time, each once.
    pub fn take_written(&self, mut visit: impl FnMut(Mfn)) {
        self.inner().ram.take_written(|frame| visit(Mfn::new(frame).unwrap()));
    }

    /// Whether loads of words are recorded too: not unless a test asks, since checks of the whole machine make millions.
    pub fn record_loads(&self, loads: bool) {
        self.inner().loads = loads;
    }

    /// From here on a frame that reaches a domain before it was cleaned to memory is a failure.
    pub fn watch_caches(&self) {
        self.inner().caches.watched = true;
    }

    /// The console holds so many bytes until they are taken from it.
    pub fn limit_console(&self, bytes: usize) {
        self.inner().console_room = Some(bytes);
    }

    /// Everything on the console so far; starts anew.
    pub fn take_console(&self) -> Vec<u8> {
        core::mem::take(&mut self.inner().console)
    }

    /// Lets `calls` more calls of shared-word atomics succeed and the one after answer [`Contended`], once.
    pub fn contend_after(&self, calls: u32) {
        self.inner().contend_after = Some(calls);
    }

    /// From here on another vCPU of the guest flips `bits` of the 32-bit word at `at`, each time after EL2 has looked at it, `times` times at most;
    /// `None` ends it. How often it would have gone on before.
    pub fn flip(&self, word: Option<(FrameAddr, u32, u32)>) -> u32 {
        core::mem::replace(&mut self.inner().flips, word).map_or(0, |(_, _, left)| left)
    }

    /// Moves the counter on.
    pub fn advance(&self, ticks: u64) {
        self.inner().counter += ticks;
    }

    /// What the current vCPU's translation is controlled by.
    pub fn set_controls(&self, controls: Controls) {
        self.inner().controls = controls;
    }

    /// What is done from here on is done by this CPU: at first all is CPU 0's.
    pub fn run_on(&self, cpu: CpuId) {
        self.inner().tlbs.run_on(cpu);
    }

    /// The vCPU leaves its CPU, which walks by none of its roots any more and remembers what it did.
    pub fn leave_roots(&self) {
        (0..2).for_each(|half| self.inner().tlbs.set_base(half, 0));
    }

    /// TLB maintenance by the current CPU, instruction by instruction, for this address space.
    pub const fn maintains(&self, vmid: Vmid) -> Maintains<'_> {
        Maintains { hw: self, vmid }
    }

    /// The roots that the hypervisor gave the current vCPU, as `TTBR`s.
    pub fn bases(&self) -> [u64; 2] {
        self.inner().tlbs.bases()
    }

    /// The first translation that the TLB remembers and the tables do not allow any more.
    pub fn stale_translation(&self) -> Option<Stale> {
        let inner = &*self.inner();
        inner.tlbs.stale(&inner.ram)
    }

    /// Bytes of RAM as they are, unrecorded.
    pub fn peek(&self, at: FrameAddr, into: &mut [u8]) {
        self.inner().ram.read(at, into);
    }

    /// The bytes of a frame, as they are, unrecorded.
    pub fn frame_bytes(&self, frame: Mfn) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.inner().ram.read(FrameAddr::start(frame), &mut bytes);
        bytes
    }

    /// One step, with a full barrier on both sides.
    fn atomic<T>(&self, at: FrameAddr, change: impl FnOnce(&mut Memory) -> T) -> Result<T, Contended> {
        fence(Ordering::SeqCst);
        self.shared.fetch_add(1, Ordering::Relaxed);
        let result = self.step(at, change);
        fence(Ordering::SeqCst);
        result
    }

    fn step<T>(&self, at: FrameAddr, change: impl FnOnce(&mut Memory) -> T) -> Result<T, Contended> {
        let inner = &mut *self.inner();
        inner.ops.push(Op::Atomic(at));
        match inner.contend_after {
            Some(0) => {
                inner.contend_after = None;
                return Err(Contended);
            }
            Some(left) => inner.contend_after = Some(left - 1),
            None => {}
        }
        let result = change(&mut inner.ram);
        inner.looked_at(at);
        Ok(result)
    }

    fn load(&self, at: FrameAddr, len: usize) -> MutexGuard<'_, Inner> {
        self.shared.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Acquire);
        let mut inner = self.inner();
        if inner.loads {
            inner.ops.push(Op::Load { at, len });
        }
        inner
    }

    fn record(&self, op: Op) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner();
        inner.ops.push(op);
        inner
    }
}

/// The current CPU, with `VTTBR_EL2` of an address space.
#[derive(Clone, Copy, Debug)]
pub struct Maintains<'a> {
    hw: &'a FakeHardware,
    vmid: Vmid,
}

impl Maintenance for Maintains<'_> {
    fn invalidate(&self, what: Tlbi) {
        self.hw.inner().tlbs.invalidate(self.vmid, what);
    }

    fn wait(&self, barrier: Barrier) {
        let inner = &mut *self.hw.inner();
        inner.tlbs.wait(&inner.ram, barrier);
    }
}

/// A frame table for `frames` frames from `base`, all of them free.
pub fn free_frames(base: Mfn, frames: u64) -> Frames {
    let count = usize::try_from(frames).unwrap();
    let entries = Box::leak((0..count).map(|_| FrameEntry::new()).collect::<Box<[_]>>());
    let frames = Frames::new(FrameTable::new(base, entries).unwrap());
    let end = Mfn::new(frames.table.end()).unwrap();
    frames.give(base..end);
    frames
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed but 0.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }
}

/// Boot storage of tests: leaked.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeakedStorage;

impl Storage for LeakedStorage {
    fn slice<T: Send + Sync + 'static>(
        &self,
        n: usize,
        make: impl FnMut(usize) -> T,
    ) -> Option<&'static mut [T]> {
        Some(Box::leak((0..n).map(make).collect::<Box<[_]>>()))
    }
}
