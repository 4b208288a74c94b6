//! The control domain's calls (`privileged = true`): domains, what the hypervisor has counted, pausing, destroying. In any other domain each is
//! refused with `-EPERM`.
#![expect(unsafe_code, reason = "hypercalls that write to places of the caller's")]
use core::ptr;
use core::sync::atomic::AtomicU8;
use core::time::Duration;

use pv_abi::control::{
    AskCounters, Counters, DOMCTL, DOMCTL_VERSION, DomainInfo, Domctl, DomctlOp, InfoList, PLATFORM,
    PLATFORM_VERSION, PlatformCall, PlatformOp, ReadConsole, SYSCTL, SYSCTL_VERSION, SchedulerParams,
    SetTime, Sysctl, SysctlOp, VcpuAffinity, affinity, scheduler,
};
use pv_abi::{DomId, Errno, GuestHandle};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::hypercall::raw;

/// A `domctl` without a structure of its own.
fn domctl(op: DomctlOp, domain: DomId) -> Result<Domctl, Errno> {
    domctl_with(op, domain, &[0_u8; 0])
}

/// A `domctl`. What its structure points at outlives the call.
fn domctl_with<T: IntoBytes + Immutable + ?Sized>(
    op: DomctlOp,
    domain: DomId,
    payload: &T,
) -> Result<Domctl, Errno> {
    let mut asked =
        Domctl { cmd: op.number(), interface_version: DOMCTL_VERSION, domain, ..Domctl::default() };
    let room = asked.payload.as_mut_bytes().get_mut(..size_of_val(payload)).ok_or(Errno::Einval)?;
    room.copy_from_slice(payload.as_bytes());
    let at = ptr::from_mut(&mut asked).expose_provenance() as u64;
    // SAFETY: these operations write `asked`, and the byte of the caller's that an affinity is in; what they do to other domains breaks no memory of this one's.
    Errno::check(unsafe { raw(DOMCTL, [at, 0, 0, 0, 0]) })?;
    Ok(asked)
}

/// A `sysctl` about a buffer that its payload names.
///
/// # Safety
/// The buffer is valid for what the operation writes.
unsafe fn sysctl<T: IntoBytes + FromBytes + Immutable>(op: SysctlOp, payload: &mut T) -> Result<(), Errno> {
    let mut asked = Sysctl { cmd: op.number(), interface_version: SYSCTL_VERSION, ..Sysctl::default() };
    let room = asked.payload.as_mut_bytes().get_mut(..size_of::<T>()).ok_or(Errno::Einval)?;
    room.copy_from_slice(payload.as_bytes());
    let at = ptr::from_mut(&mut asked).expose_provenance() as u64;
    // SAFETY: `asked` is valid during the call; the buffer is the caller's promise.
    Errno::check(unsafe { raw(SYSCTL, [at, 0, 0, 0, 0]) })?;
    let told = asked.payload.as_bytes().get(..size_of::<T>()).ok_or(Errno::Einval)?;
    payload.as_mut_bytes().copy_from_slice(told);
    Ok(())
}

/// What is told of a domain.
///
/// # Errors
/// Those of `domctl.getdomaininfo` in docs/abi.md.
pub fn domain_info(domain: DomId) -> Result<DomainInfo, Errno> {
    let told = domctl(DomctlOp::GetDomainInfo, domain)?;
    let bytes = told.payload.as_bytes().get(..size_of::<DomainInfo>()).ok_or(Errno::Einval)?;
    DomainInfo::read_from_bytes(bytes).map_err(|_| Errno::Einval)
}

/// Tells of the domains from `first` on, ascending; returns of how many. Fewer than `into` holds does not mean that there are no more: ask
/// again from behind the last one, until none is told of.
///
/// # Errors
/// Those of `sysctl.getdomaininfolist` in docs/abi.md.
pub fn domain_infos(first: DomId, into: &mut [DomainInfo]) -> Result<usize, Errno> {
    let mut list = InfoList {
        first_domain: first,
        max_domains: u32::try_from(into.len()).unwrap_or(u32::MAX),
        buffer: GuestHandle(into.as_mut_ptr().expose_provenance() as u64),
        ..InfoList::default()
    };
    // SAFETY: `into` has room for as many as the list says.
    unsafe { sysctl(SysctlOp::GetDomainInfoList, &mut list) }?;
    usize::try_from(list.num_domains).map_err(|_| Errno::Einval)
}

/// Calls `each` for every domain, ascending.
///
/// # Errors
/// Those of [`domain_infos`].
pub fn for_each_domain(mut each: impl FnMut(&DomainInfo)) -> Result<(), Errno> {
    let mut infos = [DomainInfo::new_zeroed(); 8];
    let mut first = DomId(0);
    // Ids ascend: each turn goes on behind the last one.
    loop {
        let count = domain_infos(first, &mut infos)?;
        let told = infos.get(..count).unwrap_or(&infos);
        told.iter().for_each(&mut each);
        match told.last() {
            Some(last) => first = DomId(last.domain.0.saturating_add(1)),
            None => return Ok(()),
        }
    }
}

/// What the hypervisor has counted for a domain, or with [`DomId::XEN`] for itself and for nobody.
///
/// # Errors
/// Those of `sysctl.counters` in docs/abi.md.
pub fn counters(domain: DomId) -> Result<Counters, Errno> {
    let mut counters = Counters::default();
    let buffer = GuestHandle(ptr::from_mut(&mut counters).expose_provenance() as u64);
    let mut ask = AskCounters { domain, pad: [0; 3], buffer };
    // SAFETY: `counters` has room for itself.
    unsafe { sysctl(SysctlOp::Counters, &mut ask) }?;
    Ok(counters)
}

