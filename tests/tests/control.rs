//! The control domain's calls: who may make them, what they tell and do. Numbers and layouts are those of Xen 4.20's `public/domctl.h` and
//! `public/sysctl.h`; the order of refusals is that of its `common/domctl.c` and `common/sysctl.c`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "panics are how tests fail")]

use hypervisor::domain::{Fault, Life, Stage};
use hypervisor::fake::{COUNTER_FREQUENCY, RAM, World};
use hypervisor::hardware::Hardware;
use hypervisor::hypercall::Outcome;
use hypervisor::pause::Hold;
use hypervisor::runstate::{leave, switched};
use hypervisor::sched;
use hypervisor::vcpu::Run;
use hypervisor::wallclock;
use pavo_tests::{ARG, Guest, NOWHERE, guest};

const SYSCTL: u64 = 35;
const DOMCTL: u64 = 36;
const EPERM: i64 = -1;
const ESRCH: i64 = -3;
const EACCES: i64 = -13;
const EFAULT: i64 = -14;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;
const EOVERFLOW: i64 = -75;
const DESTROY: u32 = 2;
const PAUSE: u32 = 3;
const UNPAUSE: u32 = 4;
const INFO: u32 = 5;
const LIST: u32 = 6;
const COUNTERS: u32 = 0x8000;
/// Where buffers are.
const BUFFER: u64 = ARG + 0x1000;

/// `struct xen_domctl`: 144 bytes, the union from byte 16.
fn put_domctl(caller: Guest<'_>, cmd: u32, version: u32, domain: u16) {
    let mut bytes = [0_u8; 144];
    bytes[..4].copy_from_slice(&cmd.to_le_bytes());
    bytes[4..8].copy_from_slice(&version.to_le_bytes());
    bytes[8..10].copy_from_slice(&domain.to_le_bytes());
    caller.write(ARG, &bytes);
}

fn domctl(caller: Guest<'_>, cmd: u32, domain: u16) -> i64 {
    put_domctl(caller, cmd, 0x17, domain);
    caller.call(DOMCTL, [ARG, 0, 0, 0, 0])
}

/// `struct xen_sysctl`: 136 bytes, the union from byte 8.
fn sysctl(caller: Guest<'_>, cmd: u32, version: u32, payload: &[u8]) -> i64 {
    let mut bytes = [0_u8; 136];
    bytes[..4].copy_from_slice(&cmd.to_le_bytes());
    bytes[4..8].copy_from_slice(&version.to_le_bytes());
    bytes[8..8 + payload.len()].copy_from_slice(payload);
    caller.write(ARG, &bytes);
    caller.call(SYSCTL, [ARG, 0, 0, 0, 0])
}

fn word(caller: Guest<'_>, at: u64) -> u64 {
    caller.read::<u64>(at)
}

fn half(caller: Guest<'_>, at: u64) -> u32 {
    caller.read::<u32>(at)
}

/// `flags` of what `getdomaininfo` tells.
fn flags(world: &World, id: u16) -> u32 {
    assert_eq!(domctl(guest(world, 0), INFO, id), 0);
    half(guest(world, 0), ARG + 16 + 4)
}

fn counters(world: &World, id: u16) -> [u64; 19] {
    let control = guest(world, 0);
    let mut payload = [0; 16];
    payload[..2].copy_from_slice(&id.to_le_bytes());
    payload[8..].copy_from_slice(&BUFFER.to_le_bytes());
    assert_eq!(sysctl(control, COUNTERS, 0x15, &payload), 0);
    core::array::from_fn(|index| word(control, BUFFER + index as u64 * 8))
}

