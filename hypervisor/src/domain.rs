//! A domain: what it is, what is under its lock, what is beside it.
//!
//! Invariants
//! 1. The list of domains is made at boot and never changes; a `&Domain` is valid for ever. [`Life`] says whether it still lives, [`Stage`]
//!    what of it is still there. Its root tables and shared-info frame stay with it.
//! 2. `state` is the domain's lock (rank 20). Two are taken by [`lock_two`] only, in the order of ids. `lock.rs` has what
//!    may be taken under it. Nothing waits for another CPU while it holds one.
//! 3. `ports`, `life`, the vCPUs' atomics and the constants are read without the lock; ports change under it.
use core::cmp::Ordering;
use core::sync::atomic::{self, AtomicBool, AtomicU32, AtomicU64};

use pv_abi::DomId;

use crate::addr::Mfn;
use crate::console::LineBuffer;
use crate::evtchn::{Fifo, PortsState};
use crate::grant::GrantState;
use crate::hardware::Vmid;
use crate::hvm::Params;
use crate::life::{Build, Fate, Undo};
use crate::lock::{Guard, Lock, rank};
use crate::memory::MemoryState;
use crate::pagetable;
use crate::pause::Pauses;
use crate::sched::share::Cap;
use crate::stage2::{Kind, Stage2};
use crate::vcpu::Vcpu;
use crate::vgic::{DistState, VcpuShared};
use crate::vpl011::Vpl011;
use crate::watchdog::Watchdogs;
use pv_abi::sched::ShutdownReason;

/// Domains the machine can have: a control domain and 256 others.
pub const MAX_DOMAINS: usize = 257;

/// The control domain's number.
pub const CONTROL: DomId = DomId(0);

/// Whether a domain lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Its vCPUs run.
    Running,
    /// It asked to stop, for this reason; its vCPUs run no more.
    Shutdown(ShutdownReason),
    /// It did what no guest may do and was stopped.
    Destroyed(Fault),
}

/// Why a domain was stopped against its will.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Fault {
    /// It kept a word busy that it shares with the hypervisor.
    WordContended = 0,
    /// It took an `SError` that nobody can attribute further.
    SystemError = 1,
    /// An exception class that no guest causes.
    UnknownException = 2,
    /// The control domain asked for it.
    ByControl = 3,
}

/// How far a domain is on its way, whatever ended it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Its vCPUs run, or are paused.
    Running,
    /// It has ended and is kept as it was.
    Ended,
    /// What it had is being taken back ([`crate::life`]).
    Dying,
    /// It has nothing any more, and nobody sees it.
    Dead,
    /// It is being built anew, and nobody sees it yet.
    Building,
}

const RUNNING: u32 = 0;
/// The stage of a domain that has ended, above the code of its end.
const STAGE_MASK: u32 = 3 << 16;
const DYING: u32 = 1 << 16;
const DEAD: u32 = 2 << 16;
const BUILDING: u32 = 3 << 16;
const SHUTDOWN_BASE: u32 = 0x100;
const FAULT_BASE: u32 = 0x200;

/// [`Life`] as an atomic word.
#[derive(Debug, Default)]
pub struct LifeCell(AtomicU32);

impl LifeCell {
    /// The state.
    #[inline]
    pub fn get(&self) -> Life {
        match self.0.load(atomic::Ordering::Acquire) & !STAGE_MASK {
            RUNNING => Life::Running,
            code @ SHUTDOWN_BASE..FAULT_BASE => Life::Shutdown(
                ShutdownReason::from_number(code.wrapping_sub(SHUTDOWN_BASE))
                    .unwrap_or(ShutdownReason::Crash),
            ),
            code => Life::Destroyed(match code.wrapping_sub(FAULT_BASE) {
                0 => Fault::WordContended,
                1 => Fault::SystemError,
                3 => Fault::ByControl,
                _ => Fault::UnknownException,
            }),
        }
    }

    /// Whether it still runs.
    #[inline(always)]
    pub fn is_running(&self) -> bool {
        self.0.load(atomic::Ordering::Acquire) == RUNNING
    }

