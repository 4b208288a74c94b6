//! `vcpu_op`.
extern crate alloc;
use alloc::boxed::Box;

use guest_kernel::frame::Frame;
use guest_kernel::smp;
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo, VcpuOp};
use pv_abi::{Errno, PAGE_SIZE};

use super::raw::{NOWHERE, call, vcpu};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    // Leaked: the hypervisor writes to it from now on.
    let page: &'static Frame = Box::leak(Frame::boxed());
    let address = core::ptr::from_ref(page).expose_provenance();
    let (info, runstate) = (
        u64::from(VcpuOp::RegisterVcpuInfo.number()),
        u64::from(VcpuOp::RegisterRunstateMemoryArea.number()),
    );
    let nobody = u64::from(smp::count());
    let at = |offset| RegisterVcpuInfo { gfn: (address / PAGE_SIZE) as u64, offset, rsvd: 0 };

    tap.is("vcpu_info across a page's end", vcpu(info, 0, &mut at(4096 - 40)), Err(Errno::Enxio));
    tap.is("vcpu_info of a vCPU that does not exist", vcpu(info, nobody, &mut at(0)), Err(Errno::Enoent));
    let mut absent = RegisterVcpuInfo { gfn: 0x10, offset: 0, rsvd: 0 };
    tap.is("vcpu_info in a frame that is not there", vcpu(info, 0, &mut absent), Err(Errno::Einval));
    tap.is("vcpu_info moves", vcpu(info, 0, &mut at(64)), Ok(0));
    tap.is("once", vcpu(info, 0, &mut at(64)), Err(Errno::Ebusy));

    let mut area = RegisterRunstate { addr: address as u64 + 2048 };
    tap.is("a run-state area is registered", vcpu(runstate, 0, &mut area), Ok(0));
    tap.is(
        "and says that this vCPU runs",
        page.words().get(512).map(|word| word.load(core::sync::atomic::Ordering::Acquire)),
        Some(0),
    );
    let mut nowhere = RegisterRunstate { addr: NOWHERE };
    tap.is("a run-state area at a bad address is taken", vcpu(runstate, 0, &mut nowhere), Ok(0));

    let number = u64::from(pv_abi::Hypercall::VcpuOp.number());
    tap.is("a bad address for register_vcpu_info", call(number, &[info, 0, NOWHERE]), Err(Errno::Efault));
    tap.is("a bad address for register_runstate", call(number, &[runstate, 0, NOWHERE]), Err(Errno::Efault));
    for op in [0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 15, 99] {
        tap.is(format_args!("operation {op}"), call(number, &[op, 0, NOWHERE]), Err(Errno::Einval));
    }
    tap.is(
        "another operation on a vCPU that does not exist",
        call(number, &[99, nobody, NOWHERE]),
        Err(Errno::Enoent),
    );
}
