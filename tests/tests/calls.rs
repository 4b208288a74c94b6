//! The smaller calls: versions, parameters, vCPU areas, scheduling, console, multicalls, and what is not offered.
#![allow(clippy::unwrap_used, reason = "tests")]

use core::sync::atomic::Ordering;

use hypervisor::console::{self, BURST, LINE_LENGTH};
use hypervisor::domain::Life;
use hypervisor::fake::{COUNTER_FREQUENCY, Op, RAM};
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::Outcome;
use hypervisor::log::Event;
use hypervisor::vcpu::{NOT_POLLING, POLLING_MANY, Run};
use hypervisor::vgic::PrivateIntid;
use pavo_tests::{ARG, Guest, NOWHERE, SELECTOR, guest, number, two};
use pv_abi::event::{BindIpi, EventOp};
use pv_abi::hvm::HvmParamArg;
use pv_abi::multicall::MulticallEntry;
use pv_abi::sched::{Poll, RemoteShutdown, Shutdown, ShutdownReason};
use pv_abi::shared::VcpuInfo;
use pv_abi::vcpu::RegisterVcpuInfo;
use pv_abi::version::{CompileInfo, FeatureInfo};
use pv_abi::{DomId, GuestHandle, Port};
use zerocopy::IntoBytes;

const EPERM: i64 = -1;
const ENOENT: i64 = -2;
const ESRCH: i64 = -3;
const ENXIO: i64 = -6;
const E2BIG: i64 = -7;
const EACCES: i64 = -13;
const EFAULT: i64 = -14;
const EBUSY: i64 = -16;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;

fn call(guest: Guest<'_>, number: u64, a0: u64, a1: u64) -> i64 {
    guest.call(number, [a0, a1, 0, 0, 0])
}

// --- xen_version ---

#[test]
fn the_version_is_four_twenty() {
    let world = two();
    assert_eq!(call(guest(&world, 1), number::XEN_VERSION, 0, 0), 0x4_0014);
}

