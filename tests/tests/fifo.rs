//! Event channels by FIFO queues: a guest that consumes them as the ABI tells, one that does not keep to it, and what is left afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use core::cell::Cell;

use hypervisor::addr::{FrameAddr, Ipa};
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{FakeHardware, RAM, Random};
use hypervisor::frame::Role;
use hypervisor::hardware::{CpuId, Hardware};
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};
use pavo_tests::{Guest, guest, number, two};
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, ExpandArray, InitControl, PortArg,
    Reset, SetPriority, Virq,
};
use pv_abi::memory::Reservation;
use pv_abi::{DomId, GuestHandle, Port};
use zerocopy::{Immutable, IntoBytes};

/// Bits of a word, from `public/event_channel.h`.
const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const BUSY: u32 = 1 << 28;
const LINK: u32 = (1 << 17) - 1;
/// Pages of RAM that nothing else uses: control blocks (of vCPU 1 behind that of vCPU 0), array.
const CONTROL: u64 = RAM + 0x6_0000;
const ARRAY: u64 = RAM + 0x6_1000;
const OFFSETS: [u64; 2] = [8, 4096 - 72];

fn init(guest: Guest<'_>, vcpu: u32, gfn: u64, offset: u64) -> (i64, InitControl) {
    let control = InitControl { control_gfn: gfn, offset: offset as u32, vcpu, ..Default::default() };
    guest.event(EventOp::InitControl, control)
}

fn expand(guest: Guest<'_>, gfn: u64) -> i64 {
    guest.event(EventOp::ExpandArray, ExpandArray { array_gfn: gfn }).0
}

fn priority(guest: Guest<'_>, port: Port, priority: u32) -> i64 {
    guest.event(EventOp::SetPriority, SetPriority { port, priority }).0
}

fn reset(guest: Guest<'_>) -> i64 {
    guest.event(EventOp::Reset, Reset { dom: DomId::SELF }).0
}

fn ipi(guest: Guest<'_>, vcpu: u32) -> Port {
    let (result, made) = guest.event(EventOp::BindIpi, BindIpi { vcpu, port: Port(0) });
    assert_eq!(result, 0);
    made.port
}

/// Control blocks for both vCPUs.
fn begin(guest: Guest<'_>) {
    for vcpu in 0..2 {
        assert_eq!(init(guest, vcpu, CONTROL >> 12, OFFSETS[vcpu as usize]).0, 0);
    }
}

/// [`begin`], and an array of one page.
fn ready(guest: Guest<'_>) {
    begin(guest);
    assert_eq!(expand(guest, ARRAY >> 12), 0);
}

fn word(guest: Guest<'_>, port: Port) -> FrameAddr {
    guest.place(ARRAY + u64::from(port.0) * 4)
}

fn load(guest: Guest<'_>, port: Port) -> u32 {
    guest.world.machine.hw.load_u32(word(guest, port))
}

fn bits(guest: Guest<'_>, port: Port) -> u32 {
    load(guest, port) & !LINK
}

/// Changes a word as a guest does, by exclusives.
fn change(guest: Guest<'_>, at: FrameAddr, with: impl Fn(u32) -> u32) -> u32 {
    let hw = &guest.world.machine.hw;
    loop {
        let seen = hw.load_u32(at);
        if hw.compare_exchange_u32(at, seen, with(seen)) == Ok(seen) {
            return seen;
        }
    }
}

/// The consumer's side: what it remembers of each queue of one vCPU.
struct Consumer<'w> {
    guest: Guest<'w>,
    control: u64,
    heads: [u32; 16],
}

impl<'w> Consumer<'w> {
    fn new(guest: Guest<'w>, vcpu: usize) -> Self {
        Self { guest, control: CONTROL + OFFSETS[vcpu], heads: [0; 16] }
    }