#[test]
fn others_hear_what_xen_tells_them() {
    let world = World::with_control(2);
    let one = guest(&world, 1);
    for cmd in [DESTROY, PAUSE, UNPAUSE, INFO, 9, 16, 25, 0xFFFF] {
        assert_eq!(domctl(one, cmd, 2), EPERM, "{cmd}");
        assert_eq!(domctl(one, cmd, 1), EPERM, "itself, {cmd}");
        assert_eq!(domctl(one, cmd, 7), ESRCH, "no such domain, {cmd}");
        put_domctl(one, cmd, 0x16, 7);
        assert_eq!(one.call(DOMCTL, [ARG, 0, 0, 0, 0]), EACCES, "the version comes first, {cmd}");
    }
    assert_eq!(domctl(one, 1, 7), EPERM, "createdomain names none");
    assert_eq!(one.call(DOMCTL, [NOWHERE, 0, 0, 0, 0]), EFAULT);
    for cmd in [1, 2, LIST, 9, COUNTERS, 0xFFFF] {
        assert_eq!(sysctl(one, cmd, 0x15, &[]), EPERM, "{cmd}");
        assert_eq!(sysctl(one, cmd, 0x16, &[]), EACCES, "{cmd}");
    }
    assert_eq!(one.call(SYSCTL, [NOWHERE, 0, 0, 0, 0]), EFAULT);
    for id in [1, 2] {
        assert_eq!(world.domain(id).life.get(), Life::Running);
        assert!(!world.domain(id).pauses.any());
    }
}

#[test]
fn a_domain_is_told_of_as_xen_does() {
    let world = World::with_control(2);
    let control = guest(&world, 0);
    assert_eq!(domctl(control, INFO, 7), ESRCH);
    assert_eq!(domctl(control, INFO, 2), 0);
    let at = ARG + 16;
    assert_eq!(half(control, at) & 0xFFFF, 2);
    // Nothing is on: no flag but that of stage 2; the reason is that of a domain that has not shut down, all ones.
    assert_eq!(half(control, at + 4), 1 << 8 | 0xFFFF << 16);
    let pages = (4 << 10) / 4 + 128 / 4;
    assert_eq!((word(control, at + 8), word(control, at + 16)), (pages, pages));
    assert_eq!(word(control, at + 48), u64::MAX, "its shared info is mapped nowhere");
    assert_eq!((half(control, at + 64), half(control, at + 68)), (0, 1), "none on, the last one is 1");
    assert_eq!(half(control, at + 96) & 0xFF, 40, "bits of its addresses");

    assert!(sched::start(&world.machine, world.domain(2).vcpu(0).unwrap()));
    assert_eq!(flags(&world, 2) & 0xFFFF, 1 << 8);
    world.domain(2).vcpu(0).unwrap().run.set(Run::Running);
    assert_eq!(flags(&world, 2) & 0xFFFF, 1 << 8 | 1 << 5);
    world.domain(2).vcpu(0).unwrap().run.set(Run::Blocked);
    assert_eq!(flags(&world, 2) & 0xFFFF, 1 << 8 | 1 << 4);
}

