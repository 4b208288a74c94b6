//! The control domain's calls, each sub-call with every answer: run by the control domain itself, and by one that is not. Not on Xen, whose control
//! domain none of ours can be; what Xen answers there is from its source (`common/domctl.c`, `common/sysctl.c`).
extern crate alloc;
use alloc::format;

use guest_kernel::{control, record};
use pv_abi::control::{
    AskCounters, Counters, DOMCTL, DOMCTL_VERSION, DomainInfo, Domctl, DomctlOp, InfoList, PLATFORM,
    PLATFORM_VERSION, PlatformCall, PlatformOp, ReadConsole, SYSCTL, SYSCTL_VERSION, SchedulerParams,
    SetTime, Sysctl, SysctlOp, VcpuAffinity, affinity, scheduler,
};
use pv_abi::{DomId, Errno, GuestHandle};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::raw::{self, NOBODY, NOWHERE, address};
use super::tap::Tap;

const OWN: DomId = DomId(0);
/// Spins until it is destroyed.
const VICTIM: DomId = DomId(1);

fn domctl(
    cmd: u32,
    version: u32,
    domain: DomId,
    payload: &(impl IntoBytes + Immutable),
) -> Result<(), Errno> {
    let mut asked = Domctl { cmd, interface_version: version, domain, ..Domctl::default() };
    let bytes = payload.as_bytes();
    asked.payload.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    let got = raw::control(DOMCTL, address(&mut asked));
    record::sub_call(DOMCTL, cmd, got);
    got
}

fn sysctl(cmd: u32, version: u32, payload: &(impl IntoBytes + Immutable)) -> Result<(), Errno> {
    let mut asked = Sysctl { cmd, interface_version: version, ..Sysctl::default() };
    let bytes = payload.as_bytes();
    asked.payload.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    let got = raw::control(SYSCTL, address(&mut asked));
    record::sub_call(SYSCTL, cmd, got);
    got
}

fn platform(cmd: u32, version: u32, time: SetTime) -> Result<(), Errno> {
    let mut asked = PlatformCall { cmd, interface_version: version, time, ..PlatformCall::default() };
    let got = raw::control(PLATFORM, address(&mut asked));
    record::sub_call(PLATFORM, cmd, got);
    got
}

/// A `domctl` without a structure of its own, or with zeros.
fn plain(op: DomctlOp, domain: DomId) -> Result<(), Errno> {
    domctl(op.number(), DOMCTL_VERSION, domain, &[0_u64; 4])
}

