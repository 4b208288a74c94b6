//! Guests that ask for anything: thousands of calls with arguments that are nearly right, or not at all, from two domains. Nothing
//! panics, every call ends, and the machine stays in order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

use hypervisor::domain::Life;
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{MEMORY_KIB, RAM, Random, World};
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::Outcome;
use hypervisor::psci::{BranchTraining, decode};
use hypervisor::vcpu::Run;
use pavo_tests::{ARG, Guest, NOWHERE, number, two};
use pv_abi::call::TABLE;
use pv_abi::event::{AllocUnbound, BindInterdomain, BindVcpu, BindVirq, EventOp};
use pv_abi::grant::{CopyPtr, EntryFlags, GrantCopy, GrantOp, MapGrantRef, UnmapGrantRef};
use pv_abi::memory::{AddToPhysmap, AddToPhysmapBatch, RemoveFromPhysmap, Reservation};
use pv_abi::vcpu::RegisterVcpuInfo;
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle, Port};
use zerocopy::IntoBytes;

/// Where grants are mapped: a few pages without RAM, a few of RAM.
const PLACES: [u64; 2] = [0x5000_0000, RAM + 0x2_0000];

/// Runs of a call before it must have ended.
const PATIENCE: u32 = 5000;

struct Hostile<'w> {
    world: &'w World,
    random: Random,
}

