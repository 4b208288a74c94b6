//! `hvm_op`.
use pv_abi::hvm::{HvmOp, HvmParam, HvmParamArg, NR_PARAMS};
use pv_abi::{DomId, Errno, Hypercall};

use super::raw::{Answer, NOBODY, with, without};
use super::tap::Tap;

fn param(op: HvmOp, domid: DomId, index: u32) -> Answer {
    let mut argument = HvmParamArg { domid, pad: 0, index, value: 0 };
    with(Hypercall::HvmOp, u64::from(op.number()), &mut argument)
}

pub(crate) fn check(tap: &mut Tap) {
    for known in HvmParam::ALL {
        tap.is(format_args!("{known:?} is read"), param(HvmOp::GetParam, DomId::SELF, known.number()), Ok(0));
        tap.is(
            format_args!("{known:?} is not set by the guest"),
            param(HvmOp::SetParam, DomId::SELF, known.number()),
            Err(Errno::Eperm),
        );
    }
    for index in [3, 4, 16, 19, NR_PARAMS - 1, NR_PARAMS, u32::MAX] {
        tap.is(
            format_args!("parameter {index:#x} is not read"),
            param(HvmOp::GetParam, DomId::SELF, index),
            Err(Errno::Einval),
        );
        tap.is(
            format_args!("parameter {index:#x} is not set"),
            param(HvmOp::SetParam, DomId::SELF, index),
            Err(Errno::Einval),
        );
    }
    tap.is("of nobody", param(HvmOp::GetParam, NOBODY, 0), Err(Errno::Esrch));
    tap.is(
        "a bad address",
        without(Hypercall::HvmOp, u64::from(HvmOp::GetParam.number())),
        Err(Errno::Efault),
    );
    tap.is("an unknown operation", without(Hypercall::HvmOp, 99), Err(Errno::Enosys));
}