/// `struct xen_domctl_getdomaininfo`: `tot_pages` at 8, `cpu_time` at 56, 120 bytes in all.
#[test]
fn state_memory_and_cpu_time_are_told_as_they_are() {
    const SECOND: u64 = COUNTER_FREQUENCY;
    let world = World::with_control(2);
    let (machine, two) = (&world.machine, world.domain(2));
    let run = |number: u32, seconds: u64| {
        let vcpu = two.vcpu(number).unwrap();
        assert!(sched::start(machine, vcpu));
        assert_eq!(world.pick(vcpu.home.get()).unwrap().index, vcpu.index);
        switched(machine, None, vcpu);
        machine.hw.advance(seconds * SECOND);
        vcpu
    };
    // 0: flags, pages, cpu time by `getdomaininfo`; 1: by the list.
    let told = || {
        let control = guest(&world, 0);
        assert_eq!(domctl(control, INFO, 2), 0);
        let at = ARG + 16;
        let one = (half(control, at + 4) & 0xFFFF, word(control, at + 8), word(control, at + 56));
        let mut payload = [0; 24];
        (payload[0], payload[4]) = (2, 1);
        payload[8..16].copy_from_slice(&BUFFER.to_le_bytes());
        assert_eq!(sysctl(control, LIST, 0x15, &payload), 0);
        let at = BUFFER;
        assert_eq!((half(control, at + 4) & 0xFFFF, word(control, at + 8), word(control, at + 56)), one);
        one
    };
    let (pages, running, blocked) = ((4 << 10) / 4 + 128 / 4, 1 << 8 | 1 << 5, 1 << 8 | 1 << 4);
    machine.hw.advance(7 * SECOND);
    assert_eq!(told(), (1 << 8, pages, 0));
    let first = run(0, 3);
    assert_eq!(told(), (running, pages, 3_000_000_000), "it is running");
    leave(machine, first, Run::Blocked);
    first.run.set(Run::Blocked);
    machine.hw.advance(5 * SECOND);
    assert_eq!(told(), (blocked, pages, 3_000_000_000), "it waits");
    run(1, 2);
    assert_eq!(told(), (running, pages, 5_000_000_000), "both together");
    // `XENMEM_decrease_reservation` of two pages.
    let frames = guest(&world, 2);
    frames.write(BUFFER, &[(RAM >> 12) + 0x20, (RAM >> 12) + 0x21].map(u64::to_le_bytes).concat());
    frames.write(
        ARG,
        &[BUFFER.to_le_bytes(), 2_u64.to_le_bytes(), 0_u64.to_le_bytes(), 0x7FF0_u64.to_le_bytes()].concat(),
    );
    assert_eq!(frames.call(12, [1, ARG, 0, 0, 0]), 2);
    assert_eq!(told(), (running, pages - 2, 5_000_000_000));
}

#[test]
fn the_list_goes_on_behind_the_last_one() {
    let world = World::with_control(3);
    let control = guest(&world, 0);
    let list = |first: u16, max: u32| {
        let mut payload = [0; 24];
        payload[..2].copy_from_slice(&first.to_le_bytes());
        payload[4..8].copy_from_slice(&max.to_le_bytes());
        payload[8..16].copy_from_slice(&BUFFER.to_le_bytes());
        assert_eq!(sysctl(control, LIST, 0x15, &payload), 0);
        let count = half(control, ARG + 8 + 16);
        (0..count).map(|index| half(control, BUFFER + u64::from(index) * 120) & 0xFFFF).collect::<Vec<_>>()
    };
    assert_eq!(list(0, 10), [0, 1, 2, 3]);
    assert_eq!(list(0, 2), [0, 1]);
    assert_eq!(list(2, 2), [2, 3]);
    assert_eq!(list(4, 2), [0; 0]);
    assert_eq!(list(0, 0), [0; 0]);
}

