//! Taking back what a domain had, step by step.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::cell::Cell;
use core::sync::atomic::Ordering;

use pv_abi::Port;

use crate::addr::Mfn;
use crate::domain::{Domain, DomainState};
use crate::frame::{FrameState, Role};
use crate::hardware::{CpuId, Hardware};
use crate::hvm::Params;
use crate::log::Event;
use crate::machine::{Current, Machine};
use crate::sched::MAX_CPUS;
use crate::stage2::ROOT_TABLES;
use crate::vcpu::{NOT_POLLING, Run};
use crate::{console, evtchn, grant, pagetable, runstate};

/// Frames that one step looks at, and those that it frees at most: 5600 and 8400 instructions.
const LOOKED_AT: u64 = 256;
const FREED: u32 = 24;
/// Other domains that one step asks for mappings.
const DOMAINS: u16 = 32;

/// How often each CPU had passed.
type Since = [u64; MAX_CPUS];

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undo {
    /// Its vCPUs go off and leave the CPUs; then its address space is forgotten.
    Stop,
    /// Every CPU passes.
    Settle(Since),
    /// Its ports are closed, from this one on.
    Ports(Port),
    /// It lets go of what it has mapped of others, from this handle on.
    Mappings(u32),
    /// Its areas are forgotten.
    Areas,
    /// What others have mapped of it becomes theirs to let go: the other domain (index), a handle of it, and how many mappings it has by now.
    /// From there on these frames count mappings alone, so whatever else referred to them has let go before.
    Orphans(u16, u32, u32),
    /// Every CPU passes again.
    SettleAgain(Since),
    /// Its frames become free, from this one on.
    Frames(u64),
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// There is more to do.
    More,
    /// There is more to do when a CPU has done something.
    Waits,
    /// Nothing is left.
    Done,
}

/// Makes one step for a domain that is dying.
pub(super) fn step<H: Hardware>(machine: &Machine<H>, cpu: CpuId, domain: &Domain) -> Progress {
    let Some(vcpu) = domain.vcpus.first() else { return Progress::Done };
    let undo = domain.state.lock().undo;
    // Some of what is undone is what a call of the domain's would do: this stands for the caller.
    let reschedule = Cell::new(false);
    let current = Current { domain, vcpu, cpu, reschedule: &reschedule };
    let passed = |since: &Since| machine.frames.quiescent.late(since).next().is_none();
    let next = match undo {
        Undo::Stop => {
            if !stop(machine, cpu, domain) {
                return Progress::Waits;
            }
            machine.hw.flush_all(domain.vmid);
            Undo::Settle(settle(machine))
        }
        Undo::Settle(since) if passed(&since) => Undo::Ports(Port(1)),
        Undo::SettleAgain(since) if passed(&since) => {
            let mut state = domain.state.lock();
            forget(machine, domain, &mut state);
            Undo::Frames(machine.frames.table.base().get())
        }
        Undo::Settle(_) | Undo::SettleAgain(_) => return Progress::Waits,
        Undo::Ports(from) => {
            evtchn::close_from(machine, &current, from).map_or(Undo::Mappings(0), Undo::Ports)
        }
        Undo::Mappings(from) => grant::give_up(machine, &current, from).map_or(Undo::Areas, Undo::Mappings),
        Undo::Areas => {
            areas(machine, domain);
            Undo::Orphans(0, 0, 0)
        }
        Undo::Orphans(other, from, held) => orphans(machine, domain, other, from, held),
        Undo::Frames(from) => {
            let Some(next) = frames(machine, domain, from) else {
                finish(machine, domain);
                return Progress::Done;
            };
            Undo::Frames(next)
        }
    };
    domain.state.lock().undo = next;
    Progress::More
}

/// From now on every CPU has to pass, and is told so, once: an interrupt waits for a CPU that is in the hypervisor. The one that makes this step is told too:
/// it may be in a call of a guest that is not made again.
fn settle<H: Hardware>(machine: &Machine<H>) -> Since {
    let since = machine.frames.quiescent.now();
    machine.frames.quiescent.late(&since).for_each(|late| machine.hw.kick(late));
    since
}

/// Puts the vCPUs off; true when all are, and out of the CPUs. At most eight turns.
fn stop<H: Hardware>(machine: &Machine<H>, cpu: CpuId, domain: &Domain) -> bool {
    // A CPU_ON that began before the domain ended has started its vCPU by now; a later one starts none (context.rs, `start_at`).
    drop(domain.state.lock());
    let mut all = true;
    for vcpu in domain.vcpus {
        for waits in [Run::Blocked, Run::Paused] {
            if vcpu.run.change(waits, Run::Offline) {
                runstate::enter(machine, vcpu, Run::Offline);
            }
        }
        if vcpu.run.get() != Run::Offline || !machine.hw.is_out(vcpu.index) {
            all = false;
            machine.sched.take_off(machine, vcpu);
            let home = vcpu.home.get();
            if home != cpu {
                machine.hw.kick(home);
            }
        }
    }
    all
}

