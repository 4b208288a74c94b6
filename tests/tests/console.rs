//! What is typed, and the PV console: a ring each way in a page that the guest may fill with anything.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::cell::Cell;

use hypervisor::console::keyboard::{KEYS, typed};
use hypervisor::domain::Life;
use hypervisor::fake::World;
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::Outcome;
use hypervisor::vpl011::Vpl011;
use pavo_tests::{ARG, Guest, guest, number, two};
use pv_abi::event::{BindVirq, EventOp, PortArg, Reset};
use pv_abi::hvm::HvmParamArg;
use pv_abi::sched::ShutdownReason;
use pv_abi::{DomId, Port};
use zerocopy::IntoBytes;

/// Offsets in the page, from `public/io/console.h`: two rings, then the four counts.
const INPUT: u64 = 0;
const OUTPUT: u64 = 1024;
const IN_CONS: u64 = 3072;
const IN_PROD: u64 = 3076;
const OUT_CONS: u64 = 3080;
const OUT_PROD: u64 = 3084;
/// `GUEST_MAGIC_BASE`.
const PAGE: u64 = 0x3900_0000;
const CTRL_A: &[u8] = &[1; 3];

fn typing(world: &World, keys: &[u8]) {
    typed(&world.machine, CpuId(0), &Cell::new(false), keys);
    world.check();
}

fn read(guest: Guest<'_>, count: u64) -> Vec<u8> {
    let length = guest.call(number::CONSOLE_IO, [1, count, ARG, 0, 0]);
    (0..u64::try_from(length).unwrap()).map(|at| guest.read::<u8>(ARG + at)).collect()
}

fn param(guest: Guest<'_>, index: u32) -> u64 {
    guest.with(number::HVM_OP, 1, HvmParamArg { domid: DomId::SELF, pad: 0, index, value: 0 }).1.value
}

fn word(guest: Guest<'_>, at: u64) -> u32 {
    guest.read(PAGE + at)
}

fn set(guest: Guest<'_>, at: u64, value: u32) {
    guest.write(PAGE + at, value.as_bytes());
}

fn port(guest: Guest<'_>) -> Port {
    Port(param(guest, 18) as u32)
}

/// Puts text into the ring from count `from` on, and tells the console; true when the call had to restart.
fn say(guest: Guest<'_>, from: u32, text: &[u8]) -> bool {
    for (offset, byte) in (0..).zip(text) {
        guest.write(PAGE + OUTPUT + u64::from(from.wrapping_add(offset) % 2048), &[*byte]);
    }
    set(guest, OUT_PROD, from.wrapping_add(text.len() as u32));
    guest.write(ARG, port(guest).as_bytes());
    let args = [EventOp::Send.number().into(), ARG, 0, 0, 0];
    let first = guest.once(number::EVENT_CHANNEL_OP, args);
    assert_eq!(guest.call(number::EVENT_CHANNEL_OP, args), 0);
    matches!(first, Outcome::Restart(_))
}

fn shown(world: &World) -> String {
    String::from_utf8(world.machine.hw.take_console()).unwrap()
}

#[test]
fn only_a_domain_that_was_given_one_has_a_pv_console() {
    let world = World::with_console(2);
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    assert_eq!((param(one, 17), param(one, 18)), (0x39000, 1));
    assert_eq!((param(two, 17), param(two, 18)), (0, 0));
    assert!(two.mapping(PAGE >> 12).is_none());
}

#[test]
fn text_in_the_ring_is_shown_and_the_guest_learns_of_the_room() {
    let world = World::with_console(2);
    let one = guest(&world, 1);
    assert!(!say(one, 0, b"hello\nwor"));
    assert_eq!(shown(&world), "(d1) hello\n");
    assert_eq!(word(one, OUT_CONS), 9);
    assert!(one.is_pending(port(one)));
    assert!(!say(one, 9, b"ld\n"));
    assert_eq!(shown(&world), "(d1) world\n");
    one.take_events();
    assert!(!say(one, 12, b""));
    assert!(!one.is_pending(port(one)), "nothing was moved");
}

#[test]
fn a_full_ring_is_taken_in_pieces_and_counts_wrap() {
    let world = World::with_console(1);
    let one = guest(&world, 1);
    let start = u32::MAX - 700;
    set(one, OUT_CONS, start);
    let text: Vec<u8> =
        (0..2048_u32).map(|n| if n % 64 == 63 { b'\n' } else { b'a' + (n / 64 % 26) as u8 }).collect();
    assert!(say(one, start, &text), "2048 bytes at once");
    assert_eq!(word(one, OUT_CONS), start.wrapping_add(2048));
    let lines = shown(&world);
    assert_eq!(lines.lines().count(), 32);
    assert!(lines.lines().enumerate().all(|(n, line)| {
        line == format!("(d1) {}", String::from((b'a' + (n % 26) as u8) as char).repeat(63))
    }));
}

#[test]
fn xsa_313_counts_that_no_ring_has_move_nothing() {
    let world = World::with_console(1);
    let one = guest(&world, 1);
    for (cons, prod) in [(0, 2049), (1, 0), (0, u32::MAX), (5, 4), (u32::MAX, 1 << 31)] {
        set(one, OUT_CONS, cons);
        set(one, OUT_PROD, prod);
        assert_eq!(one.send(port(one)), 0);
        assert_eq!((word(one, OUT_CONS), shown(&world)), (cons, String::new()), "{cons} {prod}");
    }
    typing(&world, b"x");
    for (cons, prod) in [(1, 0), (0, 1024), (0, 1025), (1 << 31, 0)] {
        set(one, IN_CONS, cons);
        set(one, IN_PROD, prod);
        typing(&world, b"y");
        assert_eq!(word(one, IN_PROD), prod, "{cons} {prod}");
    }
}

