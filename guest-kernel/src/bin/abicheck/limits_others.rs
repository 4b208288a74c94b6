//! Boundary values of the smaller calls: the last that is taken and the first that is not. Each case begins with the name of its sub-call.
use guest_kernel::event::Channel;
use guest_kernel::frame::Frame;
use guest_kernel::hypercall;
use pv_abi::console::ConsoleOp;
use pv_abi::hvm::{HvmOp, HvmParamArg, NR_PARAMS};
use pv_abi::multicall::MulticallEntry;
use pv_abi::sched::{POLL_PORTS_MAX, SchedOp, Shutdown, Watchdog};
use pv_abi::vcpu::{ASSIST_RUNSTATE_UPDATE_FLAG, RegisterRunstate, RegisterVcpuInfo, VcpuOp};
use pv_abi::version::{FeatureInfo, VersionOp};
use pv_abi::{DomId, Errno, Hypercall, Port};

use super::raw::{self, NOWHERE, call, gfn, with};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    versions(tap);
    let console = u64::from(Hypercall::ConsoleIo.number());
    let (write, read) = (u64::from(ConsoleOp::Write.number()), u64::from(ConsoleOp::Read.number()));
    tap.is("console_io.read of as much as an int can tell", raw::console_read(i32::MAX as u64), Ok(0));
    tap.is("console_io.read of one byte more", call(console, &[read, 1 << 31, NOWHERE]), Err(Errno::E2big));
    tap.is("console_io.write at the last address", call(console, &[write, 1, u64::MAX]), Err(Errno::Efault));
    tap.is(
        "console_io.write beyond the last address",
        call(console, &[write, 8, u64::MAX - 3]),
        Err(Errno::Efault),
    );
    let param = |op: HvmOp, index| {
        let mut argument = HvmParamArg { domid: DomId::SELF, pad: 0, index, value: 0 };
        with(Hypercall::HvmOp, u64::from(op.number()), &mut argument)
    };
    for index in 0..NR_PARAMS + 2 {
        let (get, set) = match index {
            0 | 1 | 2 | 17 | 18 => (Ok(0), Err(Errno::Eperm)),
            28 => (Err(Errno::Eperm), Err(Errno::Eperm)),
            _ => (Err(Errno::Einval), Err(Errno::Einval)),
        };
        tap.is(
            format_args!("hvm_op.get_param and set_param of number {index}"),
            (param(HvmOp::GetParam, index), param(HvmOp::SetParam, index)),
            (get, set),
        );
    }
    let mut nobody = HvmParamArg { domid: raw::NOBODY, ..Default::default() };
    tap.is("hvm_op.set_param of nobody", with(Hypercall::HvmOp, 0, &mut nobody), Err(Errno::Esrch));
    tap.is("hvm_op.set_param at a bad address", raw::without(Hypercall::HvmOp, 0), Err(Errno::Efault));
    let hvm = u64::from(Hypercall::HvmOp.number());
    tap.is("hvm_op.guest_request_vm_event", call(hvm, &[24, 0]), Ok(0));
    tap.is("hvm_op.guest_request_vm_event takes no address", call(hvm, &[24, NOWHERE]), Err(Errno::Einval));

    let mut ports = [Port(0); POLL_PORTS_MAX as usize];
    if let Ok(end) = Channel::unbound(DomId::SELF) {
        ports.fill(end.port());
        tap.is("sched_op.poll of as many ports as may be", hypercall::poll(&ports, 1), Ok(()));
    }
    let more = [Port(1); POLL_PORTS_MAX as usize + 1];
    tap.is("sched_op.poll of one port more", hypercall::poll(&more, 1), Err(Errno::Einval));
    let dog = |id, timeout| {
        with(Hypercall::SchedOp, u64::from(SchedOp::Watchdog.number()), &mut Watchdog { id, timeout })
    };
    tap.is("sched_op.watchdog of the longest time", dog(0, u32::MAX), Ok(1));
    tap.is("sched_op.watchdog is cancelled", dog(1, 0), Ok(0));
    tap.is("sched_op.watchdog that is cancelled already", dog(1, 0), Err(Errno::Einval));
    tap.is("sched_op.watchdog of the last number there can be", dog(u32::MAX, 1), Err(Errno::Einval));
    // The reason that this guest ends with anyway.
    let shutdown_code = u64::from(SchedOp::ShutdownCode.number());
    tap.is(
        "sched_op.shutdown_code of poweroff",
        with(Hypercall::SchedOp, shutdown_code, &mut Shutdown { reason: 0 }),
        Ok(0),
    );
    tap.is(
        "sched_op.shutdown_code, once more",
        with(Hypercall::SchedOp, shutdown_code, &mut Shutdown { reason: u32::MAX }),
        Ok(0),
    );

    let sched = u64::from(Hypercall::SchedOp.number());
    let shutdown = u64::from(SchedOp::Shutdown.number());
    tap.is(
        "sched_op.shutdown with its reason at the last address",
        call(sched, &[shutdown, u64::MAX - 3]),
        Err(Errno::Efault),
    );

    tap.is(
        "sched_op.shutdown with its reason beyond the last address",
        call(sched, &[shutdown, u64::MAX]),
        Err(Errno::Efault),
    );

    let assist = u64::from(Hypercall::VmAssist.number());
    for kind in [0, 4, ASSIST_RUNSTATE_UPDATE_FLAG, 6, 63, 64, u32::MAX] {
        let expected = if kind == ASSIST_RUNSTATE_UPDATE_FLAG { Ok(0) } else { Err(Errno::Einval) };
        for (name, cmd) in [("vm_assist.enable", 0), ("vm_assist.disable", 1)] {
            tap.is(format_args!("{name} {kind}"), call(assist, &[cmd, u64::from(kind)]), expected);
        }
    }
    areas(tap);
    let multicall = u64::from(Hypercall::Multicall.number());
    tap.is("multicall.multicall of none", call(multicall, &[NOWHERE, 0]), Ok(0));
    tap.is(
        "multicall.multicall at the last address",
        call(multicall, &[u64::MAX - 63, 1]),
        Err(Errno::Efault),
    );
    let entry = |op| MulticallEntry { op, result: 99, args: [0; 6] };
    let mut last = [entry(63), entry(u64::MAX), entry(64)];
    let answer = raw::multicall(&mut last);
    tap.is(
        "multicall.multicall of numbers that there are not",
        (answer, last.map(|it| it.result)),
        (Ok(0), [Errno::Enosys.to_result(); 3]),
    );
}

