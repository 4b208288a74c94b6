//! Two domains share, map, copy, revoke, grant again, signal; and one of them dies between any two of these steps, while the other goes on at
//! any moment of its being taken apart. What the other does is served as ever or refused; what it holds stays as it is until it lets go, also
//! when the dead one lives again; and then everything is back where it began.
#![allow(clippy::unwrap_used, clippy::panic, reason = "panics are how tests fail")]

use hypervisor::domain::{Life, Stage};
use hypervisor::fake::{RAM, World};
use hypervisor::hardware::CpuId;
use hypervisor::life;
use hypervisor::vcpu::Run;
use pavo_tests::{ARG, Guest, guest, number};
use pv_abi::control::{Counters, role};
use pv_abi::event::{BindInterdomain, EventOp, PortArg};
use pv_abi::grant::{
    CopyFlags, CopyPtr, EntryFlags, GrantCopy, GrantEntry, GrantOp, MapGrantRef, SwapGrantRef, UnmapGrantRef,
};
use pv_abi::memory::Reservation;
use pv_abi::sched::ShutdownReason;
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle, Port};
use zerocopy::IntoBytes;

const ESRCH: i64 = -3;
const EINVAL: i64 = -22;
const BAD_DOMAIN: i16 = -2;
const HOST_MAP: u32 = 1 << 1;
const READONLY: u32 = 1 << 2;
const CPU: CpuId = CpuId(0);
/// Pages of each domain: those that the first shares, the one that the second does, and where copies come.
const PAGES: [u64; 3] = [RAM + 0x3_0000, RAM + 0x3_1000, RAM + 0x3_2000];
const COPY: u64 = RAM + 0x3_8000;
/// Where mappings are put.
const AT: [u64; 3] = [0x5000_0000, 0x5000_1000, 0x5000_2000];

/// The conversation so far.
struct Talk<'w> {
    world: &'w World,
    /// Who has been ended, if anybody.
    gone: Option<u16>,
    /// Who has what mapped where.
    held: Vec<(u16, GrantHandle, u64)>,
    ports: [Option<Port>; 3],
    /// The second has written where it mapped.
    wrote: bool,
}

