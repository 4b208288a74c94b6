//! What a step does: a call of a guest's, or something that a guest or a CPU does beside calls.
use hypervisor::addr::{FrameAddr, Ipa, Mfn};
use hypervisor::fake::{Op, RAM};
use hypervisor::frame::Role;
use hypervisor::hardware::{CpuId, Hardware};
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::sched;
use hypervisor::vgic::PrivateIntid;
use pv_abi::control::Domctl;
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, PortArg, Reset, Status,
};
use pv_abi::grant::{
    CopyPtr, GetVersion, GrantCopy, GrantEntry, GrantOp, GrantStatus, MapGrantRef, QuerySize, SetupTable,
    SwapGrantRef, UnmapGrantRef,
};
use pv_abi::memory::{AddToPhysmap, MemoryExchange, RemoveFromPhysmap, Reservation};
use pv_abi::sched::Poll;
use pv_abi::vcpu::RegisterVcpuInfo;
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, GuestHandle, Port};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Run, STEP};
use crate::spec::{Entry, GFN_LIMIT, InfoAt, MapArgs, Place, SELF, Side};
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
const HOLE: u64 = 0x5_0000;
/// Where many grants are mapped.
const FIELD: u64 = 0x5_1000;
/// Where a domain's arrays of arguments begin.
const LIST: u64 = ARG + 64;
/// Runs of a call before it must have ended.
const PATIENCE: u32 = 1000;

/// The numbers of a step, one after the other; zero when there are no more.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.next() % limit
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.next()) % of.len()]
    }

    fn dom(&mut self) -> u16 {
        self.one(&[1, 2, SELF, 1, 2, SELF, 1, 2, 3, 1, 2, 0, 1, 2, 0x7FF4, 1])
    }

    fn port(&mut self) -> u32 {
        match self.next() {
            byte @ 0..0xF0 => u32::from(byte % 12),
            byte => [12, 63, 64, 65, 127, 128, 1022, 1023, 1024, 4095, 4096, 0x1_0001, u32::MAX, 0, 1, 2]
                [usize::from(byte & 15)],
        }
    }

    fn vcpu(&mut self) -> u32 {
        self.one(&[0, 1, 0, 1, 0, 1, 2, 0x1_0000])
    }

    fn gref(&mut self) -> u32 {
        match self.next() {
            byte @ 0..0xF0 => 8 + u32::from(byte % 7),
            byte => [0, 7, 511, 512, 513, 1024, 2047, 2048, u32::MAX, 8, 8, 9, 9, 10, 11, 12]
                [usize::from(byte & 15)],
        }
    }

    fn gfn(&mut self) -> u64 {
        match self.next() {
            byte @ 0..0x70 => RAM_POOL[usize::from(byte) % RAM_POOL.len()],
            byte @ 0x70..0xF0 => HOLE + u64::from(byte % 8),
            byte => [0x3_8000, 0x3_8001, GFN_LIMIT - 1, GFN_LIMIT, 1 << 40, HOLE, RAM_POOL[0], RAM_POOL[8]]
                [usize::from(byte & 7)],
        }
    }

    fn ram(&mut self) -> u64 {
        match self.next() {
            byte @ 0..0xF0 => RAM_POOL[usize::from(byte) % RAM_POOL.len()],
            byte => HOLE + u64::from(byte & 7),
        }
    }

    fn handle(&mut self) -> u32 {
        match self.next() {
            byte @ 0..0xF8 => u32::from(byte % 12),
            byte => [13, 40, 255, 256, u32::MAX, 0, 1, 2][usize::from(byte & 7)],
        }
    }
}

/// The errno of a specified result, 0 for none.
fn code<T>(result: &Result<T, Errno>) -> i64 {
    result.as_ref().map_or_else(|errno| errno.to_result(), |_| 0)
}

fn status<T>(result: &Result<T, GrantStatus>) -> i16 {
    result.as_ref().map_or_else(|status| status.value(), |_| 0)
}

/// The address of a page that exists, for calls that name places by address.
fn address(gfn: u64) -> u64 {
    gfn << 12
}

