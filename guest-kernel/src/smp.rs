//! The further vCPUs: each is off until [`start`] gives it something to do, and off again when that has ended.
//!
//! 1. `TPIDR_EL1` holds the address of the vCPU's [`Block`] from before its first Rust instruction for ever.
//! 2. A vCPU's stacks are used by that vCPU alone: PSCI starts it only when it is off, and it goes off only at their bottom.
//! 3. A job is left in the block before the vCPU is started, and taken by the vCPU alone. Whoever has moved the block from
//!    `FREE` to `TAKEN` leaves it.
#![expect(unsafe_code, reason = "stacks, the block behind TPIDR_EL1, and where a vCPU begins")]
extern crate alloc;
use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aarch64_cpu::registers::{Readable, TPIDR_EL1};
use spin::Once;

use crate::interrupt::{self, Intid};
use crate::lock::Lock;
use crate::psci::{self, CpuOnError, Power};
use crate::{cpu, hypercall, paging, pv};

/// Most vCPUs that are used.
pub const MAX_CPUS: usize = 8;
const PAGE: usize = 4096;

/// A vCPU of this domain that the device tree names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu(u32);

impl Cpu {
    /// The one that boots.
    pub const FIRST: Self = Self(0);

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Its number, to index with: below [`MAX_CPUS`].
    pub const fn index(self) -> usize {
        self.0 as usize % MAX_CPUS
    }

    /// Whether it is on.
    pub fn power(self) -> Power {
        psci::affinity_info(psci::affinity(self.0))
    }
}

type Job = Box<dyn FnOnce() + Send>;

const FREE: u32 = 0;
const TAKEN: u32 = 1;

/// What the assembly and the vCPU itself know of a vCPU.
#[repr(C)]
struct Block {
    fault_stack: AtomicU64,
    stack: AtomicU64,
    /// `TTBR0_EL1` of the final tables.
    translation: AtomicU64,
    number: u32,
    state: AtomicU32,
    /// Who is told when the job has ended.
    waiter: AtomicU32,
    job: Lock<Option<Job>>,
}

// boot.S and vectors.S know these.
const _: () = {
    assert!(core::mem::offset_of!(Block, fault_stack) == 0);
    assert!(core::mem::offset_of!(Block, stack) == 8);
    assert!(core::mem::offset_of!(Block, translation) == 16);
};

const fn block(number: u32) -> Block {
    Block {
        fault_stack: AtomicU64::new(0),
        stack: AtomicU64::new(0),
        translation: AtomicU64::new(0),
        number,
        state: AtomicU32::new(FREE),
        waiter: AtomicU32::new(0),
        job: Lock::new(None),
    }
}

#[unsafe(export_name = "guest_kernel_blocks")]
static BLOCKS: [Block; MAX_CPUS] =
    [block(0), block(1), block(2), block(3), block(4), block(5), block(6), block(7)];

/// A vCPU's stacks, each above a page that is never mapped.
#[repr(C, align(4096))]
struct Stacks {
    guard: [u8; PAGE],
    stack: [u8; 8 * PAGE],
    fault_guard: [u8; PAGE],
    fault_stack: [u8; 4 * PAGE],
}

struct AllStacks(UnsafeCell<[Stacks; MAX_CPUS - 1]>);

// SAFETY: only addresses are taken; the memory is used as stacks, by invariant 2.
unsafe impl Sync for AllStacks {}

const NO_STACKS: Stacks =
    Stacks { guard: [0; PAGE], stack: [0; 8 * PAGE], fault_guard: [0; PAGE], fault_stack: [0; 4 * PAGE] };

/// Not part of the image's file (guest.ld).
#[unsafe(link_section = ".stack.secondary")]
static STACKS: AllStacks = AllStacks(UnsafeCell::new([NO_STACKS; MAX_CPUS - 1]));

/// The stacks' addresses, lowest first: vCPU 1 first.
fn stacks() -> impl Iterator<Item = u64> {
    let base = STACKS.0.get().addr();
    (0..MAX_CPUS - 1).map(move |n| (base + n * size_of::<Stacks>()) as u64)
}

/// Pages that must not be mapped, in ascending order.
pub(crate) fn guard_pages() -> impl Iterator<Item = u64> {
    stacks().flat_map(|at| {
        [
            at + core::mem::offset_of!(Stacks, guard) as u64,
            at + core::mem::offset_of!(Stacks, fault_guard) as u64,
        ]
    })
}

/// Tells the further vCPUs their stacks, and the tables that the first has made.
pub(crate) fn share_translation(ttbr0: u64) {
    for (block, at) in BLOCKS.iter().skip(1).zip(stacks()) {
        block.stack.store(at + core::mem::offset_of!(Stacks, fault_guard) as u64, Ordering::Relaxed);
        block.fault_stack.store(at + size_of::<Stacks>() as u64, Ordering::Relaxed);
        block.translation.store(ttbr0, Ordering::Release);
    }
}

static COUNT: Once<u32> = Once::new();