/// Who does it, and what.
type Step = (u16, fn(&mut Talk<'_>));

impl Talk<'_> {
    fn guest(&self, id: u16) -> Guest<'_> {
        guest(self.world, id)
    }

    /// A status that a call about the other has: as ever while that lives, and a refusal once it does not.
    fn as_expected(&self, status: i16, what: &str) {
        let expected = if self.gone.is_some() { BAD_DOMAIN } else { 0 };
        assert_eq!(status, expected, "{what}");
    }

    fn map(&mut self, who: u16, gref: u32, at: u64, flags: u32) {
        let dom = DomId(3 - who);
        let op = MapGrantRef { host_addr: at, flags, gref: GrantRef(gref), dom, ..Default::default() };
        let (result, op) = self.guest(who).quick_grant(GrantOp::MapGrantRef, op);
        assert_eq!(result, 0);
        self.as_expected(op.status, "map");
        if op.status == 0 {
            self.held.push((who, op.handle, at));
        }
    }

    /// Gives a mapping back, if it is there; that is never refused.
    fn unmap(&mut self, who: u16, at: u64) {
        let Some(index) = self.held.iter().position(|(id, _, place)| (*id, *place) == (who, at)) else {
            return;
        };
        let (_, handle, _) = self.held.remove(index);
        let op = UnmapGrantRef { host_addr: at, handle, ..Default::default() };
        let (result, op) = self.guest(who).quick_grant(GrantOp::UnmapGrantRef, op);
        assert_eq!((result, op.status), (0, 0), "unmap");
    }

    /// Copies a page from or to the other's.
    fn copy(&mut self, who: u16, gref: u32, flags: CopyFlags) {
        let theirs = CopyPtr { ref_or_gfn: gref.into(), domid: DomId(3 - who), ..Default::default() };
        let own = CopyPtr { ref_or_gfn: COPY >> 12, domid: DomId::SELF, ..Default::default() };
        let (source, dest) = if flags == CopyFlags::SOURCE_GREF { (theirs, own) } else { (own, theirs) };
        let op = GrantCopy { source, dest, len: 4096, flags: flags.bits(), ..Default::default() };
        let (result, op) = self.guest(who).quick_grant(GrantOp::Copy, op);
        assert_eq!(result, 0);
        self.as_expected(op.status, "copy");
    }

    fn holds_first(&self) -> bool {
        self.held.iter().any(|(id, _, at)| (*id, *at) == (2, AT[0]))
    }

    /// What the second wrote is still there, while it has that page.
    fn shows(&self) {
        if self.wrote && self.holds_first() {
            assert_eq!(self.world.guest_read::<6>(2, AT[0]), *b"shared");
        }
    }

    fn revoke(&self, who: u16, gref: u32) {
        self.guest(who).grants(gref, 0, 0, EntryFlags::empty());
        let nothing = GrantEntry { flags: 0, domid: DomId(0), frame: 0 };
        let frame = self.world.domain(who).state.lock().grants.frame(0).unwrap();
        let at = hypervisor::addr::FrameAddr::new(frame, gref as usize * 8).unwrap();
        hypervisor::hardware::Hardware::write(&self.world.machine.hw, at, nothing.as_bytes());
    }

    /// Takes a page away; puts one there again if that was possible.
    fn withdraw(&self, who: u16, page: u64, may: bool) {
        let guest = self.guest(who);
        guest.write(ARG + 64, (page >> 12).as_bytes());
        let arg = Reservation {
            extent_start: GuestHandle(ARG + 64),
            nr_extents: 1,
            extent_order: 0,
            mem_flags: 0,
            domid: DomId::SELF,
            pad: [0; 3],
        };
        guest.write(ARG, arg.as_bytes());
        let gone = guest.quick(number::MEMORY_OP, [1, ARG, 0, 0, 0]);
        assert!(may || gone == 0, "a page that the other has mapped");
        if gone == 1 {
            assert_eq!(guest.quick(number::MEMORY_OP, [6, ARG, 0, 0, 0]), 1);
        }
    }
}

