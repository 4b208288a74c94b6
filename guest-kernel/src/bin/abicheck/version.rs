//! `xen_version`.
use pv_abi::version::{CompileInfo, FeatureInfo, Features, VersionOp, XEN_VERSION};
use pv_abi::{Errno, Hypercall};

use super::raw::{Answer, call, with, without};
use super::tap::Tap;

fn op(op: VersionOp) -> u64 {
    u64::from(op.number())
}

fn text<const N: usize>(which: VersionOp) -> (Answer, [u8; N]) {
    let mut buffer = [0xff; N];
    let answer = with(Hypercall::XenVersion, op(which), &mut buffer);
    (answer, buffer)
}

fn ends(bytes: &[u8]) -> bool {
    bytes.contains(&0)
}

pub(crate) fn check(tap: &mut Tap) {
    let number = u64::from(Hypercall::XenVersion.number());
    tap.is("the version is 4.20", call(number, &[op(VersionOp::Version)]), Ok(u64::from(XEN_VERSION)));
    tap.is("the page size is 4096", call(number, &[op(VersionOp::Pagesize)]), Ok(4096));

    let (answer, extra) = text::<16>(VersionOp::Extraversion);
    tap.is("extraversion is told", (answer, ends(&extra)), (Ok(0), true));
    let (answer, capabilities) = text::<1024>(VersionOp::Capabilities);
    tap.is("capabilities are told", (answer, capabilities.starts_with(b"xen-3.0-aarch64")), (Ok(0), true));
    let (answer, changeset) = text::<64>(VersionOp::Changeset);
    tap.is("changeset is told", (answer, ends(&changeset)), (Ok(0), true));
    let (answer, line) = text::<1024>(VersionOp::Commandline);
    tap.is("commandline is answered", (answer, ends(&line)), (Ok(0), true));
    let (answer, uuid) = text::<16>(VersionOp::GuestHandle);
    tap.is("the UUID of a domain without one is zero", (answer, uuid), (Ok(0), [0; 16]));
    let (answer, _) = text::<8>(VersionOp::PlatformParameters);
    tap.is("platform_parameters are told", answer, Ok(0));
    let mut info = CompileInfo::default();
    tap.is("compile_info is told", with(Hypercall::XenVersion, op(VersionOp::CompileInfo), &mut info), Ok(0));
    tap.that(
        "compile_info's fields end",
        ends(&info.compiler) && ends(&info.compile_by) && ends(&info.compile_date),
    );

    let mut features = FeatureInfo { submap_idx: 0, submap: 0 };
    tap.is(
        "features are told",
        with(Hypercall::XenVersion, op(VersionOp::GetFeatures), &mut features),
        Ok(0),
    );
    // Observed of a Xen 4.20 domU: 0x56005 (research: clients).
    let expected = Features::WRITABLE_PAGE_TABLES
        | Features::AUTO_TRANSLATED_PHYSMAP
        | Features::MEMORY_OP_VNODE_SUPPORTED
        | Features::ARM_SMCCC_SUPPORTED
        | Features::NOT_DIRECT_MAPPED
        | Features::RUNSTATE_PHYS_AREA;
    tap.is("they are a domU's", Features::from_bits(features.submap), Some(expected));
    let mut beyond = FeatureInfo { submap_idx: 1, submap: 0 };
    tap.is(
        "submap 1 does not exist",
        with(Hypercall::XenVersion, op(VersionOp::GetFeatures), &mut beyond),
        Err(Errno::Einval),
    );

    for (what, which) in [
        ("extraversion to a bad address", VersionOp::Extraversion),
        ("compile_info to a bad address", VersionOp::CompileInfo),
        ("capabilities to a bad address", VersionOp::Capabilities),
        ("changeset to a bad address", VersionOp::Changeset),
        ("platform_parameters to a bad address", VersionOp::PlatformParameters),
        ("features to a bad address", VersionOp::GetFeatures),
        ("the UUID to a bad address", VersionOp::GuestHandle),
        ("commandline to a bad address", VersionOp::Commandline),
    ] {
        tap.is(what, without(Hypercall::XenVersion, op(which)), Err(Errno::Efault));
    }
    tap.is(
        "build_id is not for guests",
        without(Hypercall::XenVersion, op(VersionOp::BuildId)),
        Err(Errno::Eperm),
    );
    tap.is("an unknown operation", call(number, &[99]), Err(Errno::Enosys));
}