    /// How far it is.
    #[inline]
    pub fn stage(&self) -> Stage {
        let word = self.0.load(atomic::Ordering::Acquire);
        match word & STAGE_MASK {
            DYING => Stage::Dying,
            DEAD => Stage::Dead,
            BUILDING => Stage::Building,
            _ if word == RUNNING => Stage::Running,
            _ => Stage::Ended,
        }
    }

    /// Whether others can begin to use what is its own: not once that is being taken back.
    #[inline]
    pub fn can_give(&self) -> bool {
        self.0.load(atomic::Ordering::Acquire) & STAGE_MASK == 0
    }

    /// Begins to take back what a domain that has ended had; false when that had begun.
    pub(crate) fn die(&self) -> bool {
        let word = self.0.load(atomic::Ordering::Acquire);
        word != RUNNING
            && word & STAGE_MASK == 0
            && self
                .0
                .compare_exchange(word, word | DYING, atomic::Ordering::AcqRel, atomic::Ordering::Acquire)
                .is_ok()
    }

    /// Goes to a stage without anything that runs: dying, dead or building. By the one who makes the steps ([`crate::life`]).
    pub(crate) fn go(&self, stage: Stage) {
        let code = match stage {
            Stage::Dying => DYING,
            Stage::Dead => DEAD,
            Stage::Building => BUILDING,
            Stage::Running | Stage::Ended => return,
        };
        let word = self.0.load(atomic::Ordering::Acquire);
        self.0.store(word & !STAGE_MASK | code, atomic::Ordering::Release);
    }

    /// Runs, with its first life's state: it was built anew.
    pub(crate) fn begin(&self) {
        self.0.store(RUNNING, atomic::Ordering::Release);
    }

    /// Leaves `Running` for `end`; false when it had left before.
    pub fn end(&self, end: Life) -> bool {
        let code = match end {
            Life::Running => return false,
            Life::Shutdown(reason) => SHUTDOWN_BASE.wrapping_add(reason.number()),
            Life::Destroyed(fault) => FAULT_BASE.wrapping_add(match fault {
                Fault::WordContended => 0,
                Fault::SystemError => 1,
                Fault::UnknownException => 2,
                Fault::ByControl => 3,
            }),
        };
        self.0.compare_exchange(RUNNING, code, atomic::Ordering::AcqRel, atomic::Ordering::Acquire).is_ok()
    }
}

/// A guest with its memory and vCPUs.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// Its address space's name in the TLB.
    pub vmid: Vmid,
    /// Root of its stage 2: read without the lock.
    pub stage2_root: Mfn,
    /// The shared-info frame, the hypervisor's for as long as the domain is.
    pub shared_info: Mfn,
    /// Whether a `/hypervisor` node and its parameters are there.
    pub enhanced: bool,
    /// Whether other domains' events and grants are kept from it, and its own from them.
    pub isolated: bool,
    /// Whether it lives.
    pub life: LifeCell,
    /// Whether updates of run-state areas are marked (`VMASST_TYPE_runstate_update_flag`).
    pub marks_runstate: AtomicBool,
    /// What becomes of it when it has ended.
    pub fate: Fate,
    /// How often it is paused. Set under its lock.
    pub pauses: Pauses,
    /// How much of a CPU it may use.
    pub cap: Cap,
    /// Its page tables, if they are paravirtual: the part beside the lock.
    pub paging: Option<pagetable::Shared>,
    /// Its watchdogs. Set under its lock.
    pub watchdogs: Watchdogs,
    /// Whether a vCPU of it has ever polled: who sends to one that does not looks at no vCPU. Said before the vCPU says what it polls for.
    pub polled: AtomicBool,
    /// Its event ports ([`crate::evtchn::PortWord`]), index = port.
    pub ports: &'static [AtomicU64],
    /// Its event queues and their array.
    pub fifo: Fifo,
    /// Its vCPUs, index = number.
    pub vcpus: &'static [Vcpu],
    /// The device tree that it starts with.
    pub tree: &'static [u8],
    /// What the vCPUs' virtual interrupt state shares between CPUs, index = number.
    pub gic: &'static [VcpuShared],
    /// Everything that changes under the lock.
    pub state: Lock<DomainState, { rank::DOMAIN }>,
    /// What it has written to the console since the last newline. Rank 50.
    pub console: Lock<LineBuffer, { rank::CONSOLE }>,
}

