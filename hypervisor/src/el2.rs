//! EL2 on AArch64: everything that names a register, an instruction or an address. Decides nothing; the library does.
#![expect(unsafe_code, reason = "assembly, linker symbols, and entering the first guest")]

pub mod arm;
pub mod board;
pub mod boot;
pub mod bug;
pub mod carve;
pub mod console;
pub mod context;
pub mod direct;
pub mod emulate;
pub mod finish;
pub mod gic;
pub mod inject;
pub mod log;
pub mod mmu;
pub mod passthrough;
pub mod percpu;
pub mod regs;
pub mod report;
pub mod run;
pub mod smccc;
pub mod speculation;
#[cfg(feature = "selfcheck")]
pub mod stop;
#[cfg(feature = "selfcheck")]
pub mod stretch;
pub mod sysreg;
pub mod timer;
pub mod trap;

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hypervisor::console::keyboard::Keyboard;
use hypervisor::devicetree::HostMachine;
use hypervisor::domain_build::{Host, Storage};
use hypervisor::life::{Plans, Reaper};
use hypervisor::machine::Machine;
use hypervisor::sched::{self, MAX_CPUS, Scheduler};
use hypervisor::vcpu::VcpuIndex;
use hypervisor::vgic::{PrivateIntid, VcpuGic, VcpuNumber};
use hypervisor::wallclock::{self, WallClock};
use pv_abi::layout::vcpu_affinity;
use spin::Once;

use arm::Arm;
use boot::{Guests, Memory};
use context::{ArchVcpu, Frame};
use percpu::PerCpu;

/// The version that the log says.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

global_asm!(
    include_str!("el2/boot.S"),
    MAIR = const regs::MAIR,
    TCR = const regs::TCR,
    SCTLR = const regs::SCTLR,
    SCTLR_OFF = const regs::SCTLR_OFF,
    TEXT = const mmu::TEXT,
    RODATA = const mmu::RODATA,
    DATA = const mmu::DATA,
    IDENTITY = const mmu::IDENTITY,
    AFFINITY = const boot::AFFINITY,
    MAX_CPUS = const MAX_CPUS,
    ENTRIES = sym percpu::ENTRIES,
    STACK = sym percpu::BOOT_STACK,
    STACK_TOP = const percpu::BOOT_STACK_TOP,
);
global_asm!(
    include_str!("el2/vectors.S"),
    FRAME = const size_of::<Frame>(),
    CALLS = const offset_of!(Frame, calls),
    SERRORS = const offset_of!(PerCpu, serrors),
    STACKS = sym percpu::STACKS,
    BUG_STACK_TOP = const percpu::stack_top_offset(MAX_CPUS),
);

/// INTIDs that EL2 serves, from the device tree.
#[derive(Clone, Copy)]
pub struct Interrupts {
    /// The guests' timer.
    pub virtual_timer: u32,
    /// EL2's timer.
    pub hypervisor_timer: u32,
    /// The virtual interface's.
    pub maintenance: u32,
}

static INTERRUPTS: [AtomicU32; 3] = [const { AtomicU32::new(u32::MAX) }; 3];

/// Says which interrupts EL2 serves.
pub fn set_interrupts(interrupts: Interrupts) {
    let [timer, hypervisor, maintenance] = &INTERRUPTS;
    timer.store(interrupts.virtual_timer, Ordering::Relaxed);
    hypervisor.store(interrupts.hypervisor_timer, Ordering::Relaxed);
    maintenance.store(interrupts.maintenance, Ordering::Relaxed);
}

/// Which interrupts EL2 serves.
#[inline]
pub fn interrupts() -> Interrupts {
    let [timer, hypervisor, maintenance] = &INTERRUPTS;
    Interrupts {
        virtual_timer: timer.load(Ordering::Relaxed),
        hypervisor_timer: hypervisor.load(Ordering::Relaxed),
        maintenance: maintenance.load(Ordering::Relaxed),
    }
}

/// Bytes of the image in memory.
pub fn image_size() -> u64 {
    unsafe extern "C" {
        static __image_start: u8;
        static __image_end: u8;
    }
    let end = (&raw const __image_end).addr();
    end.wrapping_sub((&raw const __image_start).addr()) as u64
}

/// Where a guest's device tree is written before it is copied: 8 vCPUs and the longest command line fit.
const SCRATCH: usize = 16 << 10;
struct Scratch(UnsafeCell<[u8; SCRATCH]>);
// SAFETY: the first CPU uses it during boot, alone.
unsafe impl Sync for Scratch {}
static SCRATCH_BUFFER: Scratch = Scratch(UnsafeCell::new([0; SCRATCH]));
static SCRATCH_TAKEN: AtomicBool = AtomicBool::new(false);