#[test]
fn what_a_guest_learns_of_the_hypervisor_is_what_xen_tells_a_domu() {
    let world = two();
    let one = guest(&world, 1);
    let tell = |cmd| call(one, number::XEN_VERSION, cmd, ARG);
    assert_eq!(tell(6), 0);
    assert_eq!(one.read::<FeatureInfo>(ARG), FeatureInfo { submap_idx: 0, submap: 0x56005 });
    one.write(ARG, &[1]);
    assert_eq!(tell(6), EINVAL);
    assert_eq!(tell(3), 0);
    let capabilities = one.read::<[u8; 1024]>(ARG);
    assert!(
        capabilities.starts_with(b"xen-3.0-aarch64 \0") && capabilities[17..].iter().all(|byte| *byte == 0)
    );
    assert_eq!(tell(5), 0);
    assert_eq!(one.read::<u64>(ARG), 0);
    assert_eq!((tell(7), call(one, number::XEN_VERSION, 7, 0)), (EINVAL, 4096));
    one.write(ARG, &[7; 32]);
    assert_eq!(tell(8), 0);
    assert_eq!(one.read::<[u8; 17]>(ARG), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    one.write(ARG, &[7; 32]);
    assert_eq!(tell(9), 0);
    assert_eq!(one.read::<[u8; 10]>(ARG), *b"<denied>\0\x07");
    assert_eq!(tell(10), EPERM);
    assert_eq!((tell(1), tell(4)), (0, 0));
    assert_eq!(one.read::<[u8; 64]>(ARG)[63], 0);
    assert_eq!(tell(2), 0);
    assert!(one.read::<CompileInfo>(ARG).compiler.contains(&0));
    assert_eq!((tell(40), tell(u64::MAX)), (ENOSYS, ENOSYS));
    for cmd in [1, 2, 3, 4, 5, 6, 8, 9] {
        assert_eq!(call(one, number::XEN_VERSION, cmd, NOWHERE), EFAULT);
    }
}

#[test]
fn structures_may_cross_a_page() {
    let world = two();
    let one = guest(&world, 1);
    let at = ARG + 4096 - 500;
    assert_eq!(call(one, number::XEN_VERSION, 3, at), 0);
    assert_eq!(one.read::<[u8; 16]>(at), *b"xen-3.0-aarch64 ");
    assert_eq!(one.read::<[u8; 524]>(ARG + 4096), [0; 524]);
    // Into a page that is not there.
    let end = RAM + hypervisor::fake::MEMORY_KIB * 1024;
    assert_eq!(call(one, number::XEN_VERSION, 3, end - 500), EFAULT);
    assert_eq!(call(one, number::XEN_VERSION, 3, u64::MAX - 100), EFAULT);
}

// --- hvm_op ---

#[test]
fn parameters_are_read_by_their_domain_and_set_by_nobody() {
    let world = two();
    let one = guest(&world, 1);
    let op =
        |cmd, domid, index| one.with(number::HVM_OP, cmd, HvmParamArg { domid, pad: 0, index, value: 5 });
    for index in [0, 1, 2, 17, 18] {
        assert_eq!((op(1, DomId::SELF, index).0, op(1, DomId::SELF, index).1.value), (0, 0));
        assert_eq!(op(0, DomId::SELF, index).0, EPERM);
    }
    for index in [3, 16, 19, 38, 39, u32::MAX] {
        assert_eq!((op(1, DomId::SELF, index).0, op(0, DomId::SELF, index).0), (EINVAL, EINVAL));
    }
    assert_eq!((op(1, DomId(2), 1).0, op(1, DomId(3), 1).0), (EPERM, ESRCH));
    assert_eq!(op(2, DomId::SELF, 1).0, ENOSYS);
    assert_eq!(call(one, number::HVM_OP, 1, NOWHERE), EFAULT);
    world.domain(1).state.lock().params.console_pfn = 0x39000;
    assert_eq!(op(1, DomId(1), 17).1.value, 0x39000);
}

// --- vcpu_op, vm_assist ---

fn vcpu_op(guest: Guest<'_>, cmd: u64, vcpu: u64, arg: &[u8]) -> i64 {
    guest.write(ARG, arg);
    guest.call(number::VCPU_OP, [cmd, vcpu, ARG, 0, 0])
}

#[test]
fn a_vcpu_registers_its_info_once() {
    let world = two();
    let one = guest(&world, 1);
    let register =
        |vcpu, gfn, offset| vcpu_op(one, 10, vcpu, RegisterVcpuInfo { gfn, offset, rsvd: 0 }.as_bytes());
    let page = RAM + 0x5_0000;
    let gfn = page >> 12;
    assert_eq!(register(2, gfn, 0), ENOENT);
    assert_eq!(register(0, gfn, 4096), EINVAL);
    assert_eq!(register(0, gfn, 4096 - 40), ENXIO, "it would cross the page");
    assert_eq!(register(0, gfn, 4), ENXIO, "exclusives need alignment (XSA-327)");
    assert_eq!(register(0, 0x9_0000, 0), EINVAL, "no RAM");
    assert_eq!(register(0, u64::MAX, 0), EINVAL);
    assert_eq!(one.count(page), 0);

    one.set_info(2, &[0xAB]);
    world.machine.hw.take_ops();
    assert_eq!(register(0, gfn, 4096 - 48), 0);
    let info: VcpuInfo = one.read(page + 4096 - 48);
    assert_eq!((info.evtchn_upcall_pending, info.evtchn_pending_sel), (1, u64::MAX), "look at everything");
    assert_eq!(info.pad[0], 0xAB, "what was there moved along");
    assert!(world.machine.hw.take_ops().contains(&Op::Raise(PrivateIntid::EVENT_UPCALL)));
    assert_eq!(one.count(page), 1);
    assert_eq!(register(0, gfn, 0), EBUSY);

    // The other vCPU in the same page; its page held something else.
    one.write(page, &[0xFF; 48]);
    assert_eq!(register(1, gfn, 0), 0);
    let info: VcpuInfo = one.read(page);
    assert_eq!((info.evtchn_upcall_mask, info.evtchn_pending_sel, info.time.version), (0, u64::MAX, 0));
    assert_eq!(one.count(page), 2);

    // Events go there from now on.
    one.write(page, &[0; 48]);
    let (_, ipi) = one.event(EventOp::BindIpi, BindIpi { vcpu: 1, port: Port(0) });
    one.send(ipi.port);
    assert_eq!(one.read::<u64>(page + SELECTOR as u64), 1);
}

#[test]
fn an_event_for_a_vcpu_without_an_info_comes_when_it_registers_one() {
    let world = two();
    let one = guest(&world, 1);
    let (_, ipi) = one.event(EventOp::BindIpi, BindIpi { vcpu: 1, port: Port(0) });
    assert_eq!(one.send(ipi.port), 0);
    assert!(one.is_pending(ipi.port));
    let mailbox = world.domain(1).gic.get(1).unwrap();
    assert!(!mailbox.has_mail());
    let arg = RegisterVcpuInfo { gfn: (RAM + 0x5_0000) >> 12, offset: 0, rsvd: 0 };
    assert_eq!(vcpu_op(one, 10, 1, arg.as_bytes()), 0);
    assert!(mailbox.has_mail(), "its interrupt is raised");
}

#[test]
fn other_vcpu_operations_do_not_exist_on_arm() {
    let world = two();
    let one = guest(&world, 1);
    for cmd in [0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 14, 99] {
        assert_eq!(vcpu_op(one, cmd, 0, &[]), EINVAL);
        assert_eq!(vcpu_op(one, cmd, 7, &[]), ENOENT, "the vCPU is looked at first");
    }
    assert_eq!(one.call(number::VCPU_OP, [10, 0, NOWHERE, 0, 0]), EFAULT);
    let assist = |cmd, what| call(one, number::VM_ASSIST, cmd, what);
    assert_eq!((assist(0, 5), assist(1, 5)), (0, 0));
    assert_eq!((assist(0, 4), assist(0, 99), assist(9, 4)), (EINVAL, EINVAL, EINVAL));
    assert_eq!(assist(2, 5), ENOSYS);
}

// --- sched_op ---

fn sched(guest: Guest<'_>, cmd: u64, arg: &[u8]) -> i64 {
    guest.write(ARG, arg);
    call(guest, number::SCHED_OP, cmd, ARG)
}

#[test]
fn yielding_asks_for_another_turn() {
    let world = two();
    assert_eq!(call(guest(&world, 1), number::SCHED_OP, 0, 0), 0);
    assert!(world.take_reschedule());
}

#[test]
fn blocking_waits_unless_an_upcall_is_pending() {
    let world = two();
    let one = guest(&world, 1);
    let vcpu = world.domain(1).vcpu(0).unwrap();
    vcpu.run.set(Run::Running);
    assert_eq!(call(one, number::SCHED_OP, 1, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Blocked);
    assert!(world.take_reschedule());
    // Another domain's event wakes it.
    let two = guest(&world, 2);
    let there = one.unbound(2);
    let here = two.bind(1, there);
    two.send(here);
    assert_eq!(vcpu.run.get(), Run::Runnable);

    let _ = world.pick(CpuId(0));
    assert_eq!(call(one, number::SCHED_OP, 1, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Runnable, "the upcall is still pending");
}

#[test]
fn a_domain_shuts_down_once_and_for_the_reason_it_gave_first() {
    for (reason, ends) in [
        (0, ShutdownReason::Poweroff),
        (1, ShutdownReason::Reboot),
        (2, ShutdownReason::Suspend),
        (3, ShutdownReason::Crash),
        (4, ShutdownReason::Watchdog),
        (5, ShutdownReason::SoftReset),
        (200, ShutdownReason::Crash),
        (0x100, ShutdownReason::Poweroff),
    ] {
        let world = two();
        let one = guest(&world, 1);
        world.domain(1).vcpu(1).unwrap().run.set(Run::Running);
        one.write(RAM + 0x7_0000, b"last words");
        one.call(number::CONSOLE_IO, [0, 10, RAM + 0x7_0000, 0, 0]);
        world.machine.hw.take_ops();
        assert_eq!(sched(one, 2, Shutdown { reason }.as_bytes()), 0);
        assert_eq!(world.domain(1).life.get(), Life::Shutdown(ends));
        assert_eq!(world.machine.hw.take_events(), [Event::Ended(DomId(1), Life::Shutdown(ends))]);
        assert_eq!(world.machine.hw.take_console(), b"(d1) last words\n");
        assert!(world.machine.hw.take_ops().contains(&Op::Kick(CpuId(1))), "its other vCPU runs there");
        assert!(world.take_reschedule());
        assert_eq!(sched(one, 2, Shutdown { reason: 3 }.as_bytes()), 0);
        assert_eq!(world.domain(1).life.get(), Life::Shutdown(ends));
        assert!(world.machine.hw.take_events().is_empty());
        assert_eq!(world.domain(2).life.get(), Life::Running);
    }
    let world = two();
    let one = guest(&world, 1);
    assert_eq!(sched(one, 5, Shutdown { reason: 3 }.as_bytes()), 0);
    assert_eq!(world.domain(1).life.get(), Life::Running);
    assert_eq!(sched(one, 2, Shutdown { reason: 0 }.as_bytes()), 0);
    assert_eq!(world.domain(1).life.get(), Life::Shutdown(ShutdownReason::Crash), "it said so before");
}

#[test]
fn polling_returns_at_once_for_a_pending_port_and_waits_for_others() {
    let world = two();
    let one = guest(&world, 1);
    let vcpu = world.domain(1).vcpu(0).unwrap();
    vcpu.run.set(Run::Running);
    let ports: Vec<Port> =
        (0..2).map(|_| one.event(EventOp::BindIpi, BindIpi { vcpu: 0, port: Port(0) }).1.port).collect();
    one.write(ARG + 64, ports.as_slice().as_bytes());
    let poll = |nr_ports, timeout| {
        sched(one, 3, Poll { ports: GuestHandle(ARG + 64), nr_ports, pad: 0, timeout }.as_bytes())
    };
    assert_eq!(poll(129, 0), EINVAL);
    assert_eq!(poll(3, 0), EINVAL, "port 0 is nobody's");
    assert_eq!(vcpu.run.get(), Run::Running);

    one.send(ports[1]);
    assert_eq!(poll(2, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Running, "pending already");
    one.take_events();

    assert_eq!(poll(1, 0), 0);
    assert_eq!((vcpu.run.get(), vcpu.poll.load(Ordering::Relaxed)), (Run::Blocked, ports[0].0));
    assert_eq!(vcpu.deadline.load(Ordering::Relaxed), u64::MAX);
    vcpu.run.set(Run::Running);
    assert_eq!(poll(2, 1_000_000_000), 0);
    assert_eq!((vcpu.run.get(), vcpu.poll.load(Ordering::Relaxed)), (Run::Blocked, POLLING_MANY));
    assert_eq!(vcpu.deadline.load(Ordering::Relaxed), COUNTER_FREQUENCY);

    // A masked event of the other vCPU's wakes it through its poll.
    one.mask(ports[1]);
    Guest { vcpu: 1, ..one }.send(ports[1]);
    assert_eq!((vcpu.run.get(), vcpu.poll.load(Ordering::Relaxed)), (Run::Runnable, NOT_POLLING));

    // An upcall that is pending is no port that is polled.
    let _ = world.pick(CpuId(0));
    one.take_events();
    one.set_info(0, &[1]);
    assert_eq!(poll(1, 0), 0);
    assert_eq!(vcpu.run.get(), Run::Blocked);

    vcpu.run.set(Run::Running);
    one.take_events();
    world.machine.hw.advance(2 * COUNTER_FREQUENCY);
    assert_eq!(poll(0, 1_000_000_000), 0);
    assert_eq!(vcpu.run.get(), Run::Runnable, "the time is over already");
    let list = Poll { ports: GuestHandle(NOWHERE), nr_ports: 1, pad: 0, timeout: 0 };
    assert_eq!(sched(one, 3, list.as_bytes()), EFAULT);
}

#[test]
fn what_needs_a_toolstack_is_refused() {
    let world = two();
    let one = guest(&world, 1);
    let remote =
        |domain| sched(one, 4, RemoteShutdown { domain: DomId(domain), pad: 0, reason: 0 }.as_bytes());
    assert_eq!((remote(1), remote(2), remote(3), remote(0x7FF0)), (EPERM, EPERM, ESRCH, ESRCH));
    assert_eq!((sched(one, 7, &[0; 8]), sched(one, 8, &[0; 8])), (EPERM, ENOSYS));
    for cmd in 2..7 {
        assert_eq!(call(one, number::SCHED_OP, cmd, NOWHERE), EFAULT);
    }
    assert_eq!(world.domain(2).life.get(), Life::Running);
}

// --- console_io ---

#[test]
fn a_guest_writes_lines_under_its_name() {
    let world = two();
    let (one, two) = (guest(&world, 1), guest(&world, 2));
    let say = |guest: Guest<'_>, text: &[u8]| {
        guest.write(ARG, text);
        assert_eq!(guest.call(number::CONSOLE_IO, [0, text.len() as u64, ARG, 0, 0]), 0);
        world.machine.hw.take_console()
    };
    assert_eq!(say(one, b"hello\n"), b"(d1) hello\n");
    assert_eq!(say(one, b"half a "), b"");
    assert_eq!(say(two, b"other\n"), b"(d2) other\n");
    assert_eq!(say(one, b"line\nnext\n\n"), b"(d1) half a line\n(d1) next\n(d1) \n");
    assert_eq!(say(one, b"\x1b[31m\tr\xC3\xA9d\x07\r\x7f\n"), "(d1) [31m\tr\u{e9}d\n".as_bytes());
    let long = [b'x'; 300];
    let out = say(one, &long);
    assert_eq!(out.len(), LINE_LENGTH + 6, "what is full goes out");
    assert_eq!(say(one, b"\n").len(), 300 - LINE_LENGTH + 6);
}

#[test]
fn no_terminal_is_told_to_go_where_others_lines_are() {
    let world = two();
    let one = guest(&world, 1);
    // CSI in UTF-8 and alone, longer forms of it, and what breaks or orders lines: up a line, "erase", and another's name.
    for sequence in ["\u{9B}", "\u{85}", "\u{2028}", "\u{202E}", "\u{2066}"]
        .map(str::as_bytes)
        .into_iter()
        .chain([b"\x9B".as_slice(), b"\xE0\x82\x9B", b"\xC2\xC2\x9B", b"\x1B\x9B"])
    {
        // At the start of a line, in it, and where it is full; each byte by a call of its own.
        for before in [0, 7, LINE_LENGTH - 2, LINE_LENGTH - 1, LINE_LENGTH, LINE_LENGTH + 1] {
            for part in
                [vec![b'y'; before], sequence.to_vec(), b"1A(d2) \xC3\xA9\n".to_vec()].concat().chunks(1)
            {
                one.write(ARG, part);
                one.call(number::CONSOLE_IO, [0, 1, ARG, 0, 0]);
            }
            let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
            let lines: Vec<_> = out.lines().collect();
            assert!(lines.iter().all(|line| line.starts_with("(d1) ")), "{sequence:x?} {lines:?}");
            let said: String = lines.iter().filter_map(|line| line.strip_prefix("(d1) ")).collect();
            assert_eq!(said, "y".repeat(before) + "1A(d2) \u{e9}", "{sequence:x?}");
        }
    }
}

#[test]
fn a_character_is_not_torn_by_the_end_of_a_line_or_of_a_life() {
    let world = two();
    let one = guest(&world, 1);
    for before in LINE_LENGTH - 3..LINE_LENGTH {
        let text = "x".repeat(before) + "\u{20AC}\n";
        one.write(ARG, text.as_bytes());
        assert_eq!(one.call(number::CONSOLE_IO, [0, text.len() as u64, ARG, 0, 0]), 0);
        let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
        assert_eq!(out.lines().count(), if before == LINE_LENGTH - 3 { 1 } else { 2 });
        assert_eq!(out.replace("(d1) ", "").replace('\n', ""), text.trim_end());
    }
    // What has begun, a character or a line that is over the rate, is not gone on with by the next life.
    one.write(ARG, b"end\xE2\x82");
    assert_eq!(one.call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]), 0);
    console::flush(&world.machine.hw, world.domain(1));
    assert_eq!(world.machine.hw.take_console(), b"(d1) end\n");
    one.write(ARG, b"\xACnew\n");
    assert_eq!(one.call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]), 0);
    assert_eq!(world.machine.hw.take_console(), b"(d1) new\n");
    let more = [b'x'; 2048];
    one.write(ARG, &more);
    for _ in 0..=BURST / 2048 {
        assert_eq!(one.call(number::CONSOLE_IO, [0, 2048, ARG, 0, 0]), 0);
    }
    world.machine.hw.take_console();
    console::flush(&world.machine.hw, world.domain(1));
    world.machine.hw.take_console();
    world.machine.hw.advance(COUNTER_FREQUENCY);
    one.write(ARG, b"hello\n");
    assert_eq!(one.call(number::CONSOLE_IO, [0, 6, ARG, 0, 0]), 0);
    assert_eq!(world.machine.hw.take_console(), b"(d1) hello\n");
}

