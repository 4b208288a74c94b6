//! Handles: what the hypervisor reads and writes for a guest is what the guest itself might read and write there.
#![allow(clippy::unwrap_used, reason = "tests")]

use hypervisor::addr::{GuestVa, Ipa};
use hypervisor::fake::{MEMORY_KIB, Op, RAM, World};
use hypervisor::guest_memory::{element, read, read_bytes, write, write_bytes};
use pavo_tests::{ARG, guest, two};
use pv_abi::{Errno, GuestHandle};

const VA: u64 = 0xFFFF_8000_0000_0000;

fn ipa(number: u64) -> Ipa {
    Ipa::new(number).unwrap()
}

/// Two pages side by side in the guest's addresses, far apart in its memory.
fn scattered() -> World {
    let world = two();
    world.machine.hw.map_va(VA, ipa(ARG), true);
    world.machine.hw.map_va(VA + 0x1000, ipa(ARG + 0x8000), true);
    world
}

#[test]
fn a_structure_across_pages_is_put_together() {
    let world = scattered();
    let one = guest(&world, 1);
    let current = world.current(1, 0);
    one.write(ARG + 0xFFC, &[1, 2, 3, 4]);
    one.write(ARG + 0x8000, &[5, 6, 7, 8]);
    let at = GuestHandle(VA + 0xFFC);
    assert_eq!(read::<[u8; 8], _>(&world.machine, &current, at), Ok([1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(read::<u32, _>(&world.machine, &current, at), Ok(0x0403_0201));
    assert_eq!(
        read::<u32, _>(&world.machine, &current, GuestHandle(VA + 0xFFE)),
        Ok(0x0605_0403),
        "misaligned"
    );
    assert_eq!(write(&world.machine, &current, at, &[9_u8; 8]), Ok(()));
    assert_eq!(
        (world.guest_read::<4>(1, ARG + 0xFFC), world.guest_read::<4>(1, ARG + 0x8000)),
        ([9; 4], [9; 4])
    );
}

#[test]
fn a_word_is_one_access() {
    let world = scattered();
    let current = world.current(1, 0);
    world.machine.hw.take_ops();
    assert!(read::<u32, _>(&world.machine, &current, GuestHandle(VA + 4)).is_ok());
    assert!(read::<u64, _>(&world.machine, &current, GuestHandle(VA + 8)).is_ok());
    let reads = world.machine.hw.take_ops().iter().filter(|op| matches!(op, Op::Read { .. })).count();
    assert_eq!(reads, 0, "words that are aligned are loaded");
}

#[test]
fn each_byte_is_copied_once() {
    let world = scattered();
    let current = world.current(1, 0);
    world.machine.hw.take_ops();
    let mut bytes = [0; 5000];
    assert_eq!(read_bytes(&world.machine, &current, GuestVa::new(VA + 1000), &mut bytes), Ok(()));
    let lengths: Vec<usize> = world
        .machine
        .hw
        .take_ops()
        .iter()
        .filter_map(|op| match op {
            Op::Read { len, .. } => Some(*len),
            _ => None,
        })
        .collect();
    assert_eq!(lengths, [3096, 1904]);
}

#[test]
fn stage_1_has_a_say() {
    let world = scattered();
    let current = world.current(1, 0);
    world.machine.hw.map_va(VA, ipa(ARG), false);
    let at = GuestHandle(VA);
    assert!(read::<u64, _>(&world.machine, &current, at).is_ok());
    assert_eq!(write(&world.machine, &current, at, &0_u64), Err(Errno::Efault));
    world.machine.hw.unmap_va(VA);
    assert_eq!(read::<u64, _>(&world.machine, &current, at), Err(Errno::Efault));
    assert_eq!(read::<[u8; 8], _>(&world.machine, &current, GuestHandle(VA + 0xFFC)), Err(Errno::Efault));
}

#[test]
fn stage_2_has_the_last_word() {
    let world = scattered();
    let current = world.current(1, 0);
    let end = RAM + MEMORY_KIB * 1024;
    for nowhere in [end, 0x1000, (1 << 40) - 0x1000, 1 << 40] {
        world.machine.hw.map_va(VA, ipa(nowhere), true);
        assert_eq!(
            read::<u64, _>(&world.machine, &current, GuestHandle(VA)),
            Err(Errno::Efault),
            "{nowhere:x}"
        );
        assert_eq!(write(&world.machine, &current, GuestHandle(VA), &0_u64), Err(Errno::Efault));
    }
    world.machine.hw.map_va(VA, ipa(end - 0x1000), true);
    assert_eq!(read::<u64, _>(&world.machine, &current, GuestHandle(VA)), Ok(0));
}

#[test]
fn a_write_that_fails_in_the_middle_has_written_what_came_before() {
    let world = scattered();
    let current = world.current(1, 0);
    world.machine.hw.unmap_va(VA + 0x1000);
    assert_eq!(write_bytes(&world.machine, &current, GuestVa::new(VA + 0xFF0), &[7; 32]), Err(Errno::Efault));
    assert_eq!(world.guest_read::<16>(1, ARG + 0xFF0), [7; 16]);
}

#[test]
fn addresses_that_wrap_are_refused() {
    let world = scattered();
    let current = world.current(1, 0);
    world.machine.hw.map_va(!0xFFF, ipa(ARG), true);
    let last = GuestHandle(u64::MAX - 7);
    assert!(read::<u64, _>(&world.machine, &current, last).is_ok(), "the last word there is");
    assert_eq!(read::<[u8; 9], _>(&world.machine, &current, last), Err(Errno::Efault));
    assert_eq!(element::<u64>(GuestHandle(0x1000), 3), Ok(GuestHandle(0x1018)));
    assert_eq!(element::<u64>(GuestHandle(8), u64::MAX / 8), Err(Errno::Efault));
    assert_eq!(element::<u64>(GuestHandle(0), u64::MAX), Err(Errno::Efault));
    assert_eq!(element::<u64>(GuestHandle(u64::MAX), 1), Err(Errno::Efault));
}