#[test]
fn keys_go_into_the_ring_with_an_event_and_wait_while_it_is_full() {
    let world = World::with_console(1);
    let one = guest(&world, 1);
    typing(&world, b"abc");
    assert_eq!((one.read::<[u8; 3]>(PAGE + INPUT), word(one, IN_PROD)), (*b"abc", 3));
    assert!(one.is_pending(port(one)));
    one.take_events();
    // The guest takes none: the ring says it is full but for two.
    set(one, IN_CONS, 3_u32.wrapping_sub(1022));
    typing(&world, b"defg");
    assert_eq!((one.read::<[u8; 3]>(PAGE + 3), word(one, IN_PROD)), (*b"de\0", 5));
    set(one, IN_CONS, 5);
    one.take_events();
    assert_eq!(one.send(port(one)), 0, "there is room again");
    assert_eq!((one.read::<[u8; 4]>(PAGE + 3), word(one, IN_PROD)), (*b"defg", 7));
    assert!(one.is_pending(port(one)));
}

#[test]
fn a_console_whose_port_was_closed_is_told_and_tells_nothing() {
    let world = World::with_console(2);
    let one = guest(&world, 1);
    let console = port(one);
    assert_eq!(one.close(console), 0);
    assert_eq!(one.send(console), -22);
    assert_eq!(one.unbound(2), console);
    typing(&world, b"a");
    assert!(!one.is_pending(console));
}

#[test]
fn three_times_ctrl_a_gives_the_keyboard_on_and_unread_keys_are_forgotten() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    typing(&world, b"ab");
    assert_eq!(
        (read(two, 10), read(one, 1), read(one, 10), read(one, 10)),
        (vec![], vec![b'a'], vec![b'b'], vec![])
    );
    typing(&world, b"secret");
    typing(&world, CTRL_A);
    typing(&world, b"\x01\x01c\x01d");
    assert_eq!((read(one, 10), read(two, 10)), (vec![], b"\x01\x01c\x01d".to_vec()));
    typing(&world, CTRL_A);
    typing(&world, b"e");
    assert_eq!((read(two, 10), read(one, 10)), (vec![], vec![b'e']), "round and round");
}

#[test]
fn the_keyboard_of_a_domain_that_has_ended_goes_on_without_its_keys() {
    let world = two();
    typing(&world, b"secret");
    assert!(world.domain(1).life.end(Life::Shutdown(ShutdownReason::Poweroff)));
    typing(&world, b"x");
    assert_eq!(read(guest(&world, 2), 10), b"x");
    assert!(world.domain(2).life.end(Life::Shutdown(ShutdownReason::Poweroff)));
    typing(&world, b"nobody");
}

#[test]
fn reading_ends_at_what_fits_and_a_bad_place_is_refused() {
    let world = two();
    let one = guest(&world, 1);
    typing(&world, &[b'k'; KEYS + 50]);
    assert_eq!(read(one, 0), []);
    assert_eq!(one.call(number::CONSOLE_IO, [1, 5, pavo_tests::NOWHERE, 0, 0]), -14);
    assert_eq!(read(one, 4096).len(), KEYS - 5, "the rest was lost");
}

#[test]
fn the_virtual_interrupt_of_the_console_tells_who_has_the_keyboard() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let bind = |guest: Guest<'_>| {
        guest.event(EventOp::BindVirq, BindVirq { virq: 2, vcpu: 0, port: Port(0) }).1.port
    };
    let (here, there) = (bind(one), bind(two));
    typing(&world, b"a");
    assert_eq!((one.is_pending(here), two.is_pending(there)), (true, false));
    assert_eq!(one.event(EventOp::Close, PortArg { port: here }).0, 0);
    typing(&world, CTRL_A);
    assert!(!two.is_pending(there), "no key came");
    typing(&world, b"a");
    assert!(two.is_pending(there));
}

#[test]
fn the_virtual_interrupt_of_the_console_comes_where_it_was_bound_last_and_nowhere_when_it_is_not() {
    let world = two();
    let one = guest(&world, 1);
    let bind = |virq| one.event(EventOp::BindVirq, BindVirq { virq, vcpu: 0, port: Port(0) }).1.port;
    let first = bind(2);
    assert_eq!(one.event(EventOp::Close, PortArg { port: first }).0, 0);
    // Its port is another's now.
    assert_eq!(bind(0), first);
    typing(&world, b"a");
    assert!(!one.is_pending(first));
    let second = bind(2);
    assert_ne!(second, first);
    typing(&world, b"a");
    assert_eq!((one.is_pending(first), one.is_pending(second)), (false, true));
    assert_eq!(one.event(EventOp::Reset, Reset { dom: DomId::SELF }).0, 0);
    typing(&world, b"a");
    let third = bind(2);
    assert_eq!((third, one.is_pending(third)), (first, false));
    typing(&world, b"a");
    assert!(one.is_pending(third));
}

#[test]
fn an_emulated_uart_receives_what_was_typed() {
    let world = two();
    let keys = &world.machine.keyboard;
    let mut uart = Vpl011::new();
    typing(&world, b"ab");
    uart.write(0x38, 1 << 4);
    uart.receives(true);
    let mut reads = |at| uart.read(at, keys, DomId(1)).unwrap();
    assert_eq!((reads(0x18), reads(0x40)), (0x80, 1 << 4));
    assert_eq!((reads(0x00), reads(0x18), reads(0x00)), (0x61, 0x80, 0x62));
    assert_eq!((reads(0x18), reads(0x40), reads(0x00)), (0x90, 0, 0));
}