#[test]
fn the_mark_of_the_log_cannot_be_written() {
    let world = two();
    let one = guest(&world, 1);
    let mut texts = vec![b"\xC2\xA7x\n".to_vec(), b"\xC2\xC2\xA7\xA7\n".to_vec(), b"\xC2\x01\xA7\n".to_vec()];
    // Across a full line, and across two calls.
    for at in LINE_LENGTH - 3..LINE_LENGTH + 3 {
        texts.push([vec![b'y'; at], b"\xC2\xA7\n".to_vec()].concat());
    }
    for text in texts {
        let (head, tail) = text.split_at(text.len() - 2);
        for part in [head, tail] {
            one.write(ARG, part);
            one.call(number::CONSOLE_IO, [0, part.len() as u64, ARG, 0, 0]);
        }
        let out = world.machine.hw.take_console();
        assert!(!out.windows(2).any(|pair| pair == [0xC2, 0xA7]), "{out:x?}");
    }
}

#[test]
fn a_flood_is_cut_and_counted() {
    let world = two();
    let one = guest(&world, 1);
    one.write(ARG, &[b'z'; 4000]);
    let mut said = 0;
    while said < 2 * BURST {
        assert_eq!(one.call(number::CONSOLE_IO, [0, 4000, ARG, 0, 0]), 0);
        said += 4000;
    }
    let out = world.machine.hw.take_console();
    assert!(u64::try_from(out.len()).unwrap() < BURST + BURST / 16);
    world.machine.hw.advance(COUNTER_FREQUENCY);
    one.write(ARG, b"\n\n");
    one.call(number::CONSOLE_IO, [0, 2, ARG, 0, 0]);
    let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
    assert!(out.starts_with("(d1) [") && out.contains("bytes dropped]\n(d1) "), "{out}");
    guest(&world, 2).write(ARG, b"fine\n");
    guest(&world, 2).call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]);
    assert_eq!(world.machine.hw.take_console(), b"(d2) fine\n", "others are not cut");
}