pub(crate) fn check(tap: &mut Tap) {
    let privileged = is_privileged();
    // Another's looks at who is there all the time.
    let other = if privileged { VICTIM } else { OWN };
    for (number, name) in [(DOMCTL, "domctl"), (SYSCTL, "sysctl"), (PLATFORM, "platform_op")] {
        let got = raw::control(number, NOWHERE);
        record::sub_call(number, u32::MAX, got);
        tap.is(format_args!("{name} from nowhere"), got, Err(Errno::Efault));
    }
    let who = if privileged { "control" } else { "another" };
    for op in DomctlOp::ALL {
        let what = format!("{who}: domctl {op:?}");
        let old = domctl(op.number(), DOMCTL_VERSION - 1, other, &[0_u64; 4]);
        tap.is(format_args!("{what}: another interface version"), old, Err(Errno::Eacces));
        tap.is(format_args!("{what}: of nobody"), plain(*op, NOBODY), Err(Errno::Esrch));
        if !privileged {
            tap.is(format_args!("{what}: is refused"), plain(*op, other), Err(Errno::Eperm));
        }
    }
    for op in SysctlOp::ALL {
        let what = format!("{who}: sysctl {op:?}");
        let old = sysctl(op.number(), SYSCTL_VERSION + 1, &[0_u64; 4]);
        tap.is(format_args!("{what}: another interface version"), old, Err(Errno::Eacces));
        if !privileged {
            let got = sysctl(op.number(), SYSCTL_VERSION, &[0_u64; 4]);
            tap.is(format_args!("{what}: is refused"), got, Err(Errno::Eperm));
        }
    }
    let unknown = if privileged { Errno::Enosys } else { Errno::Eperm };
    for cmd in [0, 1, 6, 8, 0x7fff, 0x8000, u32::MAX] {
        let got = domctl(cmd, DOMCTL_VERSION, other, &[0_u64; 4]);
        tap.is(format_args!("{who}: an unknown domctl {cmd:#x}"), got, Err(unknown));
        let got = domctl(cmd, DOMCTL_VERSION - 1, other, &[0_u64; 4]);
        tap.is(format_args!("{who}: an unknown domctl of another version {cmd:#x}"), got, Err(Errno::Eacces));
        let nobody = if cmd == 1 { unknown } else { Errno::Esrch };
        let got = domctl(cmd, DOMCTL_VERSION, NOBODY, &[0_u64; 4]);
        tap.is(format_args!("{who}: an unknown domctl of nobody {cmd:#x}"), got, Err(nobody));
    }
    for cmd in [0, 5, 7, 0x7fff, 0x8003, u32::MAX] {
        let got = sysctl(cmd, SYSCTL_VERSION, &[0_u64; 4]);
        tap.is(format_args!("{who}: an unknown sysctl {cmd:#x}"), got, Err(unknown));
        let got = sysctl(cmd, 0, &[0_u64; 4]);
        tap.is(format_args!("{who}: an unknown sysctl of another version {cmd:#x}"), got, Err(Errno::Eacces));
    }
    let time = SetTime { secs: 1_700_000_000, ..SetTime::default() };
    let set = PlatformOp::SetTime64.number();
    let expected = if privileged { Ok(()) } else { Err(Errno::Eperm) };
    tap.is(format_args!("{who}: settime64"), platform(set, PLATFORM_VERSION, time), expected);
    let old = platform(set, PLATFORM_VERSION + 1, time);
    tap.is(format_args!("{who}: settime64 of another version"), old, Err(Errno::Eacces));
    for cmd in [0, 17, 61, 63, u32::MAX] {
        let got = platform(cmd, PLATFORM_VERSION, time);
        tap.is(format_args!("{who}: an unknown platform_op {cmd:#x}"), got, Err(unknown));
        let got = platform(cmd, 0, time);
        tap.is(
            format_args!("{who}: an unknown platform_op of another version {cmd:#x}"),
            got,
            Err(Errno::Eacces),
        );
    }
    if privileged {
        let odd = platform(set, PLATFORM_VERSION, SetTime { mbz: 1, ..time });
        tap.is("settime64 with what must be zero", odd, Err(Errno::Einval));
        affinities(tap);
        shares(tap);
        told(tap);
        lives(tap);
    }
}

fn is_privileged() -> bool {
    plain(DomctlOp::GetDomainInfo, OWN).is_ok()
}

