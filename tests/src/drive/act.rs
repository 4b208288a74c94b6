//! What a step does: a call of a guest's, or something that a guest or a CPU does beside calls.
use hypervisor::fake::{Op, RAM};
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::sched;
use hypervisor::vgic::PrivateIntid;
use pv_abi::Errno;
use pv_abi::event::EventOp;
use pv_abi::grant::GrantOp;
use zerocopy::{FromBytes, Immutable, IntoBytes};

mod control;
mod events;
mod further;
mod grants;
mod memory;
mod numbers;
mod queues;
mod vcpus;

pub(super) use numbers::Numbers;
pub(super) use queues::{POOL, Reader};

use super::{Run, STEP};
use crate::spec::Place;
use crate::{ARG, Guest, NOWHERE, number};

/// Pages of RAM that steps name: eight of their own and four inside a block.
pub(super) const RAM_POOL: [u64; 12] = {
    let (pages, block) = ((RAM >> 12) + 0x400, (RAM >> 12) + 0x300);
    let [p, b] = [pages, block];
    [p, p + 1, p + 2, p + 3, p + 4, p + 5, p + 6, p + 7, b, b + 1, b + 2, b + 3]
};
/// More RAM, a page for each byte: what is given back for good.
const SPARE: u64 = (RAM >> 12) + 0x304;
/// Nothing is mapped here at first.
pub(super) const HOLE: u64 = 0x5_0000;
/// Where many grants are mapped.
const FIELD: u64 = 0x5_1000;
/// Where a domain's arrays of arguments begin.
const LIST: u64 = ARG + 64;
/// Runs of a call before it must have ended.
const PATIENCE: u32 = 1000;

/// The errno of a specified result, 0 for none.
pub(super) fn code<T>(result: &Result<T, Errno>) -> i64 {
    result.as_ref().map_or_else(|errno| errno.to_result(), |_| 0)
}

/// The address of a page that exists, for calls that name places by address.
pub(super) fn address(gfn: u64) -> u64 {
    gfn << 12
}