#[test]
fn a_domain_is_paused_until_the_last_pause_ends() {
    let world = World::with_control(2);
    let control = guest(&world, 0);
    let (machine, two) = (&world.machine, world.domain(2));
    let vcpu = two.vcpu(0).unwrap();
    assert_eq!(domctl(control, PAUSE, 0), EINVAL, "not itself");
    assert_eq!(domctl(control, UNPAUSE, 2), EINVAL, "it is not paused");
    assert!(sched::start(machine, vcpu));
    assert_eq!((domctl(control, PAUSE, 2), domctl(control, PAUSE, 2)), (0, 0));
    assert_eq!(flags(&world, 2) & 0xFFFF, 1 << 8 | 1 << 3);
    assert!(world.pick(vcpu.home.get()).is_none(), "paused: not chosen");
    assert_eq!(vcpu.run.get(), Run::Paused);
    sched::wake(machine, &world.current(1, 0), vcpu);
    assert_eq!(vcpu.run.get(), Run::Paused, "waking changes nothing");
    assert_eq!(domctl(control, UNPAUSE, 2), 0);
    assert!(world.pick(vcpu.home.get()).is_none(), "paused once still");
    assert_eq!(domctl(control, UNPAUSE, 2), 0);
    assert_eq!(world.pick(vcpu.home.get()).map(|vcpu| vcpu.index), Some(vcpu.index));
    assert_eq!(vcpu.run.get(), Run::Running);
    // A pause waits, restarting, for a vCPU that runs on another CPU, and counts once.
    put_domctl(control, PAUSE, 0x17, 2);
    let Outcome::Restart(left) = control.once(DOMCTL, [ARG, 0, 0, 0, 0]) else { panic!("it must wait") };
    let Outcome::Restart(left) = control.once(DOMCTL, left) else { panic!("it must wait still") };
    assert_eq!(
        hypervisor::pause::holds(machine, two, vcpu),
        Hold::Paused,
        "the CPU that runs it gives it up"
    );
    assert_eq!(control.once(DOMCTL, left), Outcome::Done(0));
    assert_eq!(domctl(control, UNPAUSE, 2), 0);
    assert_eq!(domctl(control, UNPAUSE, 2), EINVAL);
    assert_eq!(vcpu.run.get(), Run::Runnable);
    for _ in 0..255 {
        assert_eq!(domctl(control, PAUSE, 1), 0);
    }
    assert_eq!(domctl(control, PAUSE, 1), EOVERFLOW);
}

#[test]
fn the_control_domain_destroys_others_and_not_itself() {
    let world = World::with_control(2);
    let control = guest(&world, 0);
    assert_eq!(domctl(control, DESTROY, 0), EINVAL);
    assert_eq!(domctl(control, DESTROY, 7), ESRCH);
    assert_eq!(counters(&world, 1)[17] >> 32, 1, "a name in the TLB");
    assert_eq!(domctl(control, DESTROY, 1), 0);
    assert_eq!(counters(&world, 1)[17] >> 32, 0, "which everybody has forgotten");
    assert_eq!(world.domain(1).life.get(), Life::Destroyed(Fault::ByControl));
    assert_eq!(world.domain(2).life.get(), Life::Running);
    // Nothing is left of it, and for Xen's callers there is no such domain any more.
    assert_eq!(world.domain(1).life.stage(), Stage::Dead);
    assert_eq!(domctl(control, INFO, 1), ESRCH);
    assert_eq!(domctl(control, DESTROY, 1), ESRCH);
    assert_eq!(counters(&world, 1)[3..7], [0, 2, 1, 0], "its root and its shared info stay with its number");
}

#[test]
fn what_does_not_exist_is_no_call_for_the_control_domain_either() {
    let world = World::with_control(1);
    let control = guest(&world, 0);
    for cmd in [1, 10, 25, 0xFFFF] {
        assert_eq!(domctl(control, cmd, 1), ENOSYS, "{cmd}");
    }
    for cmd in [2, 0x7FFF, 0xFFFF] {
        assert_eq!(sysctl(control, cmd, 0x15, &[]), ENOSYS, "{cmd}");
    }
}

#[test]
fn counters_are_what_a_domain_has() {
    let world = World::with_control(2);
    let before = counters(&world, 1);
    // RAM; two root tables, one of 2 MiB blocks, one of pages; shared info and a grant table of one frame, and the one beside it.
    assert_eq!(before[3..7], [(4 << 10) / 4 + 128 / 4, 4, 2, 1]);
    let port = guest(&world, 1).unbound(2);
    let peer = guest(&world, 2).bind(1, port);
    assert_eq!(counters(&world, 1)[16] & 0xFFFF_FFFF, 1, "a port");
    assert_eq!(counters(&world, 2)[16] & 0xFFFF_FFFF, 1);
    assert_eq!((guest(&world, 2).close(peer), guest(&world, 1).close(port)), (0, 0));
    assert_eq!(counters(&world, 1), before);
    // Free frames are nobody's.
    assert_eq!(counters(&world, 0x7FF2)[1], world.machine.frames.free_frames());
    let mut payload = [0; 16];
    payload[0] = 9;
    payload[8..].copy_from_slice(&BUFFER.to_le_bytes());
    assert_eq!(sysctl(guest(&world, 0), COUNTERS, 0x15, &payload), ESRCH);
    payload[0] = 1;
    payload[8..].copy_from_slice(&NOWHERE.to_le_bytes());
    assert_eq!(sysctl(guest(&world, 0), COUNTERS, 0x15, &payload), EFAULT);
}