impl Hostile<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    /// One of some numbers, now and then any.
    fn one_of(&mut self, choices: &[u64]) -> u64 {
        match self.below(16) {
            0 => self.below(u64::MAX),
            1 => u64::MAX - self.below(3),
            _ => choices[self.below(choices.len() as u64) as usize],
        }
    }

    fn small(&mut self) -> u64 {
        let choices = [0, 1, 2, 3, 5, 8, 9, 10, 17, 63, 64, 127, 128];
        self.one_of(&choices)
    }

    fn dom(&mut self) -> u16 {
        self.one_of(&[1, 2, 0x7FF0, 1, 2, 3, 0]) as u16
    }

    /// Fills the argument page with fields that make sense at this place or another.
    fn arguments(&mut self, guest: Guest<'_>) {
        for element in 0..24 {
            let mut bytes = [0; 64];
            for field in bytes.chunks_exact_mut(8) {
                let low = self.small() as u32;
                let high = self.small() as u32;
                let place = PLACES[self.below(2) as usize] + self.below(6) * 0x1000;
                let word = match self.below(6) {
                    0 => place,
                    1 => place >> 12,
                    2 => u64::from(self.dom()) | u64::from(high) << 32,
                    3 => u64::from(low) | u64::from(self.dom()) << 32,
                    4 => ARG + self.below(512) * 8,
                    _ => u64::from(low) | u64::from(high) << 32,
                };
                field.copy_from_slice(&word.to_le_bytes());
            }
            guest.write(ARG + element * 64, &bytes);
        }
    }

    fn place(&mut self) -> u64 {
        PLACES[self.below(2) as usize] + self.below(6) * 0x1000
    }

    /// A call that makes sense, of those that change something: number, arguments; its structures are in place.
    #[expect(clippy::too_many_lines, reason = "one arm a call, each a line or two")]
    fn sensible(&mut self, guest: Guest<'_>) -> (u64, [u64; 5]) {
        let count = 1 + self.below(18);
        let event = |op: EventOp| (number::EVENT_CHANNEL_OP, [u64::from(op.number()), ARG, 0, 0, 0]);
        let grant =
            |op: GrantOp, count: u64| (number::GRANT_TABLE_OP, [u64::from(op.number()), ARG, count, 0, 0]);
        let port = Port(self.below(12) as u32);
        let put = |offset: u64, bytes: &[u8]| guest.write(ARG + offset, bytes);
        match self.random.below(25) {
            0 | 1 => {
                let arg = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(self.dom()), port };
                put(0, arg.as_bytes());
                event(EventOp::AllocUnbound)
            }
            2 | 3 => {
                let remote_dom = DomId(self.dom());
                let arg = BindInterdomain { remote_dom, pad: 0, remote_port: port, local_port: Port(0) };
                put(0, arg.as_bytes());
                event(EventOp::BindInterdomain)
            }
            4 => {
                put(0, BindVirq { virq: self.below(3) as u32, vcpu: self.below(3) as u32, port }.as_bytes());
                event([EventOp::BindVirq, EventOp::BindIpi][self.below(2) as usize])
            }
            5..8 => {
                put(0, BindVcpu { port, vcpu: self.below(3) as u32 }.as_bytes());
                let ops = [EventOp::Close, EventOp::Send, EventOp::Send, EventOp::Unmask, EventOp::BindVcpu];
                event(ops[self.below(5) as usize])
            }
            8..11 => {
                for element in 0..count {
                    let flags = [2, 6, 2, 6, 2, 3][self.below(6) as usize];
                    let gref = GrantRef(8 + self.below(6) as u32);
                    let dom = DomId(1 + self.below(2) as u16);
                    let op =
                        MapGrantRef { host_addr: self.place(), flags, gref, dom, ..MapGrantRef::default() };
                    put(element * 32, op.as_bytes());
                }
                grant(GrantOp::MapGrantRef, count)
            }
            11 | 12 => {
                for element in 0..count {
                    let handle = GrantHandle(self.below(12) as u32);
                    let op = UnmapGrantRef { host_addr: self.place(), handle, ..UnmapGrantRef::default() };
                    put(element * 24, op.as_bytes());
                }
                grant(GrantOp::UnmapGrantRef, count)
            }
            13 | 14 => {
                for element in 0..count {
                    let mut side = |gref: bool| CopyPtr {
                        ref_or_gfn: if gref { 8 + self.below(6) } else { (RAM >> 12) + self.below(300) },
                        domid: if gref { DomId(1 + self.below(2) as u16) } else { DomId::SELF },
                        offset: self.below(200) as u16,
                        pad: 0,
                    };
                    let (source, dest) = (side(element & 1 != 0), side(element & 2 != 0));
                    let len = self.below(4000) as u16;
                    let op = GrantCopy { source, dest, len, flags: (element & 3) as u16, status: 0, pad: 0 };
                    put(element * 40, op.as_bytes());
                }
                grant(GrantOp::Copy, count)
            }
            15 => {
                put(0, &[8 + self.below(7) as u8, 0, 0, 0, 8 + self.below(7) as u8, 0, 0, 0]);
                grant(GrantOp::SwapGrantRef, 1)
            }
            17 | 18 => {
                // Decrease and populate, single pages and small blocks, at places where other things are too.
                for element in 0..count {
                    put(64 + element * 8, &(self.place() >> 12).to_le_bytes());
                }
                let arg = Reservation {
                    extent_start: GuestHandle(ARG + 64),
                    nr_extents: count,
                    extent_order: [0, 0, 0, 2][self.below(4) as usize],
                    mem_flags: 0,
                    domid: DomId::SELF,
                    pad: [0; 3],
                };
                put(0, arg.as_bytes());
                (number::MEMORY_OP, [[1, 6, 6][self.below(3) as usize], ARG, 0, 0, 0])
            }
            19 => {
                for element in 0..count {
                    put(64 + element * 8, &self.below(6).to_le_bytes());
                    put(256 + element * 8, &(self.place() >> 12).to_le_bytes());
                }
                let arg = AddToPhysmapBatch {
                    domid: DomId::SELF,
                    space: self.below(3) as u16,
                    size: count as u16,
                    foreign_domid: DomId(0),
                    idxs: GuestHandle(ARG + 64),
                    gpfns: GuestHandle(ARG + 256),
                    errs: GuestHandle(ARG + 512),
                };
                put(0, arg.as_bytes());
                (number::MEMORY_OP, [23, ARG, 0, 0, 0])
            }
            20 => {
                put(0, &(self.place() + self.below(4096)).to_le_bytes());
                (number::VCPU_OP, [5, self.below(2), ARG, 0, 0])
            }
            21 => {
                // Another CPU comes by between guests.
                hypervisor::sched::pass(&self.world.machine, CpuId(self.below(3) as u8), 0);
                (number::VM_ASSIST, [self.below(2), 5, 0, 0, 0])
            }
            16 => {
                let (space, idx) = (self.below(3) as u32, self.below(6));
                let gpfn = self.place() >> 12;
                let arg = AddToPhysmap { domid: DomId::SELF, size: 1, space, idx, gpfn };
                put(0, arg.as_bytes());
                (number::MEMORY_OP, [7, ARG, 0, 0, 0])
            }
            _ => {
                if self.below(8) == 0 {
                    let arg = RegisterVcpuInfo {
                        gfn: self.place() >> 12,
                        offset: self.below(80) as u32 * 8,
                        rsvd: 0,
                    };
                    put(0, arg.as_bytes());
                    return (number::VCPU_OP, [10, self.below(2), ARG, 0, 0]);
                }
                let gpfn = self.place() >> 12;
                let arg = RemoveFromPhysmap { domid: DomId::SELF, pad: [0; 3], gpfn };
                put(0, arg.as_bytes());
                (number::MEMORY_OP, [15, ARG, 0, 0, 0])
            }
        }
    }

    /// What a guest does to its own shared pages.
    fn scribble(&mut self, guest: Guest<'_>) {
        for gref in 8..14 {
            let flags = EntryFlags::from_bits_retain(self.below(8) as u16);
            let gfn = [RAM + 0x2_0000, RAM + 0x8_0000, 0x5000_0000][self.below(3) as usize]
                + self.below(4) * 0x1000;
            guest.grants(gref, 1 + self.below(2) as u16, gfn >> 12, flags);
        }
        let at = self.below(136) as usize * 8;
        let word = self.below(u64::MAX).to_le_bytes();
        guest.set_info(at, &word);
    }

    /// Any call with any arguments.
    fn wild(&mut self, guest: Guest<'_>) -> (u64, [u64; 5]) {
        self.arguments(guest);
        let row = TABLE[self.below(TABLE.len() as u64) as usize];
        let rare = [7, 35, 36, 1, 63][self.below(5) as usize];
        let number = if self.below(20) == 0 { rare } else { u64::from(row.number) };
        let cmd = self.one_of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 23]);
        let last_page = RAM + MEMORY_KIB * 1024 - 4096;
        let handles =
            [ARG, ARG, ARG, ARG + 4, ARG + 4090, NOWHERE, last_page + 4088, 0, PLACES[0], PLACES[1]];
        let handle = self.one_of(&handles);
        let args = match number {
            number::MULTICALL => {
                for element in 0..24 {
                    let row = TABLE[self.below(TABLE.len() as u64) as usize];
                    guest.write(ARG + element * 64, &u64::from(row.number).to_le_bytes());
                    guest.write(ARG + element * 64 + 16, &self.below(2).to_le_bytes());
                    guest.write(ARG + element * 64 + 24, &(ARG + self.below(4096)).to_le_bytes());
                }
                [ARG, self.below(24), 0, 0, 0]
            }
            number::VCPU_OP => [cmd, self.small(), handle, 0, 0],
            number::CONSOLE_IO => [self.below(2), self.below(5000), handle, 0, 0],
            _ => [cmd, handle, self.one_of(&[0, 1, 2, 16, 17, 20]), self.small(), self.small()],
        };
        (number, args)
    }

    fn step(&mut self) {
        let id = 1 + self.below(2) as u16;
        let guest = Guest { world: self.world, id, vcpu: self.below(2) as u32 };
        // Whoever makes a call runs.
        let vcpu = self.world.domain(id).vcpu(guest.vcpu).unwrap();
        if vcpu.run.get() != Run::Running {
            for _ in 0..4 {
                let _ = self.world.pick(vcpu.home.get());
            }
            vcpu.run.set(Run::Running);
        }
        if self.below(4) == 0 {
            self.scribble(guest);
        }
        let (number, mut args) = if self.below(4) != 0 { self.sensible(guest) } else { self.wild(guest) };
        // A domain that has ended makes no more calls, and a watchdog may end it.
        if number == number::SCHED_OP && [2, 6].contains(&(args[0] & 0xFFFF_FFFF)) {
            return;
        }
        for _ in 0..PATIENCE {
            match guest.once(number, args) {
                Outcome::Done(_) => return,
                Outcome::Restart(left) => args = left,
            }
            // What a kick makes every other CPU do.
            for cpu in 0..3 {
                hypervisor::sched::pass(&self.world.machine, CpuId(cpu), 0);
            }
            // A batch over all of memory is its guest's own time; interrupts come in between.
            if args[2] > 1 << 16 || number == number::MULTICALL || number == number::CONSOLE_IO {
                return;
            }
        }
        panic!("call {number} with {args:x?} never ends");
    }
}