/// Says how many vCPUs the device tree names.
pub(crate) fn set_count(cpus: u32) {
    COUNT.call_once(|| cpus.clamp(1, MAX_CPUS as u32));
}

/// vCPUs of this domain, [`MAX_CPUS`] at most.
pub fn count() -> u32 {
    COUNT.get().copied().unwrap_or(1)
}

/// All of them.
pub fn all() -> impl DoubleEndedIterator<Item = Cpu> {
    (0..count()).map(Cpu)
}

/// The vCPU with this number, if there is one.
pub fn cpu(number: u32) -> Option<Cpu> {
    (number < count()).then_some(Cpu(number))
}

fn own_block() -> &'static Block {
    let block = core::ptr::with_exposed_provenance::<Block>(TPIDR_EL1.get() as usize);
    // SAFETY: invariant 1; blocks are static.
    unsafe { &*block }
}

/// The vCPU that this runs on.
pub fn this() -> Cpu {
    Cpu(own_block().number)
}

impl Cpu {
    fn block(self) -> &'static Block {
        &BLOCKS[self.index()]
    }
}

/// Why a vCPU cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// It is on, or another vCPU is starting it.
    AlreadyOn,
    /// [`interrupt::start`] comes first.
    NoController,
    /// What PSCI says.
    Refused(CpuOnError),
}

/// A vCPU that was started.
#[derive(Debug)]
#[must_use = "join says when it is off again"]
pub struct Started(Cpu);

/// Starts a vCPU that is off. It runs `work` with interrupts let in, on a stack of 32 KiB, and goes off when that returns.
///
/// # Errors
/// [`StartError`]
pub fn start(cpu: Cpu, work: impl FnOnce() + Send + 'static) -> Result<Started, StartError> {
    interrupt::controller().map_err(|_| StartError::NoController)?;
    let block = cpu.block();
    if cpu == Cpu::FIRST
        || block.state.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_err()
    {
        return Err(StartError::AlreadyOn);
    }
    // Its last job has ended; it takes a moment to go off.
    while cpu.power() == Power::On {
        let _ = hypercall::sched_yield();
    }
    block.waiter.store(this().number(), Ordering::Release);
    *block.job.lock() = Some(Box::new(work));
    match switch_on(cpu) {
        Ok(()) => Ok(Started(cpu)),
        Err(why) => {
            block.job.lock().take();
            block.state.store(FREE, Ordering::Release);
            Err(StartError::Refused(why))
        }
    }
}

/// Switches a vCPU on by PSCI, without a job: unless [`start`] has just left one, it goes off again.
///
/// # Errors
/// [`CpuOnError`]
pub fn switch_on(cpu: Cpu) -> Result<(), CpuOnError> {
    unsafe extern "C" {
        static secondary_start: u8;
        static secondary_start_checked: u8;
    }
    let entry = if pv::is_on() { &raw const secondary_start_checked } else { &raw const secondary_start };
    let entry = entry.addr() as u64;
    let context = core::ptr::from_ref(cpu.block()).expose_provenance() as u64;
    // SAFETY: the entry sets the vCPU up from its own block (invariants 1 and 2).
    unsafe { psci::cpu_on(psci::affinity(cpu.0), entry, context) }
}

/// Keeps a vCPU that is off from looking for a job, and so from going off again, while this is held and it has been switched on.
pub fn keep_from_job(cpu: Cpu) -> impl Drop {
    cpu.block().job.lock()
}

impl Started {
    /// Which vCPU it is.
    pub const fn cpu(&self) -> Cpu {
        self.0
    }

    /// Waits, asleep in the hypervisor, until its work has ended, and until it is off.
    pub fn join(self) {
        let block = self.0.block();
        block.waiter.store(this().number(), Ordering::SeqCst);
        interrupt::wait_until(|| block.state.load(Ordering::SeqCst) == FREE);
        while self.0.power() == Power::On {
            let _ = hypercall::sched_yield();
        }
    }
}

/// Makes another vCPU that waits in [`interrupt::wait_until`] look again.
pub fn wake(cpu: Cpu) {
    // Without a controller nobody waits so.
    let _ = interrupt::send(cpu, Intid::WAKE);
}

#[unsafe(no_mangle)]
extern "C" fn guest_kernel_secondary() -> ! {
    let block = own_block();
    if !pv::is_on() {
        paging::enter_upper();
    }
    // CPU_OFF does not return, unless the hypervisor refuses.
    loop {
        let job = block.job.lock().take();
        if let Some(job) = job {
            run(block, job);
        }
        psci::cpu_off();
    }
}

fn run(block: &Block, job: Job) {
    if interrupt::start_here().is_ok() {
        job();
    }
    cpu::mask_interrupts();
    // Whoever waits has said so before it looked at the state (both sequentially consistent).
    block.state.store(FREE, Ordering::SeqCst);
    if let Some(waiter) = self::cpu(block.waiter.load(Ordering::SeqCst)) {
        wake(waiter);
    }
}