const AFFINITY: u32 = 9;
const SCHEDULER: u32 = 16;
const CREDIT2: u32 = 6;
const PUT: u32 = 0;
const GET: u32 = 1;
const EOPNOTSUPP: i64 = -95;

/// `struct xen_domctl` with a payload.
fn domctl_with(caller: Guest<'_>, cmd: u32, domain: u16, payload: &[u8]) -> i64 {
    put_domctl(caller, cmd, 0x17, domain);
    caller.write(ARG + 16, payload);
    caller.call(DOMCTL, [ARG, 0, 0, 0, 0])
}

/// `struct xen_domctl_scheduler_op`; weight and cap as they are told then.
fn parameters(world: &World, cmd: [u32; 2], weight: u16, cap: u16) -> Result<(u16, u16), i64> {
    let control = guest(world, 0);
    let mut payload = [0; 12];
    payload[..4].copy_from_slice(&cmd[0].to_le_bytes());
    payload[4..8].copy_from_slice(&cmd[1].to_le_bytes());
    payload[8..10].copy_from_slice(&weight.to_le_bytes());
    payload[10..].copy_from_slice(&cap.to_le_bytes());
    match domctl_with(control, SCHEDULER, 1, &payload) {
        0 => Ok((control.read::<u16>(ARG + 24), control.read::<u16>(ARG + 26))),
        errno => Err(errno),
    }
}

#[test]
fn weight_and_cap_are_told_and_set_as_by_credit2() {
    let world = World::with_control(2);
    let get = || parameters(&world, [CREDIT2, GET], 0, 0);
    assert_eq!(get(), Ok((256, 0)));
    assert_eq!(parameters(&world, [CREDIT2, PUT], 60_000, 150), Ok((60_000, 150)));
    assert_eq!(get(), Ok((60_000, 150)));
    assert_eq!(world.domain(1).vcpu(1).unwrap().share.weight(), 60_000);
    assert_eq!(world.domain(2).vcpu(0).unwrap().share.weight(), 256, "another's");
    assert_eq!(parameters(&world, [CREDIT2, PUT], 7, 201), Err(EINVAL), "two vCPUs can use 200 per cent");
    assert_eq!(get(), Ok((60_000, 150)));
    assert_eq!(parameters(&world, [CREDIT2, PUT], 0, 200), Ok((0, 200)));
    assert_eq!(get(), Ok((60_000, 200)), "weight 0 leaves it as it is");
    assert_eq!(parameters(&world, [CREDIT2, PUT], 512, 0), Ok((512, 0)));
    assert_eq!(get(), Ok((512, 0)), "cap 0 lifts it");
    for cmd in [[5, GET], [9, GET], [CREDIT2, 2], [CREDIT2, 3], [CREDIT2, 4], [0, 0]] {
        assert_eq!(parameters(&world, cmd, 1, 1), Err(EINVAL), "{cmd:?}");
    }
    assert_eq!(domctl_with(guest(&world, 0), SCHEDULER, 7, &[]), ESRCH);
    assert_eq!(domctl_with(guest(&world, 1), SCHEDULER, 2, &[]), EPERM);
    assert_eq!(get(), Ok((512, 0)));
}