#[test]
fn of_a_flood_every_line_comes_whole_or_is_counted_whole() {
    // Neither divides what is copied or admitted at once.
    for length in [2, 37, 100, LINE_LENGTH] {
        let world = two();
        let one = guest(&world, 1);
        let line = [vec![b'z'; length - 1], vec![b'\n']].concat();
        let (mut said, mut out) = (0, Vec::new());
        one.write(ARG, &line.repeat(20));
        while said < BURST + BURST / 4 {
            one.call(number::CONSOLE_IO, [0, 20 * length as u64, ARG, 0, 0]);
            said += 20 * length as u64;
            // Little by little there is room for a part of a line.
            world.machine.hw.advance(COUNTER_FREQUENCY / 100_000);
            out.extend(world.machine.hw.take_console());
        }
        world.machine.hw.advance(COUNTER_FREQUENCY);
        one.write(ARG, b"\nend\n");
        one.call(number::CONSOLE_IO, [0, 5, ARG, 0, 0]);
        out.extend(world.machine.hw.take_console());
        let out = String::from_utf8(out).unwrap();
        let whole = format!("(d1) {}", "z".repeat(length - 1));
        let (mut came, mut dropped) = (0, 0);
        for line in out.lines() {
            let note = line.strip_prefix("(d1) [").and_then(|rest| rest.strip_suffix(" bytes dropped]"));
            match note {
                Some(bytes) => dropped += bytes.parse::<u64>().unwrap(),
                None if line == whole => came += 1,
                None => assert!(["(d1) ", "(d1) end"].contains(&line), "{line}"),
            }
        }
        assert!(dropped != 0 && came != 0);
        // The newline before `end` is of a line of its own, or ends what was dropped.
        let rest = (came * length as u64 + dropped).wrapping_sub(said);
        assert!(rest <= 1, "{length}: {came} lines came, {dropped} bytes were dropped, {said} said");
    }
}