    /// Takes everything that is ready, the most urgent first; what was pending and not masked, in order.
    fn take(&mut self) -> Vec<u32> {
        let mut taken = Vec::new();
        let ready_at = self.guest.place(self.control);
        let mut ready = change(self.guest, ready_at, |_| 0);
        while ready != 0 {
            let queue = ready.trailing_zeros() as usize;
            let mut head = self.heads[queue];
            if head == 0 {
                head = self
                    .guest
                    .world
                    .machine
                    .hw
                    .load_u32(self.guest.place(self.control + 8 + queue as u64 * 4));
            }
            let at = word(self.guest, Port(head));
            let before = change(self.guest, at, |seen| seen & !(LINKED | LINK));
            self.heads[queue] = before & LINK;
            if before & LINK == 0 {
                ready &= !(1 << queue);
            }
            if before & (PENDING | MASKED) == PENDING {
                change(self.guest, at, |seen| seen & !PENDING);
                taken.push(head);
            }
            ready |= change(self.guest, ready_at, |_| 0);
        }
        taken
    }
}

fn upcall(guest: Guest<'_>) -> bool {
    guest.info_word(0) & 0xFF != 0
}

#[test]
fn arguments_are_judged_as_by_xen() {
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(expand(one, ARRAY >> 12), -95, "not before there is a control block");
    assert_eq!(priority(one, Port(0), 99), -38);
    assert_eq!(priority(one, Port(64), 0), -22);
    let gfn = CONTROL >> 12;
    assert_eq!(init(one, 2, gfn, 4).0, -2);
    for offset in [4, 4096 - 64, 4096, u64::from(u32::MAX)] {
        assert_eq!(init(one, 0, gfn, offset).0, -22);
    }
    for gfn in [0, 0x5_0000, u64::MAX] {
        assert_eq!(init(one, 0, gfn, 0).0, -22, "no RAM");
    }
    assert_eq!(expand(one, ARRAY >> 12), -95, "a refused one changes nothing");
    let (result, told) = init(one, 0, gfn, 4096 - 72);
    assert_eq!((result, told.link_bits), (0, 17));
    assert_eq!(init(one, 0, gfn, 0).0, -22, "it has one");
    assert_eq!(init(one, 1, gfn, 0).0, 0, "a page may hold several");
    assert_eq!(one.count(CONTROL), 2);
    assert_eq!((expand(one, 0), expand(one, u64::MAX)), (-22, -22));
    for _ in 0..128 {
        assert_eq!(expand(one, ARRAY >> 12), 0);
    }
    assert_eq!(expand(one, ARRAY >> 12), -28);
    assert_eq!(one.count(ARRAY), 4, "pages for ports that cannot be are not held");
    let port = ipi(one, 0);
    assert_eq!((priority(one, port, 15), priority(one, port, 16), priority(one, Port(64), 0)), (0, -22, -22));
    assert_eq!((priority(one, Port(0), 15), priority(one, Port(2), 16)), (-13, -13));
}

#[test]
fn events_come_in_order_and_by_priority() {
    let world = two();
    let one = guest(&world, 1);
    ready(one);
    let ports: Vec<Port> = (0..6).map(|_| ipi(one, 0)).collect();
    assert_eq!(priority(one, ports[4], 3), 0);
    for port in [0, 1, 2, 4, 5, 1] {
        assert_eq!(one.send(ports[port]), 0);
    }
    assert!(upcall(one));
    let mut consumer = Consumer::new(one, 0);
    assert_eq!(consumer.take(), [ports[4].0, ports[0].0, ports[1].0, ports[2].0, ports[5].0]);
    assert_eq!(consumer.take(), []);
    assert!(ports.iter().all(|port| load(one, *port) == 0));
    assert_eq!(one.info_word(pavo_tests::PENDING), 0, "nothing in two levels");
    one.set_info(0, &[0; 8]);
    assert_eq!(one.send(ports[1]), 0);
    assert!(upcall(one));
    assert_eq!(consumer.take(), [ports[1].0]);
}