#[test]
fn an_affinity_is_set_to_the_cpus_that_there_are() {
    let world = World::with_control(2);
    let control = guest(&world, 0);
    let vcpu = world.domain(1).vcpu(1).unwrap();
    // `struct xen_domctl_vcpuaffinity`: vCPU, flags, then the bitmap's address and its bits.
    let set = |number: u32, flags: u32, map: u8, bits: u32, at: u64| {
        control.write(BUFFER, &[map]);
        let mut payload = [0; 40];
        payload[..4].copy_from_slice(&number.to_le_bytes());
        payload[4..8].copy_from_slice(&flags.to_le_bytes());
        payload[8..16].copy_from_slice(&at.to_le_bytes());
        payload[16..20].copy_from_slice(&bits.to_le_bytes());
        (domctl_with(control, AFFINITY, 1, &payload), control.read::<u8>(BUFFER))
    };
    assert_eq!(set(1, 1, 0b1110, 8, BUFFER), (0, 0b10), "CPU 1 of two");
    assert_eq!(vcpu.allowed.load(std::sync::atomic::Ordering::Relaxed), 0b10);
    assert_eq!(set(1, 1, 0b11, 1, BUFFER), (0, 0b01), "one bit of the map counts");
    assert_eq!(set(1, 1, 0b11, 64, BUFFER), (0, 0b11));
    for (number, flags, map, bits, at, expected) in [
        (2, 1, 1, 8, BUFFER, EINVAL),
        (1, 0, 1, 8, BUFFER, EINVAL),
        (1, 2, 1, 8, BUFFER, EOPNOTSUPP),
        (1, 1, 1, 8, 0, EINVAL),
        (1, 1, 1, 0, BUFFER, EINVAL),
        (1, 1, 0, 8, BUFFER, EINVAL),
        (1, 1, 0b100, 8, BUFFER, EINVAL),
        (1, 1, 1, 8, NOWHERE, EFAULT),
    ] {
        assert_eq!(set(number, flags, map, bits, at).0, expected, "{number} {flags} {map} {bits} {at:#x}");
        assert_eq!(vcpu.allowed.load(std::sync::atomic::Ordering::Relaxed), 0b11);
    }
    assert_eq!(domctl_with(guest(&world, 1), AFFINITY, 1, &[]), EPERM);
}

#[test]
fn the_self_check_finds_what_is_wrong_and_is_the_control_domains() {
    const CHECK: u32 = 0x8002;
    const EIO: i64 = -5;
    let world = World::with_control(2);
    assert_eq!(sysctl(guest(&world, 0), CHECK, 0x15, &[]), 0);
    assert_eq!(sysctl(guest(&world, 1), CHECK, 0x15, &[]), EPERM);
    world.domain(2).state.lock().memory.frames += 1;
    let asked = [ARG, 0, 0, 0, 0];
    assert_eq!(guest(&world, 0).once(SYSCTL, asked), Outcome::Done(EIO));
    world.domain(2).state.lock().memory.frames -= 1;
    assert_eq!(guest(&world, 0).once(SYSCTL, asked), Outcome::Done(0));
}