#[test]
fn what_the_console_has_no_room_for_is_written_again_and_nothing_is_lost() {
    let world = two();
    let one = guest(&world, 1);
    world.machine.hw.limit_console(150);
    let lines =
        |name: &str| (0..200).fold(String::new(), |text, number| text + &format!("{name}line {number}\n"));
    let text = lines("");
    let mut args = [0, text.len() as u64, ARG, 0, 0];
    one.write(ARG, text.as_bytes());
    let mut shown = Vec::new();
    for _ in 0..text.len() {
        let outcome = one.once(number::CONSOLE_IO, args);
        shown.extend(world.machine.hw.take_console());
        match outcome {
            Outcome::Done(result) => {
                assert_eq!(result, 0);
                break;
            }
            Outcome::Restart(rest) => args = rest,
        }
    }
    assert_eq!(String::from_utf8(shown).unwrap(), lines("(d1) "));
}

#[test]
fn a_console_that_never_has_room_costs_a_line_seconds_and_the_line_is_counted() {
    let world = two();
    let one = guest(&world, 1);
    world.machine.hw.limit_console(0);
    one.write(ARG, b"lost\nsaid\n");
    let lost = [0, 5, ARG, 0, 0];
    let rest = [0, 1, ARG + 4, 0, 0];
    assert_eq!(one.once(number::CONSOLE_IO, lost), Outcome::Restart(rest));
    for _ in 0..3 {
        assert_eq!(one.once(number::CONSOLE_IO, rest), Outcome::Restart(rest));
        world.machine.hw.advance(COUNTER_FREQUENCY / 4);
    }
    world.machine.hw.advance(2 * COUNTER_FREQUENCY);
    assert_eq!(one.once(number::CONSOLE_IO, rest), Outcome::Done(0));
    world.machine.hw.limit_console(1000);
    assert_eq!(one.call(number::CONSOLE_IO, [0, 5, ARG + 5, 0, 0]), 0);
    let out = String::from_utf8(world.machine.hw.take_console()).unwrap();
    assert_eq!(out, "(d1) [5 bytes dropped]\n(d1) said\n");
}

