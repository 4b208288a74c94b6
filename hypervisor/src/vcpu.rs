//! A vCPU as the portable half sees it: run state, event state and where its shared words are.
//!
//! Invariants
//! 1. Everything here is atomic: any CPU may read it and may wake the vCPU. Registers and the private half of the virtual GIC
//!    belong to the CPU that runs it and are the image's.
//! 2. `run` changes `Runnable -> Running` only by the CPU whose queue held it, `Running -> Blocked/Runnable/Offline` only by the CPU
//!    that runs it, `Blocked -> Runnable` by exactly one waker, which queues it.
//!    `Running -> Paused` is the running CPU's too, `Paused -> Runnable` the one's who ends the last pause, who queues it.
//! 3. `on` names the CPU that has its registers, from before they are loaded until after they are saved, and is changed by that CPU alone.
//!    While it names one, `home` is that CPU. Who reads that it names none sees everything that the last one saved.
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use pv_abi::DomId;

use crate::addr::{FrameAddr, Pa};
use crate::evtchn::Queues;
use crate::hardware::CpuId;
use crate::runstate::RunState;
use crate::sched::pool::CpuMask;
use crate::sched::share::Share;

/// A vCPU among all of the machine's: index into the list of vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuIndex(pub u16);

/// What a vCPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Run {
    /// Not started, or stopped for good.
    Offline = 0,
    /// In a run queue.
    Runnable = 1,
    /// On a CPU.
    Running = 2,
    /// Waits for an event, an interrupt or a deadline.
    Blocked = 3,
    /// Was chosen to run while its domain was paused: in no queue until the domain is unpaused ([`crate::pause`]).
    Paused = 4,
}

/// [`Run`] as an atomic byte.
#[derive(Debug, Default)]
pub struct RunCell(AtomicU8);

impl RunCell {
    /// The state.
    #[inline(always)]
    pub fn get(&self) -> Run {
        match self.0.load(Ordering::Acquire) {
            1 => Run::Runnable,
            2 => Run::Running,
            3 => Run::Blocked,
            4 => Run::Paused,
            _ => Run::Offline,
        }
    }

    /// Sets the state (invariant 2 says who may).
    #[inline(always)]
    pub fn set(&self, run: Run) {
        self.0.store(Self::code(run), Ordering::Release);
    }

    /// Goes from one state to another; false when it was not in `from`.
    #[inline]
    pub fn change(&self, from: Run, to: Run) -> bool {
        self.0.compare_exchange(Self::code(from), Self::code(to), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    const fn code(run: Run) -> u8 {
        match run {
            Run::Offline => 0,
            Run::Runnable => 1,
            Run::Running => 2,
            Run::Blocked => 3,
            Run::Paused => 4,
        }
    }
}

/// Port number of `poll` when the vCPU does not poll.
pub const NOT_POLLING: u32 = 0;
/// The vCPU polls several ports: any event wakes it.
pub const POLLING_MANY: u32 = u32::MAX;

/// A CPU's number, or none, as an atomic byte.
#[derive(Debug)]
pub struct CpuCell(AtomicU8);

impl CpuCell {
    const NONE: u8 = u8::MAX;

    /// No CPU.
    pub const fn none() -> Self {
        Self(AtomicU8::new(Self::NONE))
    }

    /// The CPU, if there is one (acquire).
    #[inline(always)]
    pub fn get(&self) -> Option<CpuId> {
        match self.0.load(Ordering::Acquire) {
            Self::NONE => None,
            cpu => Some(CpuId(cpu)),
        }
    }

    /// Names a CPU.
    #[inline(always)]
    pub fn set(&self, cpu: CpuId) {
        self.0.store(cpu.0, Ordering::Release);
    }

    /// Names none (release).
    #[inline(always)]
    pub fn clear(&self) {
        self.0.store(Self::NONE, Ordering::Release);
    }
}

/// The CPU whose run queue a vCPU uses.
#[derive(Debug)]
pub struct Home(AtomicU8);

impl Home {
    /// The CPU.
    #[inline(always)]
    pub fn get(&self) -> CpuId {
        CpuId(self.0.load(Ordering::Relaxed))
    }

    /// Changes it (`sched.rs`, invariant 3, says who may).
    #[inline(always)]
    pub fn set(&self, cpu: CpuId) {
        self.0.store(cpu.0, Ordering::Relaxed);
    }
}

/// Where a vCPU may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Number of its pool.
    pub pool: u8,
    /// The CPUs of the pool that it may use, at least one.
    pub allowed: CpuMask,
    /// The first CPU whose queue it uses, one of them.
    pub home: CpuId,
}

/// One virtual CPU.
pub struct Vcpu {
    /// Its domain.
    pub domain: DomId,
    /// Its number in the domain.
    pub number: u32,
    /// Its index in the machine.
    pub index: VcpuIndex,
    /// The CPU whose run queue it uses.
    pub home: Home,
    /// The CPU that has its registers.
    pub on: CpuCell,
    /// The CPUs that it may use.
    pub allowed: AtomicU32,
    /// Its pool: changed before it is started only.
    pub pool: AtomicU8,
    /// Its account with the scheduler.
    pub share: Share,
    /// What it does.
    pub run: RunCell,
    /// Machine address of its `vcpu_info`; 0 while it has none.
    pub info: AtomicU64,
    /// Its queues of events.
    pub queues: Queues,
    /// [`NOT_POLLING`], the one port it polls, or [`POLLING_MANY`].
    pub poll: AtomicU32,
    /// Counter value at which it is to be woken; `u64::MAX` never.
    pub deadline: AtomicU64,
    /// How long it did what, and where that is told.
    pub runstate: RunState,
    /// When the multicall began in which it is ([`crate::stretch`]); 0 for none. Nobody else looks.
    pub multicall: AtomicU64,
}

impl Vcpu {
    /// A vCPU that is off.
    pub const fn new(domain: DomId, number: u32, index: VcpuIndex, place: Place) -> Self {
        Self {
            domain,
            number,
            index,
            home: Home(AtomicU8::new(place.home.0)),
            on: CpuCell::none(),
            allowed: AtomicU32::new(place.allowed),
            pool: AtomicU8::new(place.pool),
            share: Share::new(),
            run: RunCell(AtomicU8::new(0)),
            info: AtomicU64::new(0),
            queues: Queues::new(),
            poll: AtomicU32::new(NOT_POLLING),
            deadline: AtomicU64::new(u64::MAX),
            runstate: RunState::new(),
            multicall: AtomicU64::new(0),
        }
    }

    /// Whether it waits in a poll.
    pub fn is_polling(&self) -> bool {
        self.poll.load(Ordering::Relaxed) != NOT_POLLING
    }

    /// Where its `vcpu_info` is.
    #[inline(always)]
    pub fn info_at(&self) -> Option<FrameAddr> {
        match self.info.load(Ordering::Acquire) {
            0 => None,
            pa => Pa::new(pa).map(FrameAddr::from_pa),
        }
    }
}