/// References 8 to 10 of the first are for the second, 8 of the second for the first.
const STEPS: [Step; 27] = [
    (1, |talk| talk.guest(1).grants(8, 2, PAGES[0] >> 12, EntryFlags::empty())),
    (2, |talk| talk.map(2, 8, AT[0], HOST_MAP)),
    (2, |talk| talk.map(2, 8, AT[1], HOST_MAP | READONLY)),
    (2, |talk| {
        // Also when it is nobody's page by now.
        if talk.holds_first() {
            talk.world.guest_write(2, AT[0], b"shared");
            talk.wrote = true;
        }
    }),
    // As far as it can: the second has it mapped.
    (1, |talk| talk.revoke(1, 8)),
    (1, |talk| talk.withdraw(1, PAGES[0], talk.gone.is_some())),
    (2, |talk| talk.shows()),
    (1, |talk| talk.guest(1).grants(9, 2, PAGES[1] >> 12, EntryFlags::READONLY)),
    (2, |talk| talk.copy(2, 9, CopyFlags::SOURCE_GREF)),
    (1, |talk| talk.guest(1).grants(10, 2, PAGES[2] >> 12, EntryFlags::empty())),
    (2, |talk| talk.copy(2, 10, CopyFlags::DEST_GREF)),
    (1, |talk| talk.revoke(1, 9)),
    (1, |talk| talk.guest(1).grants(9, 2, PAGES[2] >> 12, EntryFlags::READONLY)),
    (2, |talk| talk.map(2, 9, AT[2], HOST_MAP | READONLY)),
    (1, |talk| {
        let op = SwapGrantRef { ref_a: GrantRef(10), ref_b: GrantRef(11), ..Default::default() };
        let (result, op) = talk.guest(1).quick_grant(GrantOp::SwapGrantRef, op);
        assert_eq!((result, op.status), (0, 0));
    }),
    (2, |talk| talk.copy(2, 11, CopyFlags::SOURCE_GREF)),
    (2, |talk| talk.unmap(2, AT[0])),
    (2, |talk| talk.guest(2).grants(8, 1, PAGES[0] >> 12, EntryFlags::empty())),
    (1, |talk| talk.map(1, 8, AT[0], HOST_MAP)),
    (1, |talk| talk.copy(1, 8, CopyFlags::SOURCE_GREF)),
    (2, |talk| talk.withdraw(2, PAGES[0], talk.gone.is_some())),
    (1, |talk| {
        // Refused once there is nobody to connect to.
        if talk.gone.is_none() {
            talk.ports[1] = Some(talk.guest(1).unbound(2));
        }
    }),
    (2, |talk| {
        let Some(remote_port) = talk.ports[1] else { return };
        let arg = BindInterdomain { remote_dom: DomId(1), remote_port, ..Default::default() };
        let (result, arg) = talk.guest(2).quick_event(EventOp::BindInterdomain, arg);
        // The ports of one that has ended are there until they are closed.
        assert!(result == 0 || talk.gone.is_some() && [EINVAL, ESRCH].contains(&result), "{result}");
        talk.ports[2] = (result == 0).then_some(arg.local_port);
    }),
    (1, |talk| {
        // Who sends does not hear of it.
        if let Some(port) = talk.ports[1] {
            assert_eq!(talk.guest(1).quick_event(EventOp::Send, PortArg { port }).0, 0);
        }
    }),
    (2, |talk| close(talk, 2)),
    (2, |talk| AT.iter().for_each(|at| talk.unmap(2, *at))),
    (1, |talk| {
        talk.unmap(1, AT[0]);
        close(talk, 1);
        (8..12).for_each(|gref| talk.revoke(1, gref));
    }),
];

fn close(talk: &mut Talk<'_>, who: u16) {
    if let Some(port) = talk.ports[usize::from(who)].take() {
        assert_eq!(talk.guest(who).quick_event(EventOp::Close, PortArg { port }).0, 0);
    }
}

fn end(world: &World, id: u16) {
    let off = Life::Shutdown(ShutdownReason::Poweroff);
    hypervisor::sched_op::end_domain(&world.machine, &world.current(id, 0), world.domain(id), off);
}

/// So many steps of taking apart; true when there was nothing to do.
fn take_apart(world: &World, steps: u32) -> bool {
    (0..steps).any(|_| {
        let frames = &world.machine.frames;
        // Those that have run a guest.
        let ran = (0..).map(CpuId).zip(frames.quiescent.now()).filter(|(_, passed)| *passed != 0);
        ran.for_each(|(cpu, _)| frames.quiescent.pass(cpu));
        frames.reclaim();
        life::work(&world.machine, CPU, 0) == u64::MAX
    })
}

/// Operation `op` of `domctl`, or of our own `sysctl`.
fn control(world: &World, call: u64, op: u32, version: u8, id: u16) -> i64 {
    let mut bytes = [0_u8; 144];
    bytes[..4].copy_from_slice(&op.to_le_bytes());
    bytes[4] = version;
    bytes[8..10].copy_from_slice(&id.to_le_bytes());
    guest(world, 0).write(ARG, &bytes);
    guest(world, 0).quick(call, [ARG, 0, 0, 0, 0])
}

fn build(world: &World, id: u16) {
    assert_eq!(control(world, 35, 0x8001, 0x15, id), 0);
    // Started, and chosen by nobody.
    let first = world.domain(id).vcpu(0).unwrap();
    assert!(world.pick(first.home.get()).is_some());
    first.run.set(Run::Blocked);
}