#[test]
fn there_is_nothing_to_read_at_the_console() {
    let world = two();
    let one = guest(&world, 1);
    for (count, result) in
        [(0, 0), (10, 0), ((1 << 31) - 1, 0), (1 << 31, E2BIG), ((1 << 32) - 1, E2BIG), (1 << 32, 0)]
    {
        assert_eq!(one.call(number::CONSOLE_IO, [1, count, NOWHERE, 0, 0]), result, "{count}");
    }
    assert_eq!(one.call(number::CONSOLE_IO, [2, 10, ARG, 0, 0]), ENOSYS);
    assert_eq!(one.call(number::CONSOLE_IO, [0, 1, NOWHERE, 0, 0]), EFAULT);
    assert_eq!(one.call(number::CONSOLE_IO, [0, 0, NOWHERE, 0, 0]), 0);
    assert_eq!(one.call(number::CONSOLE_IO, [0, u64::from(u32::MAX), u64::MAX, 0, 0]), EFAULT);
}

// --- multicall ---

#[test]
fn a_multicall_gives_each_call_its_result() {
    let world = two();
    let one = guest(&world, 1);
    let entry = |op, a0, a1| MulticallEntry { op, result: 7, args: [a0, a1, 0, 0, 0, 0] };
    let entries = [
        entry(number::XEN_VERSION, 0, 0),
        entry(999, 0, 0),
        entry(number::MULTICALL, ARG, 1),
        entry(number::XEN_VERSION, 7, 0),
    ];
    one.write(ARG, entries.as_bytes());
    assert_eq!(call(one, number::MULTICALL, ARG, 4), 0);
    let results: Vec<i64> = (0..4).map(|n| one.read::<MulticallEntry>(ARG + n * 64).result).collect();
    assert_eq!(results, [0x4_0014, ENOSYS, EINVAL, 4096]);
    assert_eq!(call(one, number::MULTICALL, NOWHERE, 0), 0);
    assert_eq!(call(one, number::MULTICALL, NOWHERE, 1), EFAULT);
    assert_eq!(call(one, number::MULTICALL, u64::MAX - 64, 2), EFAULT);
}

