//! What a physical CPU owns: its block is found through `TPIDR_EL2` and touched by that CPU alone.
//!
//! Invariants
//! 1. `TPIDR_EL2` holds the address of this CPU's [`PerCpu`] from early in its boot for ever; blocks never move.
//! 2. No reference to a block is handed to another CPU: the type is `!Sync`. Its [`Counts`] are atomics that others may read.
#![expect(unsafe_code, reason = "reads the block behind TPIDR_EL2, and owns the stacks")]

use core::cell::{Cell, UnsafeCell};
use core::ptr;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use hypervisor::hardware::CpuId;
use hypervisor::machine::{Current, Machine};
use hypervisor::sched::MAX_CPUS;

use super::arm::Arm;
use super::context::ArchVcpu;
use super::regs;

/// Bytes of a CPU's stack, without its guard page. The self-check walks tables within tables.
pub const STACK_SIZE: usize = if cfg!(feature = "selfcheck") { 64 * 1024 } else { 16 * 1024 };
const PAGE: usize = pv_abi::PAGE_SIZE;

/// A guard page below a stack: never mapped once the tables are final.
#[repr(C, align(4096))]
pub struct GuardedStack {
    guard: [u8; PAGE],
    stack: [u8; STACK_SIZE],
}

/// The stacks: one a CPU, and one more for dying on.
pub struct Stacks(UnsafeCell<[GuardedStack; MAX_CPUS + 1]>);

// SAFETY: only the CPU whose stack it is touches it; the type gives addresses, never references.
unsafe impl Sync for Stacks {}

#[unsafe(link_section = ".stacks")]
pub static STACKS: Stacks = Stacks(UnsafeCell::new(
    [const { GuardedStack { guard: [0; PAGE], stack: [0; STACK_SIZE] } }; MAX_CPUS + 1],
));

/// Bytes of the first CPU's stack during boot: device-tree walks and building domains need more than guests ever make EL2 use.
const BOOT_STACK_SIZE: usize = 256 * 1024;

/// The stack of the boot, with its guard page.
#[repr(C, align(4096))]
pub struct BootStack(UnsafeCell<[u8; PAGE + BOOT_STACK_SIZE]>);

// SAFETY: the first CPU alone uses it.
unsafe impl Sync for BootStack {}

#[unsafe(link_section = ".stacks")]
pub static BOOT_STACK: BootStack = BootStack(UnsafeCell::new([0; PAGE + BOOT_STACK_SIZE]));

impl BootStack {
    /// Address of its guard page.
    pub fn guard(&self) -> usize {
        self.0.get().addr()
    }
}

/// Offset of the top of the boot stack from [`BOOT_STACK`], for the assembly.
pub const BOOT_STACK_TOP: usize = size_of::<BootStack>();

impl Stacks {
    /// Address of the guard page of stack `n`.
    pub fn guard(&self, n: usize) -> usize {
        self.0.get().addr().wrapping_add(n.wrapping_mul(size_of::<GuardedStack>()))
    }

    /// Address just past stack `n`.
    pub fn top(&self, n: usize) -> usize {
        self.guard(n).wrapping_add(size_of::<GuardedStack>())
    }
}

/// Offset of the top of stack `n` from [`STACKS`], for the assembly.
pub const fn stack_top_offset(n: usize) -> usize {
    size_of::<GuardedStack>().wrapping_mul(n.wrapping_add(1))
}

/// Where a CPU that enters finds its number and its stack: by its `MPIDR_EL1`, as a spin table hands nothing over.
#[repr(C)]
pub struct Entry {
    /// Affinity fields; `u64::MAX` for nobody.
    pub mpidr: AtomicU64,
    /// Address just past its stack.
    pub top: AtomicU64,
}

/// Indexed by the CPU's number; read by boot.S with the MMU on.
pub static ENTRIES: [Entry; MAX_CPUS] =
    [const { Entry { mpidr: AtomicU64::new(u64::MAX), top: AtomicU64::new(0) } }; MAX_CPUS];

/// A number that its CPU alone changes, and any may read.
pub struct Count(AtomicU64);