/// What changes under the domain's lock.
pub struct DomainState {
    /// Stage-2 tables.
    pub stage2: Stage2,
    /// Its roots and controls, if its page tables are paravirtual.
    pub paging: Option<pagetable::Paging>,
    /// Which ports are free.
    pub ports: PortsState,
    /// Grant table and the grants it has mapped.
    pub grants: GrantState,
    /// Frames it has and may have.
    pub memory: MemoryState,
    /// HVM parameters.
    pub params: Params,
    /// Distributor.
    pub gic: DistState,
    /// Its emulated UART, if it has one.
    pub uart: Option<Vpl011>,
    /// How far taking back is, once it is dying.
    pub undo: Undo,
    /// How far building is, while it is built anew.
    pub build: Build,
}

impl Domain {
    /// Whether this domain and another may offer each other events and grants (Xen's `xsm=silo`, for those that ask for it; the control
    /// domain may always).
    #[inline]
    pub fn may_talk_to(&self, other: &Self) -> bool {
        !(self.isolated || other.isolated) || self.id == other.id || self.is_control() || other.is_control()
    }

    /// The vCPU with this number.
    #[inline(always)]
    pub fn vcpu(&self, number: u32) -> Option<&Vcpu> {
        self.vcpus.get(usize::try_from(number).ok()?)
    }

    /// Whether it is the control domain, which may make the privileged calls.
    pub fn is_control(&self) -> bool {
        self.id == CONTROL
    }

    /// Whether a vCPU may write a value to a control of its translation. The lock-free look is enough: who writes is the vCPU that ended
    /// the trust, or one that came on after.
    pub fn permits(&self, control: pagetable::control::Register, value: u64) -> bool {
        !pagetable::CHECKED
            || !self.paging().is_some_and(pagetable::Shared::is_installed)
            || self
                .state
                .lock()
                .paging
                .as_ref()
                .is_some_and(|paging| paging.controls().permit(control, value))
    }

    /// The part of its paravirtual page tables that is beside the lock; `None` in a domain that owns its tables.
    #[inline(always)]
    pub fn paging(&self) -> Option<&pagetable::Shared> {
        self.paging.as_ref()
    }

    /// What its RAM is to stage 2 while it is data.
    pub fn ram_kind(&self) -> Kind {
        if self.paging().is_some() { Kind::Data } else { Kind::Ram }
    }

    /// The shared part of a vCPU's virtual interrupt state.
    #[inline(always)]
    pub fn gic_of(&self, vcpu: &Vcpu) -> Option<&VcpuShared> {
        self.gic.get(usize::try_from(vcpu.number).ok()?)
    }
}

/// Locks a second domain with the first one's lock held, where the order of their ids allows it: `Some(None)` when both are the same, `None` when the
/// first one's lock has to be given back for it ([`lock_two`]).
#[inline]
pub fn lock_after<'a>(first: &Domain, second: &'a Domain) -> Option<Option<Guard<'a, DomainState>>> {
    match first.id.cmp(&second.id) {
        Ordering::Equal => Some(None),
        Ordering::Less => Some(Some(second.state.lock_second())),
        Ordering::Greater => None,
    }
}

/// Locks two domains in the order of their ids; `None` for the second when both are the same.
pub fn lock_two<'a>(
    first: &'a Domain,
    second: &'a Domain,
) -> (Guard<'a, DomainState>, Option<Guard<'a, DomainState>>) {
    if first.id == second.id {
        return (first.state.lock(), None);
    }
    if first.id.0 < second.id.0 {
        let one = first.state.lock();
        let two = second.state.lock_second();
        (one, Some(two))
    } else {
        let two = second.state.lock();
        let one = first.state.lock_second();
        (one, Some(two))
    }
}