#[test]
fn a_multicall_restarts_between_calls_and_inside_one() {
    let world = two();
    let one = guest(&world, 1);
    for n in 0..20 {
        let entry = MulticallEntry { op: number::XEN_VERSION, result: 7, args: [0; 6] };
        one.write(ARG + n * 64, entry.as_bytes());
    }
    let outcome = one.once(number::MULTICALL, [ARG, 20, 3, 4, 5]);
    assert_eq!(outcome, Outcome::Restart([ARG + 8 * 64, 12, 3, 4, 5]));
    assert_eq!(one.call(number::MULTICALL, [ARG + 8 * 64, 12, 0, 0, 0]), 0);
    assert!((0..20).all(|n| one.read::<MulticallEntry>(ARG + n * 64).result == 0x4_0014));

    // A batch of 20 unmaps stops after 16: its entry then describes the four that are left.
    let batch = RAM + 0x8_0000;
    for n in 0..20 {
        one.write(batch + n * 24, &[0; 24]);
    }
    let entry = MulticallEntry { op: number::GRANT_TABLE_OP, result: 7, args: [1, batch, 20, 0, 0, 0] };
    one.write(ARG, entry.as_bytes());
    assert_eq!(one.once(number::MULTICALL, [ARG, 1, 0, 0, 0]), Outcome::Restart([ARG, 1, 0, 0, 0]));
    assert_eq!(one.read::<MulticallEntry>(ARG).args, [1, batch + 16 * 24, 4, 0, 0, 0]);
    assert_eq!(one.call(number::MULTICALL, [ARG, 1, 0, 0, 0]), 0);
    assert_eq!(one.read::<MulticallEntry>(ARG).result, 0);
}