fn versions(tap: &mut Tap) {
    // At the very end of a page, so that a byte more would be in the next one's.
    let tell =
        |op: VersionOp, bytes: &mut [u8]| raw::at_end(Hypercall::XenVersion, u64::from(op.number()), bytes);
    for (name, op, size) in [
        ("xen_version.extraversion", VersionOp::Extraversion, 16),
        ("xen_version.compile_info", VersionOp::CompileInfo, 144),
        ("xen_version.capabilities", VersionOp::Capabilities, 1024),
        ("xen_version.changeset", VersionOp::Changeset, 64),
        ("xen_version.platform_parameters", VersionOp::PlatformParameters, 8),
        ("xen_version.guest_handle", VersionOp::GuestHandle, 16),
    ] {
        let mut bytes = [0xA5; 1032];
        tap.is(name, tell(op, &mut bytes[..size]), Ok(0));
        tap.is(
            format_args!("{name} writes every byte of its answer and no other"),
            (bytes[size - 1] != 0xA5, bytes[size]),
            (true, 0xA5),
        );
    }
    let mut line = [0xA5u8; 16];
    let answer = with(Hypercall::XenVersion, u64::from(VersionOp::Commandline.number()), &mut line);
    tap.is(
        "xen_version.commandline is denied in nine bytes",
        (answer, line[..9] == *b"<denied>\0", line[9]),
        (Ok(0), true, 0xA5),
    );
    for submap_idx in [0, 1, u32::MAX] {
        let expected = if submap_idx == 0 { Ok(0) } else { Err(Errno::Einval) };
        let mut info = FeatureInfo { submap_idx, submap: 0 };
        tap.is(
            format_args!("xen_version.get_features of submap {submap_idx:#x}"),
            with(Hypercall::XenVersion, u64::from(VersionOp::GetFeatures.number()), &mut info),
            expected,
        );
    }
    let mut denied = [0xA5; 9];
    let commandline = u64::from(VersionOp::Commandline.number());
    let answer = raw::at_end(Hypercall::XenVersion, commandline, &mut denied);
    tap.is("xen_version.commandline in the last nine bytes of a page", answer, Ok(0));
    let pagesize = call(u64::from(Hypercall::XenVersion.number()), &[VersionOp::Pagesize.number().into(), 0]);
    tap.is("xen_version.pagesize of no address", pagesize, Ok(4096));
    tap.is(
        "xen_version.pagesize takes no address",
        raw::without(Hypercall::XenVersion, u64::from(VersionOp::Pagesize.number())),
        Err(Errno::Einval),
    );
    for (name, op) in [
        ("xen_version.extraversion2", VersionOp::Extraversion2),
        ("xen_version.capabilities2", VersionOp::Capabilities2),
        ("xen_version.changeset2", VersionOp::Changeset2),
    ] {
        let cmd = u64::from(op.number());
        let length = call(u64::from(Hypercall::XenVersion.number()), &[cmd, 0]);
        tap.is(format_args!("{name} tells its length"), length.is_ok_and(|length| length < 1020), true);
        let mut buffer = [0xA5u8; 1024];
        let length = u32::try_from(length.unwrap_or(0)).unwrap_or(0).min(1000);
        let end = 4 + length as usize;
        buffer[..4].copy_from_slice(&length.to_le_bytes());
        let answer = with(Hypercall::XenVersion, cmd, &mut buffer);
        tap.is(format_args!("{name} fits"), (answer, buffer[end]), (Ok(u64::from(length)), 0xA5));
        let expected = if length == 0 { Ok(0) } else { Err(Errno::Enobufs) };
        buffer[..4].copy_from_slice(&length.saturating_sub(1).to_le_bytes());
        tap.is(format_args!("{name} does not"), with(Hypercall::XenVersion, cmd, &mut buffer), expected);
        tap.is(
            format_args!("{name} at a bad address"),
            raw::without(Hypercall::XenVersion, cmd),
            Err(Errno::Efault),
        );
    }
    let cmd = u64::from(VersionOp::Commandline2.number());
    tap.is(
        "xen_version.commandline2 is not for guests",
        raw::without(Hypercall::XenVersion, cmd),
        Err(Errno::Eperm),
    );
}