fn run(seed: u64, steps: u32) {
    let world = two();
    let mut hostile = Hostile { world: &world, random: Random::new(seed) };
    for step in 0..steps {
        hostile.step();
        if step % 50 == 0 {
            world.check();
            check_channels(&world.machine).unwrap();
            world.machine.hw.take_ops();
        }
    }
    world.check();
    // Whatever they did, neither has ended: nobody asked for it.
    for id in 1..=2 {
        assert_eq!(world.domain(id).life.get(), Life::Running, "domain {id}, seed {seed}");
    }
}

#[test]
fn thousands_of_calls_leave_the_machine_in_order() {
    for seed in 1..=6 {
        run(seed * 0x9E37_79B9, 2500);
    }
}

#[test]
fn busy_words_end_domains_and_nothing_else() {
    for after in 0..40 {
        let world = two();
        let mut hostile = Hostile { world: &world, random: Random::new(77 + u64::from(after)) };
        world.machine.hw.contend_after(after);
        for _ in 0..60 {
            hostile.step();
        }
        world.check();
        check_channels(&world.machine).unwrap();
    }
}

#[test]
fn any_registers_decode_to_a_request() {
    let world = two();
    let mut random = Random::new(5);
    for _ in 0..20_000 {
        let function =
            [0x8400_0000, 0xC400_0000, 0x8000_0000, 0][random.below(4) as usize] | random.below(16);
        let x = [function, random.below(1 << 20), random.below(u64::MAX), random.below(8)];
        let _ = decode(world.domain(1), BranchTraining::Shared, x);
    }
}