#[test]
fn each_vcpu_has_its_queues_and_a_port_moves_between_them() {
    let world = two();
    let one = guest(&world, 1);
    ready(one);
    let mut consumers = [Consumer::new(one, 0), Consumer::new(one, 1)];
    let there = one.unbound(1);
    let here = one.bind(1, there);
    assert_eq!(consumers[0].take(), [here.0], "a new channel's second end");
    let move_to = |vcpu| assert_eq!(one.event(EventOp::BindVcpu, BindVcpu { port: there, vcpu }).0, 0);
    let other = ipi(one, 1);
    for (vcpu, urgent) in [(1, 7), (0, 7), (0, 2), (1, 2), (1, 7), (0, 15)] {
        move_to(vcpu);
        assert_eq!(priority(one, there, urgent), 0);
        assert_eq!((one.send(here), one.send(other)), (0, 0));
        // A change waits for the next event.
        move_to(1 - vcpu);
        let mut got = [consumers[0].take(), consumers[1].take()];
        got[1].retain(|port| *port != other.0);
        let expected = if vcpu == 0 { [vec![there.0], vec![]] } else { [vec![], vec![there.0]] };
        assert_eq!(got, expected);
    }
    // Its tail was it; after it left, its old queue begins anew.
    move_to(0);
    assert_eq!(one.send(here), 0);
    assert_eq!(consumers[0].take(), [there.0]);
    move_to(1);
    assert_eq!(one.send(here), 0);
    let late = ipi(one, 0);
    assert_eq!((priority(one, late, 15), one.send(late)), (0, 0));
    assert_eq!((consumers[0].take(), consumers[1].take()), (vec![late.0], vec![there.0]));
}

#[test]
fn a_masked_event_waits_until_it_is_unmasked() {
    let world = two();
    let one = guest(&world, 1);
    ready(one);
    let port = ipi(one, 0);
    change(one, word(one, port), |seen| seen | MASKED);
    assert_eq!(one.send(port), 0);
    assert_eq!((load(one, port), upcall(one)), (PENDING | MASKED, false));
    let unmask = || assert_eq!(one.event(EventOp::Unmask, PortArg { port }).0, 0);
    unmask();
    assert_eq!((load(one, port), upcall(one)), (PENDING | LINKED, true));
    let mut consumer = Consumer::new(one, 0);
    assert_eq!(consumer.take(), [port.0]);
    unmask();
    assert_eq!((load(one, port), consumer.take()), (0, vec![]));
}

#[test]
fn a_port_that_is_in_a_queue_still_is_not_given_out() {
    let world = two();
    let one = guest(&world, 1);
    ready(one);
    let port = ipi(one, 0);
    assert_eq!((one.send(port), one.close(port)), (0, 0));
    assert_eq!(load(one, port), LINKED, "pending no more");
    let next = ipi(one, 0);
    assert_eq!(next.0, port.0 + 1);
    assert_eq!(Consumer::new(one, 0).take(), []);
    assert_eq!(ipi(one, 1), port);
}

#[test]
fn events_from_before_the_array_are_raised_when_it_comes_and_the_call_restarts_at_each() {
    for budget in [None, Some(1), Some(7)] {
        let world = two();
        let one = guest(&world, 1);
        let early: Vec<Port> = (0..20).map(|_| ipi(one, 0)).collect();
        for port in &early {
            assert_eq!(one.send(*port), 0);
        }
        begin(one);
        let late: Vec<Port> = (0..20).map(|n| ipi(one, n % 2)).collect();
        for port in &late {
            assert_eq!(one.send(*port), 0);
        }
        assert_eq!(one.close(late[19]), 0);
        world.machine.hw.set_budget(budget);
        one.write(pavo_tests::ARG, ExpandArray { array_gfn: ARRAY >> 12 }.as_bytes());
        let mut args = [EventOp::ExpandArray.number().into(), pavo_tests::ARG, 0, 0, 0];
        let mut runs = 1;
        while let Outcome::Restart(left) = one.once(number::EVENT_CHANNEL_OP, args) {
            world.check();
            args = left;
            runs += 1;
        }
        let expected = budget.map_or(2, |budget| 39_u32.div_ceil(budget));
        assert_eq!(runs, expected, "39 events, 32 a run");
        let mut got = [Consumer::new(one, 0).take(), Consumer::new(one, 1).take()];
        let to = |vcpu| late.iter().take(19).skip(vcpu).step_by(2).map(|port| port.0).collect::<Vec<_>>();
        assert_eq!(got[1], to(1));
        assert_eq!(got[0].split_off(20), to(0));
        assert_eq!(got[0], early.iter().map(|port| port.0).collect::<Vec<_>>());
        assert_eq!(one.count(ARRAY), 1, "one page was added, once");
        assert_eq!(one.info_word(pavo_tests::PENDING), 0);
    }
}