/// The last that each sub-call takes, and the first that it does not.
pub(crate) fn limits(tap: &mut Tap) {
    if !is_privileged() {
        return;
    }
    let counters = |domain, buffer| AskCounters { domain, pad: [0; 3], buffer };
    let mut room = Counters::default();
    let (last, behind) = (DomId(2), DomId(3));
    tap.is("domctl.getdomaininfo of the last domain", plain(DomctlOp::GetDomainInfo, last), Ok(()));
    let got = plain(DomctlOp::GetDomainInfo, behind);
    tap.is("domctl.getdomaininfo of the one behind it", got, Err(Errno::Esrch));
    for (domain, what, expected) in
        [(last, "the last domain", Ok(())), (behind, "the one behind it", Err(Errno::Esrch))]
    {
        let asked = counters(domain, GuestHandle(address(&mut room)));
        let got = sysctl(SysctlOp::Counters.number(), SYSCTL_VERSION, &asked);
        tap.is(format_args!("sysctl.counters of {what}"), got, expected);
        let expected = expected.and(Err(Errno::Eexist));
        let got = sysctl(SysctlOp::Build.number(), SYSCTL_VERSION, &counters(domain, GuestHandle::NULL));
        tap.is(format_args!("sysctl.build of {what}"), got, expected);
    }
    let mut map = [0xff_u8; 8];
    let all = VcpuAffinity {
        flags: affinity::HARD,
        hard: GuestHandle(address(&mut map)),
        hard_bits: 64,
        ..Default::default()
    };
    for (vcpu, expected) in [(0, Ok(())), (1, Err(Errno::Einval)), (u32::MAX, Err(Errno::Einval))] {
        map.fill(0xff);
        let asked = VcpuAffinity { vcpu, ..all };
        let got = domctl(DomctlOp::SetVcpuAffinity.number(), DOMCTL_VERSION, VICTIM, &asked);
        tap.is(format_args!("domctl.setvcpuaffinity of vCPU {vcpu} of one"), got, expected);
    }
    let good = SchedulerParams { scheduler: scheduler::CREDIT2, cmd: scheduler::PUT, weight: 256, cap: 0 };
    for (weight, cap, expected) in [
        (1, 1, Ok(())),
        (u16::MAX, 100, Ok(())),
        (256, 101, Err(Errno::Einval)),
        (256, u16::MAX, Err(Errno::Einval)),
        (256, 0, Ok(())),
    ] {
        let asked = SchedulerParams { weight, cap, ..good };
        let got = domctl(DomctlOp::SchedulerOp.number(), DOMCTL_VERSION, VICTIM, &asked);
        tap.is(format_args!("domctl.scheduler_op with weight {weight}, cap {cap}"), got, expected);
    }
    let time = SetTime { secs: 1_700_000_000, ..SetTime::default() };
    for (mbz, expected) in [(0, Ok(())), (1, Err(Errno::Einval)), (u32::MAX, Err(Errno::Einval))] {
        let got = platform(PlatformOp::SetTime64.number(), PLATFORM_VERSION, SetTime { mbz, ..time });
        tap.is(format_args!("platform_op.settime64 with {mbz:#x} in what must be zero"), got, expected);
    }
    let mut text = [0_u8; 64];
    for count in [0, 1, 64] {
        let asked = ReadConsole { buffer: GuestHandle(address(&mut text[..])), count, ..Default::default() };
        let got = sysctl(SysctlOp::ReadConsole.number(), SYSCTL_VERSION, &asked);
        tap.is(format_args!("sysctl.readconsole of at most {count} bytes"), got, Ok(()));
    }
    let mut infos = [DomainInfo::new_zeroed(); 4];
    for (first, most) in [(0, 0), (2, 1), (3, 4), (u16::MAX, 4)] {
        let asked = InfoList {
            first_domain: DomId(first),
            max_domains: most,
            buffer: GuestHandle(address(&mut infos[..])),
            ..Default::default()
        };
        let got = sysctl(SysctlOp::GetDomainInfoList.number(), SYSCTL_VERSION, &asked);
        tap.is(format_args!("sysctl.getdomaininfolist of {most} from {first} on"), got, Ok(()));
    }
}

/// What a structure names leads nowhere.
pub(crate) fn handles(tap: &mut Tap) {
    if !is_privileged() {
        return;
    }
    let buffer = GuestHandle(NOWHERE);
    let affinity = VcpuAffinity { flags: affinity::HARD, hard: buffer, hard_bits: 64, ..Default::default() };
    let got = domctl(DomctlOp::SetVcpuAffinity.number(), DOMCTL_VERSION, VICTIM, &affinity);
    tap.is("domctl.setvcpuaffinity by a bitmap nowhere", got, Err(Errno::Efault));
    let console = ReadConsole { buffer, count: 64, ..Default::default() };
    let got = sysctl(SysctlOp::ReadConsole.number(), SYSCTL_VERSION, &console);
    tap.is("sysctl.readconsole to nowhere", got, Err(Errno::Efault));
    let list = InfoList { max_domains: 4, buffer, ..Default::default() };
    let got = sysctl(SysctlOp::GetDomainInfoList.number(), SYSCTL_VERSION, &list);
    tap.is("sysctl.getdomaininfolist to nowhere", got, Err(Errno::Efault));
    let count = AskCounters { domain: VICTIM, pad: [0; 3], buffer };
    let got = sysctl(SysctlOp::Counters.number(), SYSCTL_VERSION, &count);
    tap.is("sysctl.counters to nowhere", got, Err(Errno::Efault));
}

