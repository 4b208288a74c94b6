//! The smaller calls: versions, parameters, vCPU areas, scheduling, console, multicalls, and what is not offered.
#![allow(clippy::unwrap_used, reason = "tests")]

use hypervisor::fake::{Op, RAM};
use hypervisor::vgic::PrivateIntid;
use pavo_tests::{ARG, Guest, NOWHERE, SELECTOR, guest, number, two};
use pv_abi::event::{BindIpi, EventOp};
use pv_abi::hvm::HvmParamArg;
use pv_abi::shared::VcpuInfo;
use pv_abi::vcpu::RegisterVcpuInfo;
use pv_abi::version::{CompileInfo, FeatureInfo};
use pv_abi::{DomId, Port};
use zerocopy::IntoBytes;

mod lines;
mod multicalls;
mod scheduling;

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