#[test]
fn xsa_107_an_event_for_a_vcpu_without_a_control_block_is_lost() {
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(init(one, 0, CONTROL >> 12, OFFSETS[0]).0, 0);
    assert_eq!(expand(one, ARRAY >> 12), 0);
    let port = ipi(one, 1);
    assert_eq!((one.send(port), load(one, port)), (0, 0));
    assert_eq!(init(one, 1, CONTROL >> 12, OFFSETS[1]).0, 0);
    assert_eq!((one.send(port), bits(one, port)), (0, PENDING | LINKED));
}

#[test]
fn virtual_interrupts_and_polls_know_the_queues() {
    let world = two();
    let one = guest(&world, 1);
    ready(one);
    let timer = BindVirq { virq: Virq::Debug.number(), vcpu: 1, port: Port(0) };
    let (result, virq) = one.event(EventOp::BindVirq, timer);
    assert_eq!((result, load(one, virq.port)), (0, 0));
    let port = ipi(one, 0);
    one.write(CONTROL + 0x800, &port.0.to_le_bytes());
    let poll = [CONTROL + 0x800, 1, 1];
    assert_eq!(one.send(port), 0);
    let (result, _) = one.with(number::SCHED_OP, 3, poll);
    assert_eq!((result, world.take_reschedule()), (0, false), "it is pending");
    assert_eq!(Consumer::new(one, 0).take(), [port.0]);
}

#[test]
fn its_pages_stay_until_the_reset_which_goes_back_to_two_levels() {
    let world = two();
    let one = guest(&world, 1);
    ready(one);
    let give_back = |page: u64| {
        one.write(RAM + 0x7_0000, &(page >> 12).to_le_bytes());
        let asked = Reservation {
            extent_start: GuestHandle(RAM + 0x7_0000),
            nr_extents: 1,
            domid: DomId::SELF,
            ..Reservation::default()
        };
        one.with(number::MEMORY_OP, 1, asked).0
    };
    assert_eq!((give_back(CONTROL), give_back(ARRAY)), (0, 0), "not while they are in use");
    let port = ipi(one, 0);
    assert_eq!((one.send(port), reset(one)), (0, 0));
    assert_eq!((one.count(CONTROL), one.count(ARRAY)), (0, 0));
    let port = ipi(one, 0);
    one.set_info(0, &[0; 16]);
    assert_eq!((one.send(port), one.is_pending(port), upcall(one)), (0, true, true));
    assert_eq!(expand(one, ARRAY >> 12), -95);
    assert_eq!((give_back(CONTROL), give_back(ARRAY)), (1, 1));
    // And again.
    assert_eq!(init(one, 0, (CONTROL >> 12) + 2, 0).0, 0);
    assert_eq!(expand(one, (CONTROL >> 12) + 3), 0);
    assert_eq!(one.read::<u32>(CONTROL + 0x3000 + u64::from(port.0) * 4), PENDING | LINKED);
}

#[test]
fn a_guest_that_writes_its_pages_at_random_harms_itself_only() {
    let mut random = Random::new(5);
    for _ in 0..10 {
        let world = two();
        let (one, two) = (guest(&world, 1), guest(&world, 2));
        ready(one);
        let mut ports: Vec<Port> = (0..5).map(|n| ipi(one, n % 2)).collect();
        let theirs = two.unbound(1);
        ports.push(one.bind(2, theirs));
        for _ in 0..120 {
            let any = random.below(u64::from(u32::MAX)) as u32;
            let port = ports[random.below(6) as usize];
            match random.below(7) {
                0 => one.write(CONTROL + random.below(1024) * 4, &any.to_le_bytes()),
                1 | 2 => one.write(ARRAY + u64::from(port.0) * 4, &(any & (LINK | 15 << 28)).to_le_bytes()),
                3 => assert_eq!(priority(one, port, any % 16), 0),
                4 => drop(one.event(EventOp::BindVcpu, BindVcpu { port, vcpu: any % 2 })),
                5 => drop(one.event(EventOp::Unmask, PortArg { port })),
                _ => drop(one.send(port)),
            }
            assert_eq!(two.send(theirs), 0);
        }
        assert!(world.domain(1).life.is_running() && world.domain(2).life.is_running());
        assert!(
            !upcall(two) || two.is_pending(theirs),
            "what the other one got came from this one's own end"
        );
        assert_eq!(reset(one), 0);
        assert_eq!(world.machine.frames.table.total(DomId(1), Role::DomainTable), 1);
        check_channels(&world.machine).unwrap();
    }
}