fn affinities(tap: &mut Tap) {
    let mut map = [0xff_u8; 8];
    let at = GuestHandle(address(&mut map));
    let ask =
        |asked: VcpuAffinity| domctl(DomctlOp::SetVcpuAffinity.number(), DOMCTL_VERSION, VICTIM, &asked);
    let good = VcpuAffinity { vcpu: 0, flags: affinity::HARD, hard: at, hard_bits: 64, ..Default::default() };
    for (what, asked, expected) in [
        ("all CPUs", good, Ok(())),
        ("the first CPU", VcpuAffinity { hard_bits: 1, ..good }, Ok(())),
        ("no CPU", VcpuAffinity { hard_bits: 0, ..good }, Err(Errno::Einval)),
        ("a vCPU that is not there", VcpuAffinity { vcpu: 1, ..good }, Err(Errno::Einval)),
        ("a preference", VcpuAffinity { flags: affinity::SOFT, ..good }, Err(Errno::Eopnotsupp)),
        ("nothing", VcpuAffinity { flags: 0, ..good }, Err(Errno::Einval)),
        ("a null bitmap", VcpuAffinity { hard: GuestHandle::NULL, ..good }, Err(Errno::Einval)),
        ("a bitmap nowhere", VcpuAffinity { hard: GuestHandle(NOWHERE), ..good }, Err(Errno::Efault)),
        ("all CPUs again", good, Ok(())),
    ] {
        map.fill(0xff);
        tap.is(format_args!("setvcpuaffinity {what}"), ask(asked), expected);
    }
}

fn shares(tap: &mut Tap) {
    let ask = |asked: SchedulerParams| domctl(DomctlOp::SchedulerOp.number(), DOMCTL_VERSION, VICTIM, &asked);
    let good = SchedulerParams { scheduler: scheduler::CREDIT2, cmd: scheduler::PUT, weight: 256, cap: 0 };
    for (what, asked, expected) in [
        ("tell", SchedulerParams { cmd: scheduler::GET, ..good }, Ok(())),
        ("a weight", good, Ok(())),
        ("the greatest weight", SchedulerParams { weight: u16::MAX, ..good }, Ok(())),
        ("the whole of its vCPU", SchedulerParams { cap: 100, ..good }, Ok(())),
        ("more than its vCPU", SchedulerParams { cap: 101, ..good }, Err(Errno::Einval)),
        ("another scheduler", SchedulerParams { scheduler: 5, ..good }, Err(Errno::Einval)),
        ("another command", SchedulerParams { cmd: 9, ..good }, Err(Errno::Einval)),
        ("no cap", SchedulerParams { weight: 256, ..good }, Ok(())),
    ] {
        tap.is(format_args!("scheduler_op {what}"), ask(asked), expected);
    }
    tap.is("and it is so", control::weight_and_cap(VICTIM), Ok((256, 0)));
}

