//! `hvc #0`: what a guest hears of PSCI and SMCCC. Values are those of Arm DEN 0022 and DEN 0028, choices those of Xen 4.20.

use hypervisor::psci::{BranchTraining, Request, decode};
use hypervisor::vcpu::Run;
use pavo_tests::two;
use pv_abi::sched::ShutdownReason;

const NOT_SUPPORTED: Request = Request::Return(-1);
const INVALID_PARAMETERS: Request = Request::Return(-2);
const ALREADY_ON: Request = Request::Return(-4);
const INVALID_ADDRESS: Request = Request::Return(-9);
/// Nonsense above the 32 bits that count.
const UPPER: u64 = 0xDEAD_BEEF << 32;

fn ask(world: &hypervisor::fake::World, x: [u64; 4]) -> Request {
    decode(world.domain(1), BranchTraining::Contained, x)
}

#[test]
fn versions_and_features_are_xens() {
    let world = two();
    for upper in [0, UPPER] {
        assert_eq!(ask(&world, [upper | 0x8400_0000, 0, 0, 0]), Request::Return(0x1_0001));
        assert_eq!(ask(&world, [upper | 0x8000_0000, 0, 0, 0]), Request::Return(0x1_0002));
        assert_eq!(ask(&world, [upper | 0x8400_0006, 0, 0, 0]), Request::Return(2));
    }
    let features = |function: u64| ask(&world, [0x8400_000A, UPPER | function, 0, 0]);
    for function in [
        0x8400_0000,
        0x8400_0001,
        0xC400_0001,
        0x8400_0002,
        0x8400_0003,
        0xC400_0003,
        0x8400_0004,
        0xC400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000A,
        0x8000_0000,
    ] {
        assert_eq!(features(function), Request::Return(0), "{function:x}");
    }
    // SYSTEM_SUSPEND, SYSTEM_RESET2, the 64-bit version that does not exist, nothing.
    for function in [0xC400_000E, 0xC400_0012, 0xC400_0000, 0x8400_0007, 0] {
        assert_eq!(features(function), NOT_SUPPORTED);
    }
    let arch = |function| ask(&world, [0x8000_0001, function, 0, 0]);
    assert_eq!((arch(0x8000_8000), arch(0x8000_7FFF)), (Request::Return(1), NOT_SUPPORTED));
    assert_eq!(ask(&world, [0x8000_8000, 0, 0, 0]), Request::Nothing);
    let exposed = decode(world.domain(1), BranchTraining::Shared, [0x8000_0001, 0x8000_8000, 0, 0]);
    assert_eq!(exposed, NOT_SUPPORTED, "no workaround is promised that nobody carries out");
    // TRNG_VERSION, SOC_ID, the vendor's UID, PV_TIME.
    for function in [0x8400_0050, 0x8000_0002, 0x8600_FF01, 0xC500_0020, 0xC400_0000, 3, u64::MAX] {
        assert_eq!(ask(&world, [function, 0, 0, 0]), NOT_SUPPORTED);
    }
    // Where the firmware undoes the training (SMCCC 7.5: 0 is "implemented"), guests are told so, and their call reaches it.
    let offered = |x| decode(world.domain(1), BranchTraining::Undone, x);
    assert_eq!(offered([0x8000_0001, 0x8000_8000, 0, 0]), Request::Return(0));
    assert_eq!(offered([0x8000_8000, 0, 0, 0]), Request::Untrain);
}

#[test]
fn a_vcpu_that_is_off_is_started_where_it_shall() {
    let world = two();
    let on = |function, target, entry, context| ask(&world, [function, target, entry, context]);
    let started = Request::CpuOn { vcpu: 1, entry: 0x12_4000_0000, context: 0x99_0000_0077 };
    assert_eq!(on(0xC400_0003, 1, 0x12_4000_0000, 0x99_0000_0077), started);
    let cut = Request::CpuOn { vcpu: 1, entry: 0x4000_0000, context: 0x77 };
    assert_eq!(on(0x8400_0003, UPPER | 1, 0x12_4000_0000, 0x99_0000_0077), cut, "32-bit arguments");
    assert_eq!(
        on(0xC400_0003, 0x8000_0001, 0x1000, 0),
        Request::CpuOn { vcpu: 1, entry: 0x1000, context: 0 }
    );
    assert_eq!(on(0xC400_0003, 2, 0x1000, 0), INVALID_PARAMETERS);
    assert_eq!(on(0xC400_0003, 0x100, 0x1000, 0), INVALID_PARAMETERS);
    let upper_fields = on(0xC400_0003, 1 << 32 | 1, 0x1000, 0);
    assert_eq!(upper_fields, Request::CpuOn { vcpu: 1, entry: 0x1000, context: 0 }, "as Xen");
    assert_eq!(on(0xC400_0003, 1, 0x1001, 0), INVALID_ADDRESS);
    for run in [Run::Runnable, Run::Running, Run::Blocked] {
        if let Some(vcpu) = world.domain(1).vcpu(1) {
            vcpu.run.set(run);
        }
        assert_eq!(on(0xC400_0003, 1, 0x1000, 0), ALREADY_ON);
        assert_eq!(on(2, 1, 0x1000, 0), INVALID_PARAMETERS, "PSCI 0.1 has no such error");
    }
    let zero = Request::CpuOn { vcpu: 0, entry: 0x12_0000_1000, context: 0 };
    assert_eq!(on(2, UPPER, 0x12_0000_1000, 5), zero, "PSCI 0.1: no context, a 64-bit address");
}

#[test]
fn affinity_info_tells_who_is_on() {
    let world = two();
    let info = |target, level| ask(&world, [0xC400_0004, target, level, 0]);
    assert_eq!(
        (info(0, 0), info(1, 0), info(0, 1)),
        (Request::Return(1), Request::Return(1), Request::Return(1))
    );
    if let Some(vcpu) = world.domain(1).vcpu(1) {
        vcpu.run.set(Run::Blocked);
    }
    assert_eq!((info(0, 0), info(1, 0)), (Request::Return(1), Request::Return(0)));
    assert_eq!(
        (info(5, 1), info(5, 2), info(5, 3)),
        (Request::Return(0), Request::Return(0), Request::Return(0))
    );
    assert_eq!(info(1 << 8, 1), Request::Return(1));
    assert_eq!(info(0, 4), INVALID_PARAMETERS);
    assert_eq!(info(1, UPPER), Request::Return(0), "the level has 32 bits");
}

#[test]
fn power_is_the_domains() {
    let world = two();
    assert_eq!(ask(&world, [0x8400_0008, 0, 0, 0]), Request::End(ShutdownReason::Poweroff));
    assert_eq!(ask(&world, [0x8400_0009, 0, 0, 0]), Request::End(ShutdownReason::Reboot));
    assert_eq!(
        (ask(&world, [0x8400_0002, 0, 0, 0]), ask(&world, [1, 0, 0, 0])),
        (Request::CpuOff, Request::CpuOff)
    );
    assert_eq!(ask(&world, [0xC400_0001, 0, 0, 0]), Request::Suspend);
}
