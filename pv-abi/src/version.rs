//! `xen_version` (`public/version.h`, `public/features.h`).
use crate::call::{abi_struct, layout, operations};

operations! {
    /// What `xen_version` tells.
    VersionOp {
        /// Major version in bits 31:16, minor in 15:0, as the result.
        0 Version;
        /// 16 bytes of text.
        1 Extraversion;
        /// [`CompileInfo`].
        2 CompileInfo;
        /// 1024 bytes of text.
        3 Capabilities;
        /// 64 bytes of text.
        4 Changeset;
        /// Start of the hypervisor's virtual addresses, 8 bytes.
        5 PlatformParameters;
        /// [`FeatureInfo`].
        6 GetFeatures;
        /// The page size, as the result.
        7 Pagesize;
        /// The domain's UUID, 16 bytes.
        8 GuestHandle;
        /// 1024 bytes of text.
        9 Commandline;
        /// Identity of the build.
        10 BuildId;
    }
}

/// The version that is reported: 4.20.
pub const XEN_VERSION: u32 = 0x0004_0014;

bitflags::bitflags! {
    /// Features of submap 0 (`XENFEAT_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// Page tables need no hypercalls.
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
layout!(FeatureInfo, 8, { submap_idx: 0, submap: 4 });
layout!(CompileInfo, 144, { compiler: 0, compile_by: 64, compile_domain: 80, compile_date: 112 });
