//! `xen_version` (`public/version.h`, `public/features.h`).
use crate::call::{abi_struct, layout, sub_calls};

sub_calls! {
    /// What `xen_version` tells.
    VersionOp {
        /// Major version in bits 31:16, minor in 15:0, as the result.
        0 Version version("none") Constant ok [];
        /// 16 bytes of text.
        1 Extraversion extraversion("16 bytes") Constant ok [Efault];
        /// [`CompileInfo`].
        2 CompileInfo compile_info("CompileInfo") Constant ok [Efault];
        /// 1024 bytes of text.
        3 Capabilities capabilities("1024 bytes") Constant ok [Efault];
        /// 64 bytes of text.
        4 Changeset changeset("64 bytes") Constant ok [Efault];
        /// Start of the hypervisor's virtual addresses, 8 bytes.
        5 PlatformParameters platform_parameters("8 bytes") Constant ok [Efault];
        /// [`FeatureInfo`].
        6 GetFeatures get_features("FeatureInfo") Constant ok [Efault, Einval];
        /// The page size, as the result.
        7 Pagesize pagesize("null") Constant ok [Einval];
        /// The domain's UUID, 16 bytes.
        8 GuestHandle guest_handle("16 bytes") Constant ok [Efault];
        /// 1024 bytes of text.
        9 Commandline commandline("1024 bytes") Constant ok [Efault];
        /// Identity of the build.
        10 BuildId build_id("any") Constant no [Eperm];
        /// As 1, whole ([`VarBuf`]): its length, as the result, when the handle is null.
        11 Extraversion2 extraversion2("VarBuf") Constant ok [Efault, Enobufs];
        /// As 3, whole ([`VarBuf`]).
        12 Capabilities2 capabilities2("VarBuf") Constant ok [Efault, Enobufs];
        /// As 4, whole ([`VarBuf`]).
        13 Changeset2 changeset2("VarBuf") Constant ok [Efault, Enobufs];
        /// As 9, whole ([`VarBuf`]): not for guests.
        14 Commandline2 commandline2("VarBuf") Constant no [Eperm];
    }
}

/// The version that is reported: 4.20.
pub const XEN_VERSION: u32 = 0x0004_0014;

bitflags::bitflags! {
    /// Features of submap 0 (`XENFEAT_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// Page tables need no hypercalls. Clear in a domain with paravirtual page tables ([`crate::paging`]).
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// Guest frame numbers are translated by stage 2.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The caller is the control domain.
        const DOM0 = 1 << 11;
        /// Grant mappings have bus addresses equal to machine addresses.
        const GRANT_MAP_IDENTITY = 1 << 12;
        /// Memory operations know virtual nodes.
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// SMCCC calls by `hvc #0` are answered.
        const ARM_SMCCC_SUPPORTED = 1 << 14;
        /// Guest frames are not machine frames.
        const NOT_DIRECT_MAPPED = 1 << 16;
        /// Guest frames are machine frames.
        const DIRECT_MAPPED = 1 << 17;
        /// Run-state areas may be registered by physical address.
        const RUNSTATE_PHYS_AREA = 1 << 18;
    }
}

abi_struct! {
    /// Argument of [`VersionOp::GetFeatures`].
    pub struct FeatureInfo {
        /// Which submap.
        pub submap_idx: u32,
        /// Out: its bits.
        pub submap: u32,
    }
    /// Head of a text's buffer (`xen_varbuf`); the text follows, without a terminator.
    pub struct VarBuf {
        /// Bytes that it has room for.
        pub len: u32,
    }
    /// Argument of [`VersionOp::CompileInfo`].
    pub struct CompileInfo {
        /// Compiler, NUL-terminated.
        pub compiler: [u8; 64],
        /// Who compiled.
        pub compile_by: [u8; 16],
        /// Where.
        pub compile_domain: [u8; 32],
        /// When.
        pub compile_date: [u8; 32],
    }
}
layout!(VarBuf, 4, { len: 0 });
layout!(FeatureInfo, 8, { submap_idx: 0, submap: 4 });
layout!(CompileInfo, 144, { compiler: 0, compile_by: 64, compile_domain: 80, compile_date: 112 });