/// Asks a few other domains for what they have mapped, and says who has something. A step ends with what it says.
fn orphans<H: Hardware>(machine: &Machine<H>, domain: &Domain, other: u16, from: u32, held: u32) -> Undo {
    let (mut from, mut held) = (from, held);
    for index in other..other.saturating_add(DOMAINS) {
        let Some(mapper) = machine.domains.get(usize::from(index)) else {
            return Undo::SettleAgain(settle(machine));
        };
        if mapper.id != domain.id {
            let (next, more) = grant::orphan(machine, domain, mapper, from);
            held = held.saturating_add(more);
            if let Some(next) = next {
                return Undo::Orphans(index, next, held);
            }
        }
        if held != 0 {
            machine.hw.log(Event::Holds(mapper.id, domain.id, held));
            return Undo::Orphans(index.saturating_add(1), 0, 0);
        }
        from = 0;
    }
    Undo::Orphans(other.saturating_add(DOMAINS), 0, 0)
}

/// Forgets where its vCPUs' states are told, and gives the references to those frames back.
fn areas<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    let _state = domain.state.lock();
    for vcpu in domain.vcpus {
        runstate::forget(machine, vcpu);
        let own = if vcpu.number == 0 { domain.shared_info.base().get() } else { 0 };
        let before = vcpu.info_at();
        vcpu.info.store(own, Ordering::SeqCst);
        if let Some(before) = before.filter(|at| at.frame() != domain.shared_info) {
            // It was taken when it was registered.
            let _ = machine.frames.table.release(before.frame());
        }
        vcpu.deadline.store(u64::MAX, Ordering::Relaxed);
        vcpu.poll.store(NOT_POLLING, Ordering::Relaxed);
    }
    domain.polled.store(false, Ordering::Relaxed);
    evtchn::forget_fifo(machine, domain);
    domain.watchdogs.forget();
}

/// Forgets what its frames were used for, before they are free.
fn forget<H: Hardware>(machine: &Machine<H>, domain: &Domain, state: &mut DomainState) {
    state.stage2.forget(&machine.hw);
    machine.frames.table.set_in_blocks(domain.id, 0);
    state.grants.forget();
    pagetable::forget(domain, state);
    evtchn::forget_all(domain, &mut state.ports);
}

/// Frees frames of the domain's among the next of the machine's; returns where to go on.
fn frames<H: Hardware>(machine: &Machine<H>, domain: &Domain, from: u64) -> Option<u64> {
    let frames = &machine.frames;
    let end = frames.table.end();
    let mut left = FREED;
    for number in from..end.min(from.saturating_add(LOOKED_AT)) {
        let mfn = Mfn::new(number)?;
        let Some(state) = frames.table.state(mfn).filter(|state| state.owner == domain.id) else { continue };
        if stays(domain, mfn, state) {
            continue;
        }
        match left.checked_sub(1) {
            Some(rest) => left = rest,
            None => return Some(number),
        }
        // Its tables refer to each other: none is used any more, by anybody.
        if domain.paging().is_some() {
            frames.table.forget_role(mfn, domain.id);
        }
        // Nobody refers to it any more: what others had mapped is not its own by now.
        let _ = frames.free(mfn);
    }
    let next = from.saturating_add(LOOKED_AT);
    (next < end).then_some(next)
}

/// Whether a frame stays with the domain's number.
fn stays(domain: &Domain, mfn: Mfn, state: FrameState) -> bool {
    let root = domain.stage2_root.get();
    match state.role {
        Role::Shared => mfn == domain.shared_info,
        Role::Stage2Table => (root..root.saturating_add(u64::from(ROOT_TABLES))).contains(&mfn.get()),
        Role::NotRam
        | Role::Free
        | Role::Hypervisor
        | Role::DomainTable
        | Role::Limbo
        | Role::Data
        | Role::Table0
        | Role::Table1
        | Role::Table2
        | Role::Table3
        | Role::KernelText
        | Role::UserText
        | Role::Validating
        | Role::Releasing => false,
    }
}

/// What is left when all frames are free.
fn finish<H: Hardware>(machine: &Machine<H>, domain: &Domain) {
    let mut state = domain.state.lock();
    state.memory.frames = machine.frames.table.ram_total(domain.id);
    state.params = Params::new();
    state.undo = Undo::Stop;
    drop(state);
    machine.hw.clear(domain.shared_info);
    machine.hw.clean_to_memory(domain.shared_info);
    machine.frames.table.set_home(domain.shared_info, None);
    console::flush(&machine.hw, domain);
}