fn told(tap: &mut Tap) {
    let mut infos = [DomainInfo::new_zeroed(); 4];
    let buffer = GuestHandle(address(&mut infos[..]));
    let list = |asked: InfoList| sysctl(SysctlOp::GetDomainInfoList.number(), SYSCTL_VERSION, &asked);
    let good = InfoList { first_domain: DomId(0), max_domains: 4, buffer, ..Default::default() };
    for (what, asked, expected) in [
        ("all", good, Ok(())),
        ("none", InfoList { max_domains: 0, ..good }, Ok(())),
        ("none, to nowhere", InfoList { max_domains: 0, buffer: GuestHandle(NOWHERE), ..good }, Ok(())),
        ("behind the last", InfoList { first_domain: DomId(0x7fef), ..good }, Ok(())),
        ("to nowhere", InfoList { buffer: GuestHandle(NOWHERE), ..good }, Err(Errno::Efault)),
    ] {
        tap.is(format_args!("getdomaininfolist {what}"), list(asked), expected);
    }
    let mut counters = Counters::default();
    let buffer = GuestHandle(address(&mut counters));
    let count = |domain, buffer| {
        sysctl(SysctlOp::Counters.number(), SYSCTL_VERSION, &AskCounters { domain, pad: [0; 3], buffer })
    };
    tap.is("counters", count(VICTIM, buffer), Ok(()));
    tap.is("counters of the hypervisor", count(DomId::XEN, buffer), Ok(()));
    tap.is("counters of nobody", count(NOBODY, buffer), Err(Errno::Esrch));
    tap.is("counters to nowhere", count(VICTIM, GuestHandle(NOWHERE)), Err(Errno::Efault));
    let mut text = [0_u8; 64];
    let read = |buffer| {
        let ask = ReadConsole { buffer: GuestHandle(buffer), count: 64, ..ReadConsole::default() };
        sysctl(SysctlOp::ReadConsole.number(), SYSCTL_VERSION, &ask)
    };
    tap.is("readconsole", read(address(&mut text[..])), Ok(()));
    tap.is("readconsole to nowhere", read(NOWHERE), Err(Errno::Efault));
    // Ok and -EIO in a build with the self-check, which no image that is shipped is.
    let checked = sysctl(SysctlOp::SelfCheck.number(), SYSCTL_VERSION, &[0_u64; 2]);
    tap.is("self-check", checked, Err(Errno::Enosys));
}

/// Pauses, the end, and another life.
fn lives(tap: &mut Tap) {
    let build = |domain| {
        let ask = AskCounters { domain, pad: [0; 3], buffer: GuestHandle::NULL };
        sysctl(SysctlOp::Build.number(), SYSCTL_VERSION, &ask)
    };
    tap.is("pausedomain of oneself", plain(DomctlOp::PauseDomain, OWN), Err(Errno::Einval));
    tap.is("destroydomain of oneself", plain(DomctlOp::DestroyDomain, OWN), Err(Errno::Einval));
    tap.is(
        "unpausedomain of one that is not paused",
        plain(DomctlOp::UnpauseDomain, VICTIM),
        Err(Errno::Einval),
    );
    for times in 1..=2 {
        tap.is(format_args!("pausedomain, {times} deep"), plain(DomctlOp::PauseDomain, VICTIM), Ok(()));
    }
    for times in 1..=2 {
        tap.is(format_args!("unpausedomain, {times} of 2"), plain(DomctlOp::UnpauseDomain, VICTIM), Ok(()));
    }
    let most = (0..255).filter(|_| plain(DomctlOp::PauseDomain, VICTIM).is_ok()).count();
    tap.is("pausedomain as often as it can be", most, 255);
    tap.is("pausedomain once more", plain(DomctlOp::PauseDomain, VICTIM), Err(Errno::Eoverflow));
    let back = (0..255).filter(|_| plain(DomctlOp::UnpauseDomain, VICTIM).is_ok()).count();
    tap.is("unpausedomain as often", back, 255);
    tap.is("once more", plain(DomctlOp::UnpauseDomain, VICTIM), Err(Errno::Einval));
    tap.is("build of one that runs", build(VICTIM), Err(Errno::Eexist));
    tap.is("build of nobody", build(NOBODY), Err(Errno::Esrch));
    tap.is("getdomaininfo", plain(DomctlOp::GetDomainInfo, VICTIM), Ok(()));
    tap.is("destroydomain", plain(DomctlOp::DestroyDomain, VICTIM), Ok(()));
    tap.is(
        "getdomaininfo of one that is destroyed",
        plain(DomctlOp::GetDomainInfo, VICTIM),
        Err(Errno::Esrch),
    );
    tap.is("destroydomain again", plain(DomctlOp::DestroyDomain, VICTIM), Err(Errno::Esrch));
    tap.is("build", build(VICTIM), Ok(()));
    tap.is("getdomaininfo of its next life", plain(DomctlOp::GetDomainInfo, VICTIM), Ok(()));
    tap.is("destroydomain of that", plain(DomctlOp::DestroyDomain, VICTIM), Ok(()));
}
