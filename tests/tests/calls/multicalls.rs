//! `multicall`: each call its result, in order, restartable.
use hypervisor::fake::RAM;
use hypervisor::hypercall::Outcome;
use pavo_tests::{ARG, NOWHERE, guest, number, two};
use pv_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

use super::{EFAULT, EINVAL, ENOSYS, call};

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