impl Run {
    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.tells {
            self.told = Some(what());
        }
    }

    pub(super) fn guest(&self, id: u16, vcpu: u32) -> Guest<'_> {
        Guest { world: &self.world, id, vcpu }
    }

    /// Makes a call to its end, other CPUs passing in between.
    pub(super) fn call(&mut self, id: u16, vcpu: u32, number: u64, args: [u64; 5]) -> Result<i64, String> {
        let mut args = args;
        self.calls += 1;
        for _ in 0..PATIENCE {
            match hypercall(&self.world.machine, &self.world.current(id, vcpu), number, args) {
                Outcome::Done(result) => return Ok(result),
                Outcome::Restart(left) => args = left,
            }
            self.stop_paused();
            for cpu in 0..2 {
                self.world.machine.frames.quiescent.pass(CpuId(cpu));
            }
        }
        Err(format!("call {number} with {args:x?} never ends"))
    }

    /// Makes a call with a structure; returns the result and the structure after it.
    fn with<T: IntoBytes + FromBytes + Immutable + Copy>(
        &mut self,
        (id, vcpu): (u16, u32),
        number: u64,
        cmd: u64,
        arg: T,
    ) -> Result<(i64, T), String> {
        self.guest(id, vcpu).write(ARG, arg.as_bytes());
        let result = self.call(id, vcpu, number, [cmd, ARG, 1, 0, 0])?;
        Ok((result, self.guest(id, vcpu).read(ARG)))
    }

    fn event<T: IntoBytes + FromBytes + Immutable + Copy>(
        &mut self,
        who: (u16, u32),
        op: EventOp,
        arg: T,
        wanted: i64,
    ) -> Result<T, String> {
        let (result, arg) = self.with(who, number::EVENT_CHANNEL_OP, u64::from(op.number()), arg)?;
        if result == wanted { Ok(arg) } else { Err(format!("{op:?}: {result}, specified {wanted}")) }
    }

    /// Does one step.
    pub(super) fn act(&mut self, step: &[u8; STEP]) -> Result<(), String> {
        let mut n = Numbers(step);
        let (kind, from) = (n.next(), n.next());
        let domains = u8::try_from(self.setup.domains).expect("few");
        let mut who = (u16::from(1 + (from >> 4) % domains), u32::from(from & 1));
        // More than half of the steps are about page tables, where there are checked ones, and few of another domain's.
        let about_tables = self.setup.paging && matches!(from & 0xE, 4..0xE);
        if about_tables && from < 0xF0 {
            who.0 = 1;
        }
        if self.spec.of(who.0).paging.as_ref().is_some_and(|paging| !paging.on[who.1 as usize]) {
            who.1 = 0;
        }
        self.spec.upcalls.clear();
        // What guests put into shared words since the last step is not the hypervisor's doing.
        self.world.machine.hw.take_ops();
        // Who is paused does nothing; it is the control domain's turn then, and now and then.
        if self.setup.control && (self.spec.of(who.0).pauses != 0 || kind == 0xF8) {
            self.control_step(who.0, &mut n)?;
            self.upcalls(who)?;
            self.schedule();
            return Ok(());
        }
        self.awake(who);
        self.spec.upcalls.clear();
        self.world.machine.hw.take_ops();
        if from & 0xE == 0xE {
            if kind & 1 == 0 { self.bad_handle(who, &mut n)? } else { self.result_nowhere(who, &mut n)? }
        } else if about_tables {
            self.paging_step(who, kind, &mut n)?;
        } else if matches!(from & 0xE, 4 | 6) {
            self.queue_step(who, kind, &mut n)?;
        } else if from & 0xE == 2 {
            self.further_step(who, kind, &mut n)?;
        } else {
            match kind {
                0..0x60 => self.event_step(who, kind, &mut n)?,
                0x60..0xB8 => self.grant_step(who, kind, &mut n)?,
                0xB8..0xE8 => self.memory_step(who, kind, &mut n)?,
                0xE8..=0xFF => self.vcpu_step(who, kind, &mut n)?,
            }
        }
        self.upcalls(who)?;
        self.schedule();
        Ok(())
    }

    /// Who makes a call runs: an interrupt ends its waiting.
    fn awake(&mut self, (id, vcpu): (u16, u32)) {
        if self.spec.of(id).vcpus[vcpu as usize].blocked {
            self.spec.of_mut(id).vcpus[vcpu as usize].wake();
            let vcpu = self.world.domain(id).vcpu(vcpu).expect("it exists");
            sched::unblock(&self.world.machine, vcpu.home.get(), vcpu, sched::Idled::Yes);
            self.schedule();
        }
    }

    /// Every vCPU that can runs, as with a CPU for each.
    fn schedule(&self) {
        for cpu in 0..2 {
            while self.world.pick(CpuId(cpu)).is_some() {}
        }
        self.world.take_reschedule();
    }

    /// The upcalls that the call raised are those specified: at once for the caller, by mail for others.
    fn upcalls(&mut self, who: (u16, u32)) -> Result<(), String> {
        let ops = self.world.machine.hw.take_ops();
        let mut found = Vec::new();
        for id in self.spec.domains.keys() {
            let domain = self.world.domain(*id);
            for (number, mailbox) in (0..).zip(domain.gic) {
                if mailbox.emptied() & PrivateIntid::EVENT_UPCALL.bit() != 0 {
                    found.push((*id, number));
                }
            }
        }
        if ops.contains(&Op::Raise(PrivateIntid::EVENT_UPCALL)) {
            found.push(who);
        }
        found.sort_unstable();
        self.spec.upcalls.sort_unstable();
        if found == self.spec.upcalls {
            return Ok(());
        }
        Err(format!("upcalls of {found:?}, specified {:?}", self.spec.upcalls))
    }

    /// Calls whose structure nobody can read: nothing is done.
    fn bad_handle(&mut self, (id, vcpu): (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let efault = Errno::Efault.to_result();
        let (number, cmd, wanted) = n.one(&[
            (number::EVENT_CHANNEL_OP, 0, efault),
            (number::EVENT_CHANNEL_OP, 3, efault),
            (number::EVENT_CHANNEL_OP, 4, efault),
            (number::EVENT_CHANNEL_OP, 6, efault),
            (number::GRANT_TABLE_OP, 0, efault),
            (number::GRANT_TABLE_OP, 1, efault),
            (number::GRANT_TABLE_OP, 5, efault),
            (number::GRANT_TABLE_OP, 11, efault),
            (number::MEMORY_OP, 7, efault),
            (number::MEMORY_OP, 15, efault),
            (number::MEMORY_OP, 6, 0),
            (number::MEMORY_OP, 1, 0),
        ]);
        self.tell(|| format!("d{id}v{vcpu} call {number} {cmd} with a bad handle"));
        let result = self.call(id, vcpu, number, [cmd, NOWHERE, 1, 0, 0])?;
        if result == wanted { Ok(()) } else { Err(format!("a bad handle: {result}, specified {wanted}")) }
    }

    /// A call whose result goes to a page that the caller may only read (XSA-98).
    fn result_nowhere(&mut self, (id, vcpu): (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let offset = u64::from(n.next()) * 8;
        let mut places = self.spec.of(id).places.iter();
        let Some((gfn, _)) = places.find(|(_, place)| matches!(place, Place::Grant { writable: false, .. }))
        else {
            return Ok(());
        };
        let (gfn, efault) = (*gfn, Errno::Efault.to_result());
        self.tell(|| format!("d{id}v{vcpu} query_size into {gfn:#x}000 + {offset:#x}, which is read-only"));
        let args = [u64::from(GrantOp::QuerySize.number()), address(gfn) + offset, 1, 0, 0];
        let result = self.call(id, vcpu, number::GRANT_TABLE_OP, args)?;
        if result == efault { Ok(()) } else { Err(format!("read-only: {result}, specified {efault}")) }
    }
}
