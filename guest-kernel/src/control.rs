//! The control domain's calls (`privileged = true`): domains, what the hypervisor has counted, pausing, destroying. In any other domain each is
//! refused with `-EPERM`.
#![expect(unsafe_code, reason = "hypercalls that write to places of the caller's")]
#![expect(clippy::missing_errors_doc, reason = "every error is the hypervisor's refusal")]
use core::ptr;

use pv_abi::control::{
    AskCounters, Counters, DOMCTL, DOMCTL_VERSION, DomainInfo, Domctl, DomctlOp, InfoList, SYSCTL,
    SYSCTL_VERSION, Sysctl, SysctlOp,
};
use pv_abi::{DomId, Errno, GuestHandle};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::hypercall::raw;

/// A `domctl`.
fn domctl(op: DomctlOp, domain: DomId) -> Result<Domctl, Errno> {
    let mut asked =
        Domctl { cmd: op.number(), interface_version: DOMCTL_VERSION, domain, ..Domctl::default() };
    let at = ptr::from_mut(&mut asked).expose_provenance() as u64;
    // SAFETY: these operations read and write `asked` only; what they do to other domains breaks no memory of this one's.
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
pub fn domain_info(domain: DomId) -> Result<DomainInfo, Errno> {
    let told = domctl(DomctlOp::GetDomainInfo, domain)?;
    let bytes = told.payload.as_bytes().get(..size_of::<DomainInfo>()).ok_or(Errno::Einval)?;
    DomainInfo::read_from_bytes(bytes).map_err(|_| Errno::Einval)
}

/// Tells of the domains from `first` on, ascending; returns of how many. Fewer than `into` holds does not mean that there are no more: ask
/// again from behind the last one, until none is told of.
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
pub fn counters(domain: DomId) -> Result<Counters, Errno> {
    let mut counters = Counters::default();
    let buffer = GuestHandle(ptr::from_mut(&mut counters).expose_provenance() as u64);
    let mut ask = AskCounters { domain, pad: [0; 3], buffer };
    // SAFETY: `counters` has room for itself.
    unsafe { sysctl(SysctlOp::Counters, &mut ask) }?;
    Ok(counters)
}

/// Pauses a domain once more; none of its vCPUs runs when this returns.
pub fn pause(domain: DomId) -> Result<(), Errno> {
    domctl(DomctlOp::PauseDomain, domain).map(drop)
}

/// Takes one pause back.
pub fn unpause(domain: DomId) -> Result<(), Errno> {
    domctl(DomctlOp::UnpauseDomain, domain).map(drop)
}

/// Builds a domain anew that is destroyed, from its modules. It runs when this returns.
pub fn build(domain: DomId) -> Result<(), Errno> {
    let mut ask = AskCounters { domain, pad: [0; 3], buffer: GuestHandle::NULL };
    // SAFETY: the operation writes nothing.
    unsafe { sysctl(SysctlOp::Build, &mut ask) }
}

/// Destroys a domain.
pub fn destroy(domain: DomId) -> Result<(), Errno> {
    domctl(DomctlOp::DestroyDomain, domain).map(drop)
}