/// Sends as fast as it can from a vCPU of domain 2.
fn send_all(machine: &Machine<FakeHardware>, vcpu: u32, ports: &[Port]) {
    let reschedule = Cell::new(false);
    let domain = machine.domain(DomId(2)).unwrap();
    let current =
        Current { domain, vcpu: domain.vcpu(vcpu).unwrap(), cpu: CpuId(vcpu as u8), reschedule: &reschedule };
    let arg = RAM + 0x1_0000 + u64::from(vcpu) * 0x1000;
    for round in 0..3000 {
        let port = ports[(round * 7 + vcpu as usize) % ports.len()];
        let at = Ipa::new(arg).unwrap();
        machine.hw.guest_write(domain.vmid, domain.stage2_root, at, port.as_bytes()).unwrap();
        let args = [EventOp::Send.number().into(), arg, 0, 0, 0];
        assert_eq!(hypercall(machine, &current, number::EVENT_CHANNEL_OP, args), Outcome::Done(0));
    }
}

/// Two vCPUs send to the queues that a third empties, masking and unmasking as it goes: when all is sent, nothing is left behind.
#[test]
fn no_event_is_lost_between_threads() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    ready(one);
    let channel = |n: u32| {
        let there = one.unbound(2);
        assert_eq!(priority(one, there, 6 + n % 2), 0);
        (there, two.bind(1, there))
    };
    let (ends, ports): (Vec<Port>, Vec<Port>) = (0..5).map(channel).unzip();
    let (machine, ports) = (&world.machine, ports.as_slice());
    let mut consumer = Consumer::new(one, 0);
    let mut got = 0;
    std::thread::scope(|threads| {
        let senders = [0, 1].map(|vcpu| threads.spawn(move || send_all(machine, vcpu, ports)));
        for port in ends.iter().cycle() {
            let sending = senders.iter().any(|sender| !sender.is_finished());
            let at = word(one, *port);
            change(one, at, |seen| seen | MASKED);
            got += consumer.take().len();
            // As a guest may: by itself what is not pending, once it is not BUSY; else by the call.
            loop {
                let seen = load(one, *port);
                if seen & PENDING != 0 {
                    one.write(RAM + 0x2_0000, port.as_bytes());
                    let args = [EventOp::Unmask.number().into(), RAM + 0x2_0000, 0, 0, 0];
                    assert_eq!(one.quick(number::EVENT_CHANNEL_OP, args), 0);
                    break;
                }
                let free = seen & !BUSY;
                if machine.hw.compare_exchange_u32(at, free, free & !MASKED) == Ok(free) {
                    break;
                }
            }
            got += consumer.take().len();
            if !sending {
                break;
            }
        }
    });
    got += consumer.take().len();
    assert!(ends.iter().all(|port| load(one, *port) == 0), "something is left behind");
    assert!((1..=6005).contains(&got), "{got} events");
    world.check();
}

/// A call of a vCPU's, at the same time as others': its argument lies in a page of the vCPU's own. No answer is wrong.
fn racing<T: IntoBytes + Immutable>(
    machine: &Machine<FakeHardware>,
    id: u16,
    vcpu: u32,
    op: EventOp,
    arg: &T,
) -> i64 {
    let reschedule = Cell::new(false);
    let domain = machine.domain(DomId(id)).unwrap();
    let current =
        Current { domain, vcpu: domain.vcpu(vcpu).unwrap(), cpu: CpuId(vcpu as u8), reschedule: &reschedule };
    let at = RAM + 0x1_0000 + u64::from(vcpu) * 0x1000;
    machine.hw.guest_write(domain.vmid, domain.stage2_root, Ipa::new(at).unwrap(), arg.as_bytes()).unwrap();
    let mut args = [op.number().into(), at, 0, 0, 0];
    loop {
        match hypercall(machine, &current, number::EVENT_CHANNEL_OP, args) {
            Outcome::Done(result) => return result,
            Outcome::Restart(left) => args = left,
        }
    }
}