/// What the control domain is told of every owner: frames by role, ports, mappings, names in the TLB, timers. What is in limbo will be free.
fn counted(world: &World) -> Vec<Counters> {
    let of = |id: u16| {
        const BUFFER: u64 = ARG + 512;
        let mut bytes = [0_u8; 136];
        bytes[..4].copy_from_slice(&0x8000_u32.to_le_bytes());
        bytes[4] = 0x15;
        bytes[8..10].copy_from_slice(&id.to_le_bytes());
        bytes[16..24].copy_from_slice(&BUFFER.to_le_bytes());
        let control = guest(world, 0);
        control.write(ARG, &bytes);
        assert_eq!(control.quick(35, [ARG, 0, 0, 0, 0]), 0);
        let mut counted: Counters = control.read(BUFFER);
        counted.frames[role::FREE] += core::mem::take(&mut counted.frames[role::LIMBO]);
        // How often it was built is no resource.
        Counters { generation: 0, ..counted }
    };
    [0, 1, 2, DomId::XEN.0].map(of).to_vec()
}

/// The conversation, in which `victim` dies before step `before`, and `apart` steps of taking apart are done at once.
fn dies(world: &World, victim: u16, before: usize, apart: u32) {
    let mut talk = Talk { world, gone: None, held: Vec::new(), ports: [None; 3], wrote: false };
    for (who, step) in &STEPS[..before] {
        assert_ne!(*who, 0);
        step(&mut talk);
    }
    talk.world.check();
    end(world, victim);
    talk.gone = Some(victim);
    take_apart(world, apart);
    talk.held.retain(|(id, ..)| *id != victim);
    let survivor = 3 - victim;
    // It goes on; now and then before, now and then after the other is gone altogether.
    for (_, step) in STEPS[before..].iter().filter(|(who, _)| *who == survivor).take(before % 5) {
        step(&mut talk);
        take_apart(world, 1);
    }
    talk.world.check();
    assert!(take_apart(world, 10_000));
    assert_eq!(world.domain(victim).life.stage(), Stage::Dead);
    // Half of the time it lives again while the other still holds pages of its last life.
    if before.is_multiple_of(2) {
        build(world, victim);
        world.guest_write(victim, PAGES[0], b"second");
    }
    talk.shows();
    for at in AT {
        talk.unmap(survivor, at);
    }
    close(&mut talk, survivor);
    (8..12).for_each(|gref| talk.revoke(survivor, gref));
    if !before.is_multiple_of(2) {
        build(world, victim);
    }
    take_apart(world, 100);
    world.check();
}

/// The conversation as it is when nobody dies.
fn whole(world: &World) {
    let mut talk = Talk { world, gone: None, held: Vec::new(), ports: [None; 3], wrote: false };
    for (_, step) in &STEPS {
        step(&mut talk);
    }
    talk.revoke(2, 8);
    assert!(talk.held.is_empty());
    world.check();
}

/// A new life for both: nothing is left of what the hypervisor keeps for one until it ends.
fn renewed(world: &World) -> Vec<Counters> {
    for id in [1, 2] {
        assert_eq!(control(world, 36, 2, 0x17, id), 0, "destroyed");
        build(world, id);
    }
    take_apart(world, 100);
    counted(world)
}

fn dies_anywhere(victim: u16) {
    let world = World::with_control(2);
    let fresh = renewed(&world);
    for before in 0..=STEPS.len() {
        for apart in [0, 1, 3, 8, 40, 10_000] {
            dies(&world, victim, before, apart);
            whole(&world);
            assert_eq!(renewed(&world), fresh, "before step {before}, {apart} steps apart");
        }
    }
}

#[test]
fn who_shares_dies_between_any_two_steps_and_nothing_is_left() {
    dies_anywhere(1);
}

#[test]
fn who_maps_and_copies_dies_between_any_two_steps_and_nothing_is_left() {
    dies_anywhere(2);
}