#[test]
fn a_multicall_stops_where_the_cpu_was_given_away() {
    let world = two();
    let one = guest(&world, 1);
    let entries = [
        MulticallEntry { op: number::SCHED_OP, result: 7, args: [0; 6] },
        MulticallEntry { op: number::XEN_VERSION, result: 7, args: [0; 6] },
    ];
    one.write(ARG, entries.as_bytes());
    assert_eq!(one.once(number::MULTICALL, [ARG, 2, 0, 0, 0]), Outcome::Restart([ARG + 64, 1, 0, 0, 0]));
    assert_eq!((one.read::<MulticallEntry>(ARG).result, one.read::<MulticallEntry>(ARG + 64).result), (0, 7));
}

// --- what is not offered ---

#[test]
fn privileged_calls_look_at_the_interface_version_first() {
    let world = two();
    let one = guest(&world, 1);
    let op = |number, version: u32, cmd: u32, dom: u16| {
        one.write(ARG, &[0; 144]);
        one.write(ARG, &cmd.to_le_bytes());
        one.write(ARG + 4, &version.to_le_bytes());
        one.write(ARG + 8, &dom.to_le_bytes());
        call(one, number, ARG, 0)
    };
    for (number, version) in [(36, 0x17), (35, 0x15), (7, 0x0300_0001)] {
        assert_eq!(op(number, version + 1, 2, 1), EACCES);
        assert_eq!(op(number, version, 2, 1), EPERM);
        assert_eq!(call(one, number, NOWHERE, 0), EFAULT);
    }
    assert_eq!(op(36, 0x17, 2, 9), ESRCH);
    assert_eq!(op(36, 0x17, 1, 9), EPERM, "creating names no domain");
    assert_eq!(call(one, 42, 0, 0), EPERM);
}

#[test]
fn calls_that_do_not_exist_are_not_implemented() {
    let world = two();
    let one = guest(&world, 1);
    for number in
        [0, 1, 2, 6, 14, 15, 16, 19, 22, 26, 27, 28, 33, 38, 39, 40, 41, 48, 63, 1000, 1 << 32, u64::MAX]
    {
        assert_eq!(call(one, number, ARG, 0), ENOSYS, "{number}");
    }
}