/// Another domain sends while `publish` makes what the queues need there; afterwards an event that is sent comes, and comes once.
fn published_while_others_send(before: fn(Guest<'_>), publish: fn(&Machine<FakeHardware>)) {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    for _ in 0..60 {
        before(one);
        let there = one.unbound(2);
        let port = two.bind(1, there);
        let machine = &world.machine;
        std::thread::scope(|threads| {
            threads.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(racing(machine, 2, 0, EventOp::Send, &PortArg { port }), 0);
                }
            });
            threads.spawn(move || publish(machine));
        });
        assert_eq!(two.send(port), 0);
        assert_eq!(Consumer::new(one, 0).take(), [there.0]);
        assert_eq!(load(one, there) & PENDING, 0);
        assert_eq!((reset(one), two.close(port)), (0, 0));
        one.set_info(0, &[0; 16]);
        for page in [CONTROL, ARRAY] {
            one.write(page, &[0; 4096]);
        }
    }
}

fn publish_control(machine: &Machine<FakeHardware>) {
    let control =
        InitControl { control_gfn: CONTROL >> 12, offset: OFFSETS[0] as u32, vcpu: 0, ..Default::default() };
    assert_eq!(racing(machine, 1, 0, EventOp::InitControl, &control), 0);
}

fn publish_array(machine: &Machine<FakeHardware>) {
    assert_eq!(racing(machine, 1, 0, EventOp::ExpandArray, &ExpandArray { array_gfn: ARRAY >> 12 }), 0);
}

#[test]
fn xsa_358_a_control_block_that_is_registered_while_others_send_loses_nothing_that_comes_after() {
    published_while_others_send(
        |_| {},
        |machine| {
            publish_control(machine);
            publish_array(machine);
        },
    );
}

#[test]
fn xsa_359_an_array_that_grows_while_others_send_has_each_event_once() {
    published_while_others_send(
        |one| assert_eq!(init(one, 0, CONTROL >> 12, OFFSETS[0]).0, 0),
        publish_array,
    );
}

#[test]
fn xsa_505_arrays_grow_while_everything_is_reset_and_no_page_is_held_afterwards() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let machine = &world.machine;
    std::thread::scope(|threads| {
        for vcpu in 0..2_u32 {
            threads.spawn(move || {
                for round in 0..400_u32 {
                    let control_gfn = (CONTROL >> 12) + u64::from(round % 2);
                    let control = InitControl { control_gfn, offset: 8, vcpu, ..Default::default() };
                    racing(machine, 1, vcpu, EventOp::InitControl, &control);
                    racing(
                        machine,
                        1,
                        vcpu,
                        EventOp::ExpandArray,
                        &ExpandArray { array_gfn: control_gfn ^ 2 },
                    );
                    let alloc = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(2), port: Port(0) };
                    racing(machine, 1, vcpu, EventOp::AllocUnbound, &alloc);
                    if round % 3 == vcpu {
                        racing(machine, 1, vcpu, EventOp::Reset, &Reset { dom: DomId::SELF });
                    }
                }
            });
        }
        threads.spawn(move || {
            for round in 0..1200_u32 {
                let remote_port = Port(1 + round % 3);
                let bind = BindInterdomain { remote_dom: DomId(1), remote_port, ..Default::default() };
                racing(machine, 2, 0, EventOp::BindInterdomain, &bind);
                for port in (1..4).map(Port) {
                    racing(machine, 2, 0, EventOp::Send, &PortArg { port });
                }
                racing(machine, 2, 0, EventOp::Close, &PortArg { port: Port(1 + round % 2) });
            }
        });
    });
    assert_eq!((reset(one), reset(two)), (0, 0));
    check_channels(machine).unwrap();
    let pages = (0..4_u64).map(|page| one.count(CONTROL + page * 0x1000));
    assert_eq!(pages.sum::<u32>(), 0, "a page is held by nobody");
    assert_eq!(world.machine.frames.table.total(DomId(1), Role::DomainTable), 1);
    world.check();
}
