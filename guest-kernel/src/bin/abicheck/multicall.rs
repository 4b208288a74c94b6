//! `multicall`.
use pv_abi::multicall::MulticallEntry;
use pv_abi::version::{VersionOp, XEN_VERSION};
use pv_abi::{Errno, Hypercall};

use super::raw::{NOWHERE, call, multicall};
use super::tap::Tap;

fn entry(op: u64, first: u64) -> MulticallEntry {
    MulticallEntry { op, result: 99, args: [first, 0, 0, 0, 0, 0] }
}

pub(crate) fn check(tap: &mut Tap) {
    let number = u64::from(Hypercall::Multicall.number());
    let version = u64::from(Hypercall::XenVersion.number());
    let mut calls = [
        entry(version, u64::from(VersionOp::Version.number())),
        entry(63, 0),
        entry(version, u64::from(VersionOp::Pagesize.number())),
    ];
    tap.is("three calls", multicall(&mut calls), Ok(0));
    tap.is(
        "have three results",
        calls.map(|call| call.result),
        [i64::from(XEN_VERSION), Errno::Enosys.to_result(), 4096],
    );
    tap.is("no call", call(number, &[NOWHERE, 0]), Ok(0));
    tap.is("calls at a bad address", call(number, &[NOWHERE, 1]), Err(Errno::Efault));
    let mut nested = [entry(number, 0)];
    tap.is(
        "a multicall in a multicall",
        (multicall(&mut nested), nested[0].result),
        (Ok(0), Errno::Einval.to_result()),
    );
}