/// The scratch buffer: by the first CPU, during boot, one user at a time.
pub fn scratch() -> &'static mut [u8] {
    SCRATCH_TAKEN.store(true, Ordering::Relaxed);
    // SAFETY: boot runs on one CPU and uses the buffer within one call at a time.
    unsafe { &mut *SCRATCH_BUFFER.0.get() }
}

struct Running {
    machine: Machine<Arm>,
    host: HostMachine<'static>,
    arch: &'static [ArchVcpu],
}
// SAFETY: `ArchVcpu` and the machine are shared by their own rules.
unsafe impl Sync for Running {}
// SAFETY: made by the first CPU, used by all.
unsafe impl Send for Running {}

static RUNNING: Once<Running> = Once::new();
/// CPUs that have entered.
static ENTERED: AtomicU32 = AtomicU32::new(1);
static GO: AtomicBool = AtomicBool::new(false);

/// A vCPU's registers.
#[inline]
pub fn arch_vcpu(index: VcpuIndex) -> Option<&'static ArchVcpu> {
    RUNNING.get()?.arch.get(usize::from(index.0))
}

/// The private half of a vCPU's interrupt state after reset.
pub fn fresh_gic(vcpu: u32) -> VcpuGic {
    let number = VcpuNumber::new(vcpu as usize).unwrap_or(VcpuNumber::BOOT);
    let mut gic = VcpuGic::new(number, gic::layout(), gic::list_register_count());
    gic.declare_hw(PrivateIntid::VIRTUAL_TIMER, interrupts().virtual_timer as u16);
    gic
}

/// Makes everything that was built known to all CPUs.
pub fn publish(memory: Memory, guests: Guests, host: HostMachine<'static>) {
    let Memory { frames, carve, .. } = memory;
    let Guests { domains, starts, vcpus, configs, plan } = guests;
    let shown = Host::of(&host);
    let first_id = domains.first().map_or(1, |first| first.id.0.min(1));
    let arch = carve.slice(vcpus.len(), |n| {
        let found = vcpus.get(n).and_then(|(domain, vcpu)| Some((*domain, *vcpu, domain.gic_of(vcpu)?)));
        let Some((domain, vcpu, shared)) = found else { bug::stop("a vCPU got lost") };
        let gic = fresh_gic(vcpu.number);
        ArchVcpu::new(domain, vcpu, shared, gic, u64::from(vcpu_affinity(vcpu.number)) | MPIDR_RES1)
    });
    let Some(arch) = arch else { bug::stop("no room for the vCPUs") };
    let sched = Scheduler::new(&carve, plan.cpus(), vcpus.len(), timer::frequency(), plan.pools());
    let Some(sched) = sched else { bug::stop("no room for the run queues") };
    let running = RUNNING.call_once(|| Running {
        machine: Machine {
            hw: Arm,
            frames,
            domains,
            first_id,
            reaper: Reaper::new(domains.len()),
            plans: Plans::new(configs, shown, boot::GUEST_SPIS),
            vcpus,
            keyboard: Keyboard::default(),
            wall_clock: WallClock::default(),
            sched,
        },
        host,
        arch,
    });
    for (domain, start) in domains.iter().zip(&starts) {
        let Some(first) = domain.vcpus.first() else { continue };
        if let Some(arch) = arch_vcpu(first.index) {
            arch.set_entry(start.pc.get(), start.x0.get());
        }
        wallclock::tell(&running.machine, domain);
        sched::start(&running.machine, first);
    }
}

/// `MPIDR_EL1`: bit 31 is RES1.
const MPIDR_RES1: u64 = 1 << 31;

/// Lets the other CPUs run guests.
pub fn release_secondaries() {
    GO.store(true, Ordering::Release);
}

/// How many CPUs have entered, the first counted.
pub fn entered() -> u32 {
    ENTERED.load(Ordering::Acquire)
}

/// A CPU that was started joins the machine.
pub fn join() {
    ENTERED.fetch_add(1, Ordering::AcqRel);
    while !GO.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    if let Some(running) = RUNNING.get() {
        boot::cpu_interrupts(&running.host, interrupts(), percpu::this());
        passthrough::arrive(percpu::this().id);
    }
}

/// Sets EL2's traps for guests and enters the first one of this CPU. Never returns.
pub fn run_guests() -> ! {
    let cpu = percpu::this();
    let Some(running) = RUNNING.get() else { bug::halt() };
    cpu.machine.set(Some(&running.machine));
    #[cfg(feature = "selfcheck")]
    arm::check_aborted_translations();
    context::init_cpu(running.machine.sched.is_partition(cpu.id));
    if cpu.id.0 == 0 {
        console::buffer();
        console::listen(&running.host);
        defmt::info!("boot instructions {=u64}", regs::cntpct_el0::read());
    }
    let top = percpu::STACKS.top(usize::from(cpu.id.0));
    // SAFETY: gives the stack up; `enter_guests` starts again at its top and never returns.
    unsafe {
        asm!("b enter_guests", in("x0") top, options(noreturn));
    }
}