impl Run {
    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.tells {
            self.told = Some(what());
        }
    }

    fn guest(&self, id: u16, vcpu: u32) -> Guest<'_> {
        Guest { world: &self.world, id, vcpu }
    }

    /// Makes a call to its end, other CPUs passing in between.
    fn call(&mut self, id: u16, vcpu: u32, number: u64, args: [u64; 5]) -> Result<i64, String> {
        let mut args = args;
        self.calls += 1;
        for _ in 0..PATIENCE {
            match hypercall(&self.world.machine, &self.world.current(id, vcpu), number, args) {
                Outcome::Done(result) => return Ok(result),
                Outcome::Restart(left) => args = left,
            }
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
        let domains = u8::try_from(self.spec.domains.len()).expect("few");
        let who = (u16::from(1 + (from >> 4) % domains), u32::from(from & 1));
        self.awake(who);
        self.spec.upcalls.clear();
        // What guests put into shared words since the last step is not the hypervisor's doing.
        self.world.machine.hw.take_ops();
        if from & 0xE == 0xE {
            if kind & 1 == 0 { self.bad_handle(who, &mut n)? } else { self.result_nowhere(who, &mut n)? }
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

    fn event_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        match kind {
            0..0x10 => {
                let (dom, remote) = (n.one(&[SELF, SELF, SELF, SELF, id, 1, 2, 3]), n.dom());
                self.tell(|| format!("d{id}v{vcpu} alloc_unbound in {dom} for {remote}"));
                let wanted = self.spec.alloc_unbound(id, dom, remote);
                let arg = AllocUnbound { dom: DomId(dom), remote_dom: DomId(remote), port: Port(0) };
                let out = self.event(who, EventOp::AllocUnbound, arg, code(&wanted))?;
                port_is(out.port, wanted)
            }
            0x10..0x24 => {
                let (remote, remote_port) = (n.dom(), n.port());
                self.tell(|| format!("d{id}v{vcpu} bind_interdomain to {remote}:{remote_port}"));
                let wanted = self.spec.bind_interdomain(id, remote, remote_port);
                let remote_port = Port(remote_port);
                let arg =
                    BindInterdomain { remote_dom: DomId(remote), pad: 0, remote_port, local_port: Port(0) };
                let out = self.event(who, EventOp::BindInterdomain, arg, code(&wanted))?;
                port_is(out.local_port, wanted)
            }
            0x24..0x28 => {
                let (virq, to) = (u32::from(n.below(26)), n.vcpu());
                self.tell(|| format!("d{id}v{vcpu} bind_virq {virq} to vCPU {to}"));
                let wanted = self.spec.bind_virq(id, virq, to);
                let arg = BindVirq { virq, vcpu: to, port: Port(0) };
                let out = self.event(who, EventOp::BindVirq, arg, code(&wanted))?;
                port_is(out.port, wanted)
            }
            0x28..0x2C => {
                let to = n.vcpu();
                self.tell(|| format!("d{id}v{vcpu} bind_ipi to vCPU {to}"));
                let wanted = self.spec.bind_ipi(id, to);
                let out =
                    self.event(who, EventOp::BindIpi, BindIpi { vcpu: to, port: Port(0) }, code(&wanted))?;
                port_is(out.port, wanted)
            }
            0x2C..0x38 => {
                let port = n.port();
                self.tell(|| format!("d{id}v{vcpu} close {port}"));
                let wanted = self.spec.close(id, port);
                self.event(who, EventOp::Close, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
            0x38..0x48 => {
                let port = n.port();
                self.tell(|| format!("d{id}v{vcpu} send {port}"));
                let wanted = self.spec.send(id, port);
                self.event(who, EventOp::Send, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
            0x48..0x4C => {
                let port = n.port();
                self.tell(|| format!("d{id}v{vcpu} unmask {port}"));
                let wanted = self.spec.unmask(id, port);
                self.event(who, EventOp::Unmask, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
            0x4C..0x52 => {
                let (port, to) = (n.port(), n.vcpu());
                self.tell(|| format!("d{id}v{vcpu} bind_vcpu {port} to vCPU {to}"));
                let wanted = self.spec.bind_vcpu(id, port, to);
                let arg = BindVcpu { port: Port(port), vcpu: to };
                self.event(who, EventOp::BindVcpu, arg, code(&wanted)).map(drop)
            }
            0x52..0x56 => self.status_step(who, n),
            0x56 => {
                let dom = n.one(&[SELF, id, 1, 2, 3]);
                self.tell(|| format!("d{id}v{vcpu} reset {dom}"));
                let wanted = self.spec.reset(id, dom);
                self.event(who, EventOp::Reset, Reset { dom: DomId(dom) }, code(&wanted)).map(drop)
            }
            0x57..0x5B => {
                let (port, masks) = (u32::from(n.below(12)), n.next() < 0xC0);
                self.tell(|| format!("d{id} {} {port}", if masks { "masks" } else { "clears the mask of" }));
                let masked = &mut self.spec.of_mut(id).masked;
                if masks {
                    masked.insert(port)
                } else {
                    masked.remove(&port)
                };
                // Without a call nobody is told: who clears a mask looks at the pending bit himself.
                let offset = crate::MASK;
                let word = self.spec.of(id).masked.iter().filter(|port| **port < 64);
                let word = word.fold(0_u64, |word, port| word | 1 << port);
                self.guest(id, vcpu).set_info(offset, &word.to_le_bytes());
                Ok(())
            }
            _ => {
                self.tell(|| format!("d{id}v{vcpu} takes its upcall"));
                self.take(id, vcpu);
                Ok(())
            }
        }
    }

    fn status_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (dom, port) = (n.one(&[SELF, SELF, id, 1, 2, 3]), n.port());
        self.tell(|| format!("d{id}v{vcpu} status of {dom}:{port}"));
        let wanted = self.spec.status(id, dom, port);
        let arg = Status { dom: DomId(dom), port: Port(port), peer: 0x5A5A_5A5A, ..Status::default() };
        let out = self.event(who, EventOp::Status, arg, code(&wanted))?;
        let Ok(wanted) = wanted else { return Ok(()) };
        let agrees = out.status == wanted.status
            && out.vcpu == wanted.vcpu
            && wanted.dom.is_none_or(|dom| out.peer & 0xFFFF == u32::from(dom))
            && wanted.virq.is_none_or(|virq| out.peer == virq)
            && wanted.port.is_none_or(|port| out.peer_port.0 == port);
        if agrees { Ok(()) } else { Err(format!("status: {out:x?}, specified {wanted:x?}")) }
    }

    /// A guest's handler: upcall byte, selector, then the unmasked ports of those words.
    fn take(&mut self, id: u16, vcpu: u32) {
        let guest = self.guest(id, vcpu);
        if let Some(at) = self.world.domain(id).vcpu(vcpu).and_then(hypervisor::vcpu::Vcpu::info_at) {
            let (selector, _) = self.words(at);
            let hw = &self.world.machine.hw;
            let byte = |offset: usize| FrameAddr::new(at.frame(), at.offset() + offset).expect("in the page");
            hw.write(byte(0), &[0]);
            hw.write(byte(crate::SELECTOR), &[0; 8]);
            for word in (0..64).filter(|word| selector >> word & 1 == 1) {
                let left =
                    guest.info_word(crate::PENDING + word * 8) & guest.info_word(crate::MASK + word * 8);
                guest.set_info(crate::PENDING + word * 8, &left.to_le_bytes());
            }
            self.spec.take(id, vcpu);
        }
    }

    fn grant_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        match kind {
            0x60..0x70 => {
                self.offer(who.0, n);
                Ok(())
            }
            0x70..0x86 => {
                let args = MapArgs {
                    gref: n.gref(),
                    dom: n.one(&[1, 2, 1, 2, 1, 2, 1, 3]),
                    address: address(n.gfn()) | u64::from(n.below(4) / 3 * 0x10),
                    flags: n.one(&[2, 6, 2, 6, 2, 6, 2, 6, 2, 6, 0, 1, 3, 10, 18, 34]),
                };
                self.map(who, &[args])
            }
            0x86 => self.hoard(who, n),
            0x87 | 0x88 => {
                // Many, over places of their own: batches that restart.
                let (gref, dom, first) = (n.gref(), n.one(&[1, 2]), u64::from(n.next()) * 4);
                let flags = n.one(&[2, 6]);
                let count = 1 + u64::from(n.below(20));
                let element = |index| MapArgs { address: address(FIELD + first + index), flags, gref, dom };
                self.map(who, &(0..count).map(element).collect::<Vec<_>>())
            }
            0x89..0x99 => {
                let (handle, gfn, mode) = (n.handle(), n.gfn(), n.next());
                self.unmap(who, &[(handle, self.place_of(who.0, handle, gfn, mode))])
            }
            0x99..0x9C => {
                let (first, gfn) = (u32::from(n.next()), n.gfn());
                let count = 1 + u32::from(n.below(20));
                let element = |handle| (handle, self.place_of(who.0, handle, gfn, 1));
                self.unmap(who, &(first..first + count).map(element).collect::<Vec<_>>())
            }
            0x9C..0xAA => self.copy_step(who, n),
            0xAA..0xB0 => {
                let (a, b) = (n.gref(), n.gref());
                let (id, vcpu) = who;
                self.tell(|| format!("d{id}v{vcpu} swap {a} and {b}"));
                let wanted = status(&self.spec.swap(id, a, b));
                let arg = SwapGrantRef { ref_a: GrantRef(a), ref_b: GrantRef(b), status: 1, pad: 0 };
                let out = self.grant(who, GrantOp::SwapGrantRef, arg)?;
                status_is("swap", out.status, wanted)
            }
            _ => self.table_step(who, kind, n),
        }
    }

    /// Both guests work together on all the handles that there are, and all the uses of a reference.
    fn hoard(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (dom, page, gref) = (n.one(&[1, 2]), n.below(12), 8 + u32::from(n.below(7)));
        let (first, flags) = (u64::from(n.next()) * 4, n.one(&[2, 6]));
        let Some(frame) = self.world.domain(dom).state.lock().grants.frame(0) else { return Ok(()) };
        let mut entry = self.spec.of(dom).entries.get(&gref).copied().unwrap_or_default();
        if !self.spec.of(dom).uses.contains_key(&gref) {
            let gfn = u32::try_from(RAM_POOL[usize::from(page)]).expect("small");
            entry = Entry { flags: 1, domid: who.0, frame: gfn };
        }
        self.tell(|| format!("d{dom} offers by {gref}: {entry:x?}"));
        self.spec.of_mut(dom).entries.insert(gref, entry);
        let written = GrantEntry { flags: entry.flags, domid: DomId(entry.domid), frame: entry.frame };
        let at = FrameAddr::new(frame, gref as usize * 8).expect("in the frame");
        self.world.machine.hw.write(at, written.as_bytes());
        let element = |index| MapArgs { address: address(FIELD + first + index), flags, gref, dom };
        self.map(who, &(0..60).map(element).collect::<Vec<_>>())
    }

    fn grant<T: IntoBytes + FromBytes + Immutable + Copy>(
        &mut self,
        who: (u16, u32),
        op: GrantOp,
        arg: T,
    ) -> Result<T, String> {
        match self.with(who, number::GRANT_TABLE_OP, u64::from(op.number()), arg)? {
            (0, arg) => Ok(arg),
            (result, _) => Err(format!("{op:?}: {result}, specified 0")),
        }
    }

    /// Where a handle's mapping is, now and then not.
    fn place_of(&self, id: u16, handle: u32, else_at: u64, mode: u8) -> u64 {
        match (mode, self.spec.of(id).held.get(&handle)) {
            (0..8, _) => 0,
            (8..0x18, _) | (_, None) => address(else_at),
            (_, Some(held)) => address(held.gfn),
        }
    }

    /// The guest writes an entry of its table.
    fn offer(&mut self, id: u16, n: &mut Numbers<'_>) {
        let (gref, gfn) = (n.gref(), n.ram());
        let to = n.one(&[1, 2, 1, 2, 1, 2, 3, 1]);
        let mut flags = n.one(&[1, 1, 1, 1, 5, 5, 1, 1, 5, 0, 2, 3, 0x101, 9, 0x19, 1]);
        let Some(frame) = self.world.domain(id).state.lock().grants.frame(gref / 512) else { return };
        if n.below(4) != 0
            && let Some(entry) = self.spec.of(id).entries.get(&gref)
        {
            // A guest that behaves leaves the marks alone.
            flags |= entry.flags & 0x18;
        }
        self.tell(|| format!("d{id} offers {gfn:#x} to {to} by {gref}, flags {flags:#x}"));
        let entry = Entry { flags, domid: to, frame: u32::try_from(gfn).expect("small") };
        self.spec.of_mut(id).entries.insert(gref, entry);
        let entry = GrantEntry { flags, domid: DomId(to), frame: entry.frame };
        let at = FrameAddr::new(frame, gref as usize % 512 * 8).expect("in the frame");
        self.world.machine.hw.write(at, entry.as_bytes());
    }

    fn map(&mut self, who: (u16, u32), elements: &[MapArgs]) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} map {elements:x?}"));
        let element = |args: &MapArgs| MapGrantRef {
            host_addr: args.address,
            flags: args.flags,
            gref: GrantRef(args.gref),
            dom: DomId(args.dom),
            status: 1,
            ..MapGrantRef::default()
        };
        let ops: Vec<_> = elements.iter().map(element).collect();
        let ops = self.batch(who, GrantOp::MapGrantRef, &ops)?;
        for (args, op) in elements.iter().zip(ops) {
            let wanted = self.spec.map(id, *args);
            status_is("map", op.status, status(&wanted))?;
            if let Ok(held) = wanted {
                self.spec.take_handle(id, op.handle.0, held)?;
                let frame = self.spec.of(held.granter).uses[&held.gref].frame;
                if op.dev_bus_addr != address(frame) {
                    return Err(format!("map: address {:#x}, specified {frame:#x}000", op.dev_bus_addr));
                }
            }
        }
        Ok(())
    }

    fn unmap(&mut self, who: (u16, u32), elements: &[(u32, u64)]) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} unmap {elements:x?}"));
        let element = |(handle, host_addr): &(u32, u64)| UnmapGrantRef {
            host_addr: *host_addr,
            handle: GrantHandle(*handle),
            status: 1,
            ..UnmapGrantRef::default()
        };
        let ops: Vec<_> = elements.iter().map(element).collect();
        let ops = self.batch(who, GrantOp::UnmapGrantRef, &ops)?;
        for ((handle, address), op) in elements.iter().zip(ops) {
            let wanted = self.spec.unmap(id, *address, *handle);
            status_is("unmap", op.status, status(&wanted))?;
        }
        Ok(())
    }

    fn batch<T: IntoBytes + FromBytes + Immutable + Copy>(
        &mut self,
        (id, vcpu): (u16, u32),
        op: GrantOp,
        elements: &[T],
    ) -> Result<Vec<T>, String> {
        let at = |index: usize| ARG + (index * size_of::<T>()) as u64;
        for (index, element) in elements.iter().enumerate() {
            self.guest(id, vcpu).write(at(index), element.as_bytes());
        }
        let args = [u64::from(op.number()), ARG, elements.len() as u64, 0, 0];
        match self.call(id, vcpu, number::GRANT_TABLE_OP, args)? {
            0 => Ok((0..elements.len()).map(|index| self.guest(id, vcpu).read(at(index))).collect()),
            result => Err(format!("{op:?}: {result}, specified 0")),
        }
    }

    fn copy_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let flags = u16::from(n.below(4));
        let mut side = |by_reference: bool| Side {
            number: if by_reference { u64::from(n.gref()) } else { n.gfn() },
            dom: match (by_reference, n.next()) {
                (true, byte) => [1, 2, 1, 2, 1, SELF, 2, 3][usize::from(byte % 8)],
                (false, 0..0xF0) => SELF,
                (false, byte) => u16::from(byte % 4),
            },
            by_reference,
            offset: u16::from(n.next()) * 16,
        };
        let (from, to) = (side(flags & 1 != 0), side(flags & 2 != 0));
        let len = [0, 1, 8, 63, 64, 512, 2048, 4095, 4096, 4097, 16, 32, 100, 200, 300, 400]
            [usize::from(n.below(16))];
        self.tell(|| format!("d{id}v{vcpu} copy {len} from {from:x?} to {to:x?}"));
        let wanted = self.spec.copy(id, from, to, len);
        let ptr = |side: Side| CopyPtr {
            ref_or_gfn: side.number,
            domid: DomId(side.dom),
            offset: side.offset,
            pad: 0,
        };
        let arg = GrantCopy { source: ptr(from), dest: ptr(to), len, flags, status: 1, pad: 0 };
        let out = self.grant(who, GrantOp::Copy, arg)?;
        status_is("copy", out.status, status(&wanted))?;
        if let Ok(Some(frame)) = wanted {
            self.holds(frame)?;
            self.seen(frame);
        }
        Ok(())
    }

    /// Event words that a guest has overwritten are what they are now.
    fn seen(&mut self, frame: u64) {
        for id in self.spec.domains.keys().copied().collect::<Vec<_>>() {
            for index in 0..self.spec.of(id).vcpus.len() {
                let InfoAt::Frame(at, offset) = self.spec.of(id).vcpus[index].info else { continue };
                if at == frame {
                    let at = Mfn::new(at).and_then(|mfn| FrameAddr::new(mfn, usize::from(offset)));
                    let (selector, upcall) = self.words(at.expect("a place"));
                    let vcpu = &mut self.spec.of_mut(id).vcpus[index];
                    (vcpu.selector, vcpu.upcall) = (selector, upcall);
                }
            }
        }
    }

    fn table_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let dom = n.one(&[SELF, SELF, SELF, id, 1, 2, 3, 0]);
        match kind {
            0xB0..0xB3 => {
                let frames = n.one(&[0, 1, 1, 2, 3, 4, 5, u32::MAX]);
                self.tell(|| format!("d{id}v{vcpu} setup_table of {dom} to {frames}"));
                let wanted = self.spec.setup_table(id, dom, frames);
                let arg = SetupTable {
                    dom: DomId(dom),
                    nr_frames: frames,
                    status: 1,
                    frame_list: GuestHandle(LIST),
                    ..SetupTable::default()
                };
                let out = self.grant(who, GrantOp::SetupTable, arg)?;
                status_is("setup_table", out.status, status(&wanted))?;
                for (index, gfn) in (0..).zip(wanted.into_iter().flatten()) {
                    let told: u64 = self.guest(id, vcpu).read(LIST + index * 8);
                    if told != gfn.unwrap_or(u64::MAX) {
                        return Err(format!("setup_table: frame {index} at {told:#x}, specified {gfn:x?}"));
                    }
                }
                Ok(())
            }
            0xB3..0xB6 => {
                self.tell(|| format!("d{id}v{vcpu} query_size of {dom}"));
                let wanted = self.spec.query_size(id, dom);
                let arg = QuerySize { dom: DomId(dom), status: 1, ..QuerySize::default() };
                let out = self.grant(who, GrantOp::QuerySize, arg)?;
                status_is("query_size", out.status, status(&wanted))?;
                match wanted {
                    Ok(sizes) if sizes != (out.nr_frames, out.max_nr_frames) => {
                        Err(format!("query_size: {out:?}, specified {sizes:?}"))
                    }
                    _ => Ok(()),
                }
            }
            _ => {
                self.tell(|| format!("d{id}v{vcpu} get_version of {dom}"));
                let wanted = code(&self.spec.get_version(id, dom));
                let arg = GetVersion { dom: DomId(dom), pad: 0, version: 9 };
                let (result, out) =
                    self.with(who, number::GRANT_TABLE_OP, u64::from(GrantOp::GetVersion.number()), arg)?;
                let version = if wanted == 0 { 1 } else { 9 };
                let agrees = (result, out.version) == (wanted, version);
                if agrees {
                    Ok(())
                } else {
                    Err(format!("get_version: {result} {out:?}, specified {wanted}"))
                }
            }
        }
    }

    fn memory_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        match kind {
            0xB8..0xC4 => {
                let (first, mode) = (n.gfn(), n.next());
                let (order, count) = match mode {
                    0..0xC0 => (0, 1 + u64::from(mode % 3)),
                    0xC0..0xE0 => (u32::from(mode % 3), 1),
                    // More than one run does.
                    _ => (0, 14),
                };
                self.populate(who, first, order, count)
            }
            0xC4..0xD0 => {
                let (gfn, spare) = (n.gfn(), n.next());
                let first = if spare < 0x60 { SPARE + u64::from(spare) } else { gfn };
                self.decrease(who, first, 1 + u64::from(n.below(16)) / 14 * 13)
            }
            0xD0..0xD2 => self.increase(who, 1 + u64::from(n.below(3))),
            0xD2..0xDC => {
                let (dom, space) = (n.one(&[SELF, SELF, SELF, id, 1, 2, 3]), n.one(&[0, 1, 1, 1, 2, 4]));
                let (idx, gfn) = (n.one(&[0, 0, 0, 1, 2, 3, 4, u64::MAX]), n.gfn());
                self.tell(|| {
                    format!("d{id}v{vcpu} add_to_physmap of {dom}, space {space}, {idx} at {gfn:#x}")
                });
                let wanted = code(&self.spec.add(id, dom, space, idx, gfn));
                let arg = AddToPhysmap { domid: DomId(dom), size: 1, space, idx, gpfn: gfn };
                let (result, _) = self.with(who, number::MEMORY_OP, 7, arg)?;
                if result == wanted {
                    Ok(())
                } else {
                    Err(format!("add_to_physmap: {result}, specified {wanted}"))
                }
            }
            0xDC..0xE0 => {
                let (dom, gfn) = (n.one(&[SELF, SELF, SELF, id, 1, 2, 3]), n.gfn());
                self.tell(|| format!("d{id}v{vcpu} remove_from_physmap of {dom}, {gfn:#x}"));
                let wanted = code(&self.spec.remove(id, dom, gfn));
                let arg = RemoveFromPhysmap { domid: DomId(dom), pad: [0; 3], gpfn: gfn };
                let (result, _) = self.with(who, number::MEMORY_OP, 15, arg)?;
                if result == wanted { Ok(()) } else { Err(format!("remove: {result}, specified {wanted}")) }
            }
            0xE0 => self.totals(who, n),
            0xE1 => self.not_a_guests(who, n),
            _ => self.store(who.0, n),
        }
    }

    fn reservation(
        &mut self,
        (id, vcpu): (u16, u32),
        cmd: u64,
        gfns: impl Iterator<Item = u64>,
        order: u32,
        count: u64,
    ) -> Result<u64, String> {
        for (index, gfn) in (0..).zip(gfns) {
            self.guest(id, vcpu).write(LIST + index * 8, &gfn.to_le_bytes());
        }
        let arg = Reservation {
            extent_start: GuestHandle(LIST),
            nr_extents: count,
            extent_order: order,
            mem_flags: 0,
            domid: DomId::SELF,
            pad: [0; 3],
        };
        let (result, _) = self.with((id, vcpu), number::MEMORY_OP, cmd, arg)?;
        u64::try_from(result).map_err(|_| format!("reservation: {result}"))
    }

    fn populate(&mut self, who: (u16, u32), first: u64, order: u32, count: u64) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} populate {count} of order {order} at {first:#x}"));
        let size = 1 << order;
        let gfns = (0..count).map(|index| first.wrapping_add(index * size));
        let result = self.reservation(who, 6, gfns, order, count)?;
        let (mut done, mut pages) = (0, Vec::new());
        'extents: for extent in 0..count {
            if !self.spec.may_have(id, size + pages.len() as u64) {
                break;
            }
            for page in 0..size {
                let gfn = first.wrapping_add(extent * size + page);
                if gfn >= GFN_LIMIT {
                    break 'extents;
                }
                pages.push(gfn);
            }
            done += 1;
        }
        for gfn in pages {
            let mapping = self.guest(id, vcpu).mapping(gfn).ok_or("populate: nothing is there")?;
            self.spec.gain(id, mapping.mfn.get(), Some(gfn))?;
            self.holds(mapping.mfn.get())?;
        }
        if result == done { Ok(()) } else { Err(format!("populate: {result}, specified {done}")) }
    }

    fn decrease(&mut self, who: (u16, u32), first: u64, count: u64) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} decrease {count} at {first:#x}"));
        let gfns = (0..count).map(|index| first.wrapping_add(index));
        let result = self.reservation(who, 1, gfns.clone(), 0, count)?;
        let mut done = 0;
        for gfn in gfns {
            if !self.spec.lose(id, gfn) {
                break;
            }
            done += 1;
        }
        if result == done { Ok(()) } else { Err(format!("decrease: {result}, specified {done}")) }
    }

    /// RAM in no place: the machine's table alone tells which.
    fn increase(&mut self, who: (u16, u32), count: u64) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} increase {count}"));
        let result = self.reservation(who, 0, std::iter::empty(), 0, count)?;
        let done = (1..=count).take_while(|count| self.spec.may_have(id, *count)).count() as u64;
        if done != 0 {
            let table = &self.world.machine.frames.table;
            let is_new = |frame: &u64| {
                let state = Mfn::new(*frame).and_then(|mfn| table.state(mfn));
                state.is_some_and(|state| state.owner == DomId(id) && state.role == Role::Data)
                    && !self.spec.of(id).ram.contains(frame)
            };
            let new: Vec<u64> = (table.base().get()..table.end()).filter(is_new).collect();
            for frame in new {
                self.spec.gain(id, frame, None)?;
            }
        }
        if result == done { Ok(()) } else { Err(format!("increase: {result}, specified {done}")) }
    }

    fn totals(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (cmd, dom) = (n.one(&[3, 4, 14]), n.one(&[SELF, SELF, id, 1, 2, 3]));
        self.tell(|| format!("d{id}v{vcpu} memory_op {cmd} about {dom}"));
        let domain = self.spec.of(id);
        let wanted = match (dom == SELF || dom == id, cmd) {
            (false, _) if self.spec.domains.contains_key(&dom) => Errno::Eperm.to_result(),
            (false, _) => Errno::Esrch.to_result(),
            (true, 3) => domain.ram.len() as i64,
            (true, 4) => domain.quota.ram.cast_signed(),
            (true, _) => domain.highest.cast_signed(),
        };
        let (result, _) = self.with(who, number::MEMORY_OP, cmd, DomId(dom))?;
        if result == wanted { Ok(()) } else { Err(format!("memory_op {cmd}: {result}, specified {wanted}")) }
    }

    /// What a toolstack asks for, and what ARM has not: refused, and nothing is changed.
    fn not_a_guests(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (kind, dom, gfn) = (n.below(3), n.dom(), n.gfn());
        // Behind the largest structure.
        let list = ARG + 256;
        let of = |nr_extents: u64| Reservation {
            extent_start: GuestHandle(list),
            nr_extents,
            extent_order: 0,
            mem_flags: 0,
            domid: DomId(dom),
            pad: [0; 3],
        };
        let (what, wanted, (result, ())) = match kind {
            0 => {
                let done = u64::from(n.below(3));
                let wanted = self.spec.exchange(id, dom, gfn, done);
                self.guest(id, vcpu).write(list, &gfn.to_le_bytes());
                let arg = MemoryExchange { input: of(1), output: of(1), nr_exchanged: done };
                let (result, arg) = self.with(who, number::MEMORY_OP, 11, arg)?;
                if arg.nr_exchanged != done {
                    return Err(format!("exchange: {} done, specified {done}", arg.nr_exchanged));
                }
                ("exchange", wanted, (result, ()))
            }
            1 => {
                let arg = Reservation { extent_start: GuestHandle(0), ..of(1 + u64::from(n.below(3))) };
                let (result, _) = self.with(who, number::MEMORY_OP, 24, arg)?;
                ("claim_pages", self.spec.claim_pages(dom), (result, ()))
            }
            _ => {
                // Destroy, pause, unpause, tell.
                let (cmd, version) = (2 + u32::from(n.below(4)), n.one(&[0x17, 0x17, 0x17, 0x16]));
                let arg =
                    Domctl { cmd, interface_version: version, domain: DomId(dom), ..Domctl::new_zeroed() };
                self.guest(id, vcpu).write(ARG, arg.as_bytes());
                let result = self.call(id, vcpu, number::DOMCTL, [ARG, 0, 0, 0, 0])?;
                ("domctl", self.spec.domctl(version, dom), (result, ()))
            }
        };
        self.tell(|| format!("d{id}v{vcpu} {what} about {dom}, {gfn:#x}"));
        let wanted = code(&wanted);
        if result == wanted { Ok(()) } else { Err(format!("{what}: {result}, specified {wanted}")) }
    }

    /// A guest stores a word where it sees something, or faults.
    fn store(&mut self, id: u16, n: &mut Numbers<'_>) -> Result<(), String> {
        let (gfn, offset) = (n.gfn(), usize::from(n.next()) * 16);
        let value = u64::from_le_bytes(std::array::from_fn(|_| n.next() | 1));
        let place = self.spec.of(id).places.get(&gfn).copied();
        if let Some(Place::Ram(frame) | Place::Grant { frame, .. }) = place
            && self.spec.domains.values().any(|domain| {
                domain.vcpus.iter().flat_map(crate::spec::Vcpu::areas).any(|area| area == frame)
            })
        {
            return Ok(());
        }
        if matches!(place, Some(Place::Shared(_))) {
            return Ok(());
        }
        self.tell(|| format!("d{id} stores {value:#x} at {gfn:#x}000 + {offset:#x}"));
        let wanted = self.spec.write(id, gfn, offset, value);
        let Some(ipa) = Ipa::new(address(gfn) + offset as u64) else { return Ok(()) };
        let domain = self.world.domain(id);
        let bytes = value.to_le_bytes();
        let stored = self.world.machine.hw.guest_write(domain.vmid, domain.stage2_root, ipa, &bytes);
        if stored.is_ok() == wanted { Ok(()) } else { Err(format!("a store: {stored:?}, allowed: {wanted}")) }
    }

    fn vcpu_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        match kind {
            0xE8..0xEC => {
                let (number, gfn) = (n.vcpu(), n.gfn());
                let offset = n.one(&[24, 32, 4048, 64, 4049, 4056, 4, 4096, 1024, u32::MAX]);
                // Two vCPUs at one place would be the guest's own confusion.
                let offset = match (number, offset) {
                    (1, 4048) => 4000,
                    (1, offset @ ..4000) => offset + 200,
                    _ => offset,
                };
                // Rarely: once done it stays.
                if n.below(3) != 0 {
                    return Ok(());
                }
                self.tell(|| {
                    format!("d{id}v{vcpu} register_vcpu_info of {number} at {gfn:#x} + {offset:#x}")
                });
                let wanted = code(&self.spec.register_info(id, number, gfn, offset));
                let arg = RegisterVcpuInfo { gfn, offset, rsvd: 0 };
                self.guest(id, vcpu).write(ARG, arg.as_bytes());
                let args = [10, u64::from(number), ARG, 0, 0];
                let result = self.call(id, vcpu, number::VCPU_OP, args)?;
                if result == wanted {
                    Ok(())
                } else {
                    Err(format!("vcpu_info: {result}, specified {wanted}"))
                }
            }
            0xEC..0xF0 => self.runstate_step(who, n),
            0xF0..0xF6 => {
                self.tell(|| format!("d{id}v{vcpu} block"));
                self.spec.block(id, vcpu);
                match self.call(id, vcpu, number::SCHED_OP, [1, 0, 0, 0, 0])? {
                    0 => Ok(()),
                    result => Err(format!("block: {result}, specified 0")),
                }
            }
            _ => {
                let ports = [n.port(), n.port()];
                let ports = &ports[..usize::from(n.below(3))];
                self.tell(|| format!("d{id}v{vcpu} poll {ports:?}"));
                for (index, port) in (0..).zip(ports) {
                    self.guest(id, vcpu).write(LIST + index * 4, &port.to_le_bytes());
                }
                let wanted = code(&self.spec.poll(id, vcpu, ports));
                let nr_ports = u32::try_from(ports.len()).expect("few");
                let arg = Poll { ports: GuestHandle(LIST), nr_ports, pad: 0, timeout: 0 };
                let (result, _) = self.with(who, number::SCHED_OP, 3, arg)?;
                if result == wanted { Ok(()) } else { Err(format!("poll: {result}, specified {wanted}")) }
            }
        }
    }

    fn runstate_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (number, gfn, offset) = (n.below(2), n.ram(), n.one(&[2048_u64, 3000, 4072]));
        // 48 bytes, away from the words of a `vcpu_info`: what does not fit is in the next page.
        let pages = if offset > 4048 { 2 } else { 1 };
        let frames: Option<Vec<u64>> = (0..pages).map(|page| self.spec.ram_at(id, gfn + page)).collect();
        let address = if frames.is_some() { address(gfn) + offset } else { 0 };
        self.tell(|| format!("d{id}v{vcpu} register_runstate of {number} at {address:#x}"));
        self.spec.register_runstate(id, u32::from(number), frames.unwrap_or_default());
        self.guest(id, vcpu).write(ARG, &address.to_le_bytes());
        match self.call(id, vcpu, number::VCPU_OP, [5, u64::from(number), ARG, 0, 0])? {
            0 => Ok(()),
            result => Err(format!("runstate: {result}, specified 0")),
        }
    }
}

fn port_is(found: Port, wanted: Result<u32, Errno>) -> Result<(), String> {
    match wanted {
        Ok(wanted) if wanted != found.0 => Err(format!("port {}, specified {wanted}", found.0)),
        _ => Ok(()),
    }
}

fn status_is(what: &str, found: i16, wanted: i16) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: status {found}, specified {wanted}")) }
}
