//! `xen_version`: who the hypervisor says it is. Answers are those that Xen 4.20 gives a guest without privileges.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
#![expect(
    clippy::inline_always,
    reason = "on the path of every hypercall: a call more would be seen in the numbers"
)]

use pv_abi::version::{CompileInfo, FeatureInfo, Features, VarBuf, VersionOp, XEN_VERSION};
use pv_abi::{Errno, GuestHandle, PAGE_SIZE};
use zerocopy::{Immutable, IntoBytes};

use crate::addr::GuestVa;
use crate::guest_memory;
use crate::hardware::Hardware;
use crate::hypercall::{Answer, Args, low_u32};
use crate::machine::{Current, Machine};

/// After "4.20".
const EXTRAVERSION: &str = ".0-pavo";
/// Programs that run here: 64-bit ones.
const CAPABILITIES: &str = "xen-3.0-aarch64 ";
/// Where the source is.
const CHANGESET: &str = concat!("pavo ", env!("CARGO_PKG_VERSION"));
/// Bytes before the text in a [`VarBuf`].
const HEAD: u64 = size_of::<VarBuf>() as u64;
/// What a guest gets for what it may not know.
const DENIED: &str = "<denied>";

/// What a domain sees of submap 0. Run-state areas by physical address are not offered (Xen's feature is announced there, its call
/// is not on ARM).
const FEATURES: Features = Features::WRITABLE_PAGE_TABLES
    .union(Features::AUTO_TRANSLATED_PHYSMAP)
    .union(Features::MEMORY_OP_VNODE_SUPPORTED)
    .union(Features::ARM_SMCCC_SUPPORTED)
    .union(Features::NOT_DIRECT_MAPPED)
    .union(Features::RUNSTATE_PHYS_AREA);

// What a domU was seen to get on Xen 4.20.
const _: () = assert!(FEATURES.bits() == 0x56005);

/// `xen_version`.
///
/// # Errors
/// `-EFAULT`, `-EINVAL` for an unknown submap, `-EPERM` for the build id, `-ENOSYS`.
#[inline(always)]
pub fn xen_version<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, args: &Args) -> Answer {
    let [cmd, arg, ..] = *args;
    if low_u32(cmd) == VersionOp::Version.number() {
        return Ok(u64::from(XEN_VERSION));
    }
    others(machine, current, low_u32(cmd), GuestHandle(arg))
}

#[cold]
#[inline(never)]
fn others<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, cmd: u32, arg: GuestHandle) -> Answer {
    match VersionOp::from_number(cmd).ok_or(Errno::Enosys)? {
        VersionOp::Version => Ok(u64::from(XEN_VERSION)),
        VersionOp::Extraversion => tell(machine, current, arg, &text::<16>(EXTRAVERSION)),
        VersionOp::CompileInfo => tell(machine, current, arg, &compile_info()),
        VersionOp::Capabilities => tell(machine, current, arg, &text::<1024>(CAPABILITIES)),
        VersionOp::Changeset => tell(machine, current, arg, &text::<64>(CHANGESET)),
        // Guests share no address space with the hypervisor.
        VersionOp::PlatformParameters => tell(machine, current, arg, &0_u64),
        VersionOp::GetFeatures => {
            let info: FeatureInfo = guest_memory::read(machine, current, arg)?;
            if info.submap_idx != 0 {
                return Err(Errno::Einval.into());
            }
            // Whose page tables are checked learns it here.
            let writable = if current.domain.paging().is_some() {
                Features::WRITABLE_PAGE_TABLES
            } else {
                Features::empty()
            };
            tell(machine, current, arg, &FeatureInfo { submap: FEATURES.difference(writable).bits(), ..info })
        }
        VersionOp::Pagesize if arg.is_null() => Ok(u64::try_from(PAGE_SIZE).map_err(|_| Errno::Einval)?),
        VersionOp::Pagesize => Err(Errno::Einval.into()),
        VersionOp::GuestHandle => tell(machine, current, arg, &[0_u8; 16]),
        // Only as long as the text and its end: Xen writes no more of a text that it denies.
        VersionOp::Commandline => tell(machine, current, arg, &text::<9>(DENIED)),
        VersionOp::Extraversion2 => whole(machine, current, arg, EXTRAVERSION),
        VersionOp::Capabilities2 => whole(machine, current, arg, CAPABILITIES),
        VersionOp::Changeset2 => whole(machine, current, arg, CHANGESET),
        VersionOp::BuildId | VersionOp::Commandline2 => Err(Errno::Eperm.into()),
    }
}

fn tell<T: IntoBytes + Immutable, H: Hardware>(
    machine: &Machine<H>,
    current: &Current<'_>,
    arg: GuestHandle,
    what: &T,
) -> Answer {
    guest_memory::write(machine, current, arg, what)?;
    Ok(0)
}

/// Tells a text without cutting it; its length is the result, and all that a null handle asks for.
fn whole<H: Hardware>(machine: &Machine<H>, current: &Current<'_>, arg: GuestHandle, of: &str) -> Answer {
    let length = u32::try_from(of.len()).map_err(|_| Errno::E2big)?;
    if !arg.is_null() {
        let room: VarBuf = guest_memory::read(machine, current, arg)?;
        if length > room.len {
            return Err(Errno::Enobufs.into());
        }
        let at = arg.0.checked_add(HEAD).ok_or(Errno::Efault)?;
        guest_memory::write_bytes(machine, current, GuestVa::new(at), of.as_bytes())?;
    }
    Ok(u64::from(length))
}

fn compile_info() -> CompileInfo {
    CompileInfo {
        compiler: text("rustc"),
        compile_by: text("pavo"),
        compile_domain: text(""),
        compile_date: text(""),
    }
}

/// A text with zeroes after it, the last byte always one.
fn text<const N: usize>(of: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let last = N.saturating_sub(1);
    for (to, from) in bytes.iter_mut().take(last).zip(of.bytes()) {
        *to = from;
    }
    bytes
}