#[test]
fn the_control_domain_sets_the_wall_clock_and_everybody_is_told() {
    const PLATFORM: u64 = 7;
    // `struct xen_platform_op`: 136 bytes; `secs`, `nsecs`, `mbz`, `system_time` from byte 8.
    let set = |caller: Guest<'_>, version: u32, cmd: u32, secs: u64, nsecs: u32, mbz: u32, system: u64| {
        let mut bytes = [0_u8; 136];
        bytes[..4].copy_from_slice(&cmd.to_le_bytes());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes[8..16].copy_from_slice(&secs.to_le_bytes());
        bytes[16..20].copy_from_slice(&nsecs.to_le_bytes());
        bytes[20..24].copy_from_slice(&mbz.to_le_bytes());
        bytes[24..32].copy_from_slice(&system.to_le_bytes());
        caller.write(ARG, &bytes);
        caller.call(PLATFORM, [ARG, 0, 0, 0, 0])
    };
    let world = World::with_control(2);
    let control = guest(&world, 0);
    // `wc_version`, `wc_sec`, `wc_nsec`, `wc_sec_hi` from byte 1072 of `struct shared_info`.
    let told = |id: u16| {
        let [first, second] = [1072, 1080].map(|at| guest(&world, id).info_word(at));
        (first & 0xFFFF_FFFF, first >> 32 | second >> 32 << 32, second & 0xFFFF_FFFF)
    };
    let version = 0x0300_0001;
    assert_eq!(set(guest(&world, 1), version, 62, 1, 0, 0, 0), EPERM);
    assert_eq!(set(guest(&world, 1), 1, 62, 1, 0, 0, 0), EACCES);
    assert_eq!(set(control, version, 17, 1, 0, 0, 0), ENOSYS, "settime32, which ARM does not have");
    assert_eq!(set(control, version, 62, 1, 0, 1, 0), EINVAL);
    assert_eq!(set(control, version, 62, 1, 0, 0, 1_000_000_001), EINVAL, "before 1970");
    assert_eq!(set(control, version, 62, 1 << 60, 0, 0, 0), EINVAL, "farther than nanoseconds count");
    assert_eq!([0, 1, 2].map(told), [(0, 0, 0); 3]);
    // More seconds than 32 bits have; it was 1.5 s earlier when system time was 0.
    assert_eq!(set(control, version, 62, 5_000_000_001, 250_000_000, 0, 1_500_000_000), 0);
    assert_eq!([0, 1, 2].map(told), [(2, 4_999_999_999, 750_000_000); 3]);
    wallclock::tell(&world.machine, world.domain(1));
    assert_eq!([1, 2].map(told), [(4, 4_999_999_999, 750_000_000), (2, 4_999_999_999, 750_000_000)]);
}

#[test]
fn the_console_is_read_back_by_the_control_domain_in_pieces() {
    const READ: u32 = 1;
    let world = World::with_control(2);
    let control = guest(&world, 0);
    let text: Vec<u8> = (0..3000_u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    world.machine.hw.console_last(&text);
    // `clear`, `incremental`, `index`, `buffer`, `count`.
    let read = |caller: Guest<'_>, clear: u8, incremental: u8, index: u32, buffer: u64, count: u32| {
        let mut payload = [0_u8; 24];
        (payload[0], payload[1]) = (clear, incremental);
        payload[4..8].copy_from_slice(&index.to_le_bytes());
        payload[8..16].copy_from_slice(&buffer.to_le_bytes());
        payload[16..20].copy_from_slice(&count.to_le_bytes());
        let answer = sysctl(caller, READ, 0x15, &payload);
        (answer, half(caller, ARG + 8 + 4), half(caller, ARG + 8 + 16))
    };
    let bytes = |count: usize| (0..count as u64).map(|n| control.read::<u8>(BUFFER + n)).collect::<Vec<_>>();
    assert_eq!(read(guest(&world, 1), 0, 0, 0, BUFFER, 10).0, EPERM);
    assert_eq!(read(control, 0, 0, 0, NOWHERE, 10).0, EFAULT);
    assert_eq!(
        read(control, 0, 0, 77, BUFFER, 300),
        (0, 300, 300),
        "from the first, whatever the index says"
    );
    assert_eq!(bytes(300), text[..300]);
    assert_eq!(read(control, 0, 1, 300, BUFFER, 4000), (0, 812, 512), "so much at once");
    assert_eq!(bytes(512), text[300..812]);
    assert_eq!(read(control, 0, 1, 2990, BUFFER, 4000), (0, 3000, 10));
    assert_eq!(read(control, 1, 1, 100, BUFFER, 5), (0, 105, 5), "and that is read");
    assert_eq!(read(control, 0, 0, 0, BUFFER, 5), (0, 110, 5));
    assert_eq!(bytes(5), text[105..110]);
    assert_eq!(read(control, 0, 1, 3000, BUFFER, 5), (0, 3000, 0));
}