fn areas(tap: &mut Tap) {
    let frame = Frame::boxed();
    let (info, runstate) = (
        u64::from(VcpuOp::RegisterVcpuInfo.number()),
        u64::from(VcpuOp::RegisterRunstateMemoryArea.number()),
    );
    let absent = u64::from(guest_kernel::smp::count());
    for (offset, expected) in [
        (4096 - 47, Err(Errno::Enxio)),
        (4096 - 40, Err(Errno::Enxio)),
        (4, Err(Errno::Enxio)),
        (4096, Err(Errno::Einval)),
        (u32::MAX, Err(Errno::Einval)),
    ] {
        let mut place = RegisterVcpuInfo { gfn: gfn(&frame), offset, rsvd: 0 };
        let answer = raw::vcpu(info, 0, &mut place);
        tap.is(
            format_args!("vcpu_op.register_vcpu_info at offset {offset:#x}, that cannot be"),
            answer,
            expected,
        );
    }
    for absent in [absent, 128, u64::from(u32::MAX)] {
        let mut area = RegisterRunstate { addr: NOWHERE };
        tap.is(
            format_args!("vcpu_op.register_runstate_memory_area of vCPU {absent:#x}, that there is not"),
            raw::vcpu(runstate, absent, &mut area),
            Err(Errno::Enoent),
        );
        let mut place = RegisterVcpuInfo { gfn: gfn(&frame), offset: 0, rsvd: 0 };
        tap.is(
            format_args!("vcpu_op.register_vcpu_info of vCPU {absent:#x}, that there is not"),
            raw::vcpu(info, absent, &mut place),
            Err(Errno::Enoent),
        );
    }
}