/// Pauses a domain once more; none of its vCPUs runs when this returns.
///
/// # Errors
/// Those of `domctl.pausedomain` in docs/abi.md.
pub fn pause(domain: DomId) -> Result<(), Errno> {
    domctl(DomctlOp::PauseDomain, domain).map(drop)
}

/// A domain's weight, and its cap: per cent of one CPU, 0 for none.
///
/// # Errors
/// Those of `domctl.scheduler_op` in docs/abi.md.
pub fn weight_and_cap(domain: DomId) -> Result<(u16, u16), Errno> {
    let ask = SchedulerParams { scheduler: scheduler::CREDIT2, cmd: scheduler::GET, weight: 0, cap: 0 };
    let told = domctl_with(DomctlOp::SchedulerOp, domain, &ask)?;
    let bytes = told.payload.as_bytes().get(..size_of::<SchedulerParams>()).ok_or(Errno::Einval)?;
    SchedulerParams::read_from_bytes(bytes).map(|told| (told.weight, told.cap)).map_err(|_| Errno::Einval)
}

/// Sets a domain's weight (0 leaves it) and cap (0 lifts it).
///
/// # Errors
/// Those of `domctl.scheduler_op` in docs/abi.md.
pub fn set_weight_and_cap(domain: DomId, weight: u16, cap: u16) -> Result<(), Errno> {
    let ask = SchedulerParams { scheduler: scheduler::CREDIT2, cmd: scheduler::PUT, weight, cap };
    domctl_with(DomctlOp::SchedulerOp, domain, &ask).map(drop)
}

/// Lets a vCPU run on these CPUs only, bit = CPU; returns those of them that there are.
///
/// # Errors
/// Those of `domctl.setvcpuaffinity` in docs/abi.md.
pub fn set_affinity(domain: DomId, vcpu: u32, cpus: u8) -> Result<u8, Errno> {
    let map = AtomicU8::new(cpus);
    let at = GuestHandle(map.as_ptr().expose_provenance() as u64);
    let ask = VcpuAffinity { vcpu, flags: affinity::HARD, hard: at, hard_bits: 8, ..VcpuAffinity::default() };
    domctl_with(DomctlOp::SetVcpuAffinity, domain, &ask)?;
    Ok(map.into_inner())
}

/// Takes one pause back.
///
/// # Errors
/// Those of `domctl.unpausedomain` in docs/abi.md.
pub fn unpause(domain: DomId) -> Result<(), Errno> {
    domctl(DomctlOp::UnpauseDomain, domain).map(drop)
}

/// Builds a domain anew that is destroyed, from its modules. It runs when this returns.
///
/// # Errors
/// Those of `sysctl.build` in docs/abi.md.
pub fn build(domain: DomId) -> Result<(), Errno> {
    let mut ask = AskCounters { domain, pad: [0; 3], buffer: GuestHandle::NULL };
    // SAFETY: the operation writes nothing.
    unsafe { sysctl(SysctlOp::Build, &mut ask) }
}

/// Has the hypervisor check itself while all CPUs stand: `-EIO` when something is wrong, which its log names; `-ENOSYS` in a build that does not.
///
/// # Errors
/// Those of `sysctl.self_check` in docs/abi.md.
pub fn self_check() -> Result<(), Errno> {
    let mut nothing = [0_u8; 0];
    // SAFETY: the operation writes nothing.
    unsafe { sysctl(SysctlOp::SelfCheck, &mut nothing) }
}

/// Says what time it is: since 1970 began, at a system time in nanoseconds.
///
/// # Errors
/// Those of `platform_op.settime64` in docs/abi.md.
pub fn set_time(now: Duration, system_time: u64) -> Result<(), Errno> {
    let time = SetTime { secs: now.as_secs(), nsecs: now.subsec_nanos(), mbz: 0, system_time };
    let mut asked = PlatformCall {
        cmd: PlatformOp::SetTime64.number(),
        interface_version: PLATFORM_VERSION,
        time,
        ..PlatformCall::default()
    };
    let at = ptr::from_mut(&mut asked).expose_provenance() as u64;
    // SAFETY: the call reads its argument only.
    Errno::check(unsafe { raw(PLATFORM, [at, 0, 0, 0, 0]) }).map(drop)
}

/// Reads what was on the console, from byte `from` on or, if that is not there any more, from the first that is. Returns where to go on, and how many bytes
/// there were: fewer than `into` holds is no end, none is.
///
/// # Errors
/// Those of `sysctl.readconsole` in docs/abi.md.
pub fn read_console(from: u32, into: &mut [u8]) -> Result<(u32, usize), Errno> {
    let buffer = GuestHandle(into.as_mut_ptr().expose_provenance() as u64);
    let count = u32::try_from(into.len()).unwrap_or(u32::MAX);
    let mut ask = ReadConsole { incremental: 1, index: from, buffer, count, ..ReadConsole::default() };
    // SAFETY: `into` has room for as many as asked for.
    unsafe { sysctl(SysctlOp::ReadConsole, &mut ask) }?;
    Ok((ask.index, ask.count as usize))
}

/// Destroys a domain.
///
/// # Errors
/// Those of `domctl.destroydomain` in docs/abi.md.
pub fn destroy(domain: DomId) -> Result<(), Errno> {
    domctl(DomctlOp::DestroyDomain, domain).map(drop)
}