impl Count {
    const fn zero() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more, by the CPU whose it is.
    #[inline(always)]
    pub fn add(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// So many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is counted on a CPU (`pv_abi::control::Counters`).
pub struct Counts {
    /// Interrupts, and traps apart from calls, that it has taken from guests.
    pub exits: Count,
    /// Those for a WFI or WFE.
    pub trapped_waits: Count,
    /// Times that it waited with nothing to do.
    pub idle_waits: Count,
}

impl Counts {
    /// All of them, in the order of the fields.
    pub fn read(&self) -> (u64, u64, u64) {
        (self.exits.get(), self.trapped_waits.get(), self.idle_waits.get())
    }
}

/// One CPU's block.
#[repr(C)]
pub struct PerCpu {
    /// SErrors taken at EL2; the assembly counts.
    pub serrors: Cell<u64>,
    /// Its number.
    pub id: CpuId,
    /// Set when the running vCPU may have to give way.
    pub reschedule: Cell<bool>,
    /// Set when the running vCPU goes off: the scheduler takes it out of the CPU before others are told.
    pub going_off: Cell<bool>,
    /// What it has taken from guests, and how it idled.
    pub counts: Counts,
    /// Whether the CPU has `FEAT_RAS`.
    pub has_ras: Cell<bool>,
    /// Set when the loaded vCPU's interrupts need the long way ([`hypervisor::vgic`]'s service).
    pub service: Cell<bool>,
    /// Where the vCPU's registers are that is loaded; null when none is.
    loaded: Cell<*const ArchVcpu>,
    /// Whose floating-point registers are in the CPU, or were when it ran here last; null when nobody's.
    pub fp_owner: Cell<*const ArchVcpu>,
    /// The caller of the next hypercall: valid while `loaded` is not null.
    pub current: Cell<Option<&'static Current<'static>>>,
    current_at: UnsafeCell<Option<Current<'static>>>,
    /// The machine; valid from the moment that guests run.
    pub machine: Cell<Option<&'static Machine<Arm>>>,
    /// Physical address of the redistributor's mapping, as an EL2 virtual address; 0 with a GICv2.
    pub redistributor: Cell<usize>,
}

/// All blocks.
pub struct Blocks(UnsafeCell<[PerCpu; MAX_CPUS]>);

// SAFETY: each CPU reaches its own element only (invariant 1).
unsafe impl Sync for Blocks {}

const fn block(id: u8) -> PerCpu {
    PerCpu {
        serrors: Cell::new(0),
        id: CpuId(id),
        reschedule: Cell::new(false),
        going_off: Cell::new(false),
        counts: Counts { exits: Count::zero(), trapped_waits: Count::zero(), idle_waits: Count::zero() },
        has_ras: Cell::new(false),
        service: Cell::new(false),
        loaded: Cell::new(ptr::null()),
        fp_owner: Cell::new(ptr::null()),
        current: Cell::new(None),
        current_at: UnsafeCell::new(None),
        machine: Cell::new(None),
        redistributor: Cell::new(0),
    }
}

static BLOCKS: Blocks =
    Blocks(UnsafeCell::new([block(0), block(1), block(2), block(3), block(4), block(5), block(6), block(7)]));

/// Claims block `n` for the CPU that executes this; once a CPU, before anything else of this module.
pub fn claim(n: usize) {
    let blocks = BLOCKS.0.get().cast::<PerCpu>();
    regs::tpidr_el2::write(blocks.wrapping_add(n % MAX_CPUS).addr() as u64);
}

/// This CPU's block.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    let address = regs::tpidr_el2::read();
    // SAFETY: invariant 1; the address was made from `BLOCKS` by `claim`, and only this CPU reads it.
    unsafe { &*ptr::with_exposed_provenance::<PerCpu>(address as usize) }
}

/// What is counted on a CPU.
pub fn counts(cpu: CpuId) -> Option<&'static Counts> {
    let number = Some(usize::from(cpu.0)).filter(|number| *number < MAX_CPUS)?;
    let block = BLOCKS.0.get().cast::<PerCpu>().wrapping_add(number);
    // SAFETY: inside `BLOCKS`; no reference to the block is made, and its counts are atomics (invariant 2).
    let counts = unsafe { &raw const (*block).counts };
    // SAFETY: as above; blocks never move.
    unsafe { counts.as_ref() }
}

impl PerCpu {
    /// The vCPU that is loaded.
    #[inline(always)]
    pub fn loaded(&self) -> Option<&'static ArchVcpu> {
        // SAFETY: `set_loaded` takes what lives for ever.
        unsafe { self.loaded.get().as_ref() }
    }

    /// Says that no vCPU is loaded.
    pub fn unload(&self) {
        self.loaded.set(ptr::null());
    }

    /// Says which vCPU is loaded.
    pub fn set_loaded(&self, arch: &'static ArchVcpu) {
        self.loaded.set(arch);
    }

    /// Says who makes the next hypercalls on this CPU.
    pub fn set_current(&'static self, current: Current<'static>) {
        self.current.set(None);
        let at = self.current_at.get();
        // SAFETY: nobody holds a reference: `current` was the only way to one, was cleared above, and hypercalls of the vCPU that
        // was loaded before have ended.
        unsafe { at.write(Some(current)) };
        // SAFETY: just written; stays until the next call.
        let current = unsafe { (*at).as_ref() };
        self.current.set(current);
    }
}
