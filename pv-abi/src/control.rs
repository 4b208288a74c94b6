//! The control domain's calls: `domctl`, `sysctl` and `platform_op` (`public/domctl.h`, `sysctl.h` and `platform.h` of Xen 4.20), and Pavo's own
//! operations of `sysctl`, numbered from 0x8000.
//!
//! Each call takes one address: that of a [`Domctl`], a [`Sysctl`] or a [`PlatformCall`], whose `payload` is the structure of the operation. Domain 0 makes
//! them; others hear `-EPERM`, after what Xen checks before (`-EFAULT`, `-EACCES` for another interface version, `-ESRCH`).
use crate::call::{Cost, Row, abi_struct, layout, sub_calls};
use crate::{DomId, Errno, GuestHandle};

/// `__HYPERVISOR_platform_op`.
pub const PLATFORM: u64 = 7;
/// `XENPF_INTERFACE_VERSION` of Xen 4.20.
pub const PLATFORM_VERSION: u32 = 0x0300_0001;
/// `__HYPERVISOR_sysctl`.
pub const SYSCTL: u64 = 35;
/// `__HYPERVISOR_domctl`.
pub const DOMCTL: u64 = 36;
/// `XEN_SYSCTL_INTERFACE_VERSION` of Xen 4.20.
pub const SYSCTL_VERSION: u32 = 0x15;
/// `XEN_DOMCTL_INTERFACE_VERSION` of Xen 4.20.
pub const DOMCTL_VERSION: u32 = 0x17;

sub_calls! {
    /// What `domctl` does to a domain.
    DomctlOp {
        /// Ends it and takes everything back; restarts until that is done.
        2 DestroyDomain destroydomain("none") Restartable ok [Eperm, Esrch, Eacces, Einval];
        /// Lets it run no more until it is unpaused as often. When the call returns, none of its vCPUs runs.
        3 PauseDomain pausedomain("none") Restartable ok [Eperm, Esrch, Eacces, Einval, Eoverflow];
        /// Takes one pause back.
        4 UnpauseDomain unpausedomain("none") Constant ok [Eperm, Esrch, Eacces, Einval];
        /// Tells of it ([`DomainInfo`]).
        5 GetDomainInfo getdomaininfo("DomainInfo") Constant ok [Eperm, Esrch, Eacces];
        /// Sets the CPUs that a vCPU may run on.
        9 SetVcpuAffinity setvcpuaffinity("VcpuAffinity") Constant ok [Eperm, Esrch, Eacces, Efault, Einval, Eopnotsupp];
        /// Reads and sets weight and cap.
        16 SchedulerOp scheduler_op("SchedulerParams") Constant ok [Eperm, Esrch, Eacces, Einval];
    }
}

sub_calls! {
    /// What `platform_op` does to the machine.
    PlatformOp {
        /// Says what time it is ([`SetTime`]).
        62 SetTime64 settime64("SetTime") Constant ok [Eperm, Eacces, Einval];
    }
}

sub_calls! {
    /// What `sysctl` tells of the machine.
    SysctlOp {
        /// Tells what was on the console ([`ReadConsole`]), 512 bytes a call at most.
        1 ReadConsole readconsole("ReadConsole") Linear ok [Eperm, Eacces, Efault];
        /// Tells of domains ([`InfoList`]).
        6 GetDomainInfoList getdomaininfolist("InfoList") Linear ok [Eperm, Eacces, Efault];
        /// Pavo's own: what the hypervisor has counted for a domain, or for itself ([`AskCounters`]).
        0x8000 Counters counters("AskCounters") Linear ok [Eperm, Esrch, Eacces, Efault];
        /// Pavo's own: builds a domain anew that was destroyed, from its modules ([`AskCounters`] without a buffer); restarts until it runs.
        0x8001 Build build("AskCounters") Restartable ok [Eperm, Esrch, Enomem, Eacces, Eexist];
        /// Pavo's own, in builds with the self-check: stops all other CPUs between guests, and recomputes what the hypervisor's tables must agree
        /// on; `-EIO` when they do not.
        0x8002 SelfCheck self_check("none") Linear ok [Eperm, Eio, Eacces, Enosys];
    }
}

/// The rows of the calls, beside [`crate::call::TABLE`].
pub const PRIVILEGED: &[Row] = &[
    Row {
        number: 7,
        name: "platform_op",
        args: &["arg"],
        cost: Cost::Constant,
        doc: " What the control domain does to the machine.",
        operations: PlatformOp::TABLE,
        otherwise: &[Errno::Eperm, Errno::Eacces, Errno::Efault, Errno::Enosys],
    },
    Row {
        number: 35,
        name: "sysctl",
        args: &["arg"],
        cost: Cost::Restartable,
        doc: " Tells the control domain of the machine.",
        operations: SysctlOp::TABLE,
        otherwise: &[Errno::Eperm, Errno::Eacces, Errno::Efault, Errno::Enosys],
    },
    Row {
        number: 36,
        name: "domctl",
        args: &["arg"],
        cost: Cost::Restartable,
        doc: " What the control domain does to others.",
        operations: DomctlOp::TABLE,
        otherwise: &[Errno::Eperm, Errno::Esrch, Errno::Eacces, Errno::Efault, Errno::Enosys],
    },
];

abi_struct! {
    /// Argument of `domctl` (`struct xen_domctl`).
    pub struct Domctl {
        /// The operation.
        pub cmd: u32,
        /// [`DOMCTL_VERSION`].
        pub interface_version: u32,
        /// Whom it is about.
        pub domain: DomId,
        /// Unused.
        pub pad: [u16; 3],
        /// The operation's structure.
        pub payload: [u64; 16],
    }

    /// Argument of `sysctl` (`struct xen_sysctl`).
    pub struct Sysctl {
        /// The operation.
        pub cmd: u32,
        /// [`SYSCTL_VERSION`].
        pub interface_version: u32,
        /// The operation's structure.
        pub payload: [u64; 16],
    }

    /// Argument of `platform_op` (`struct xen_platform_op`).
    pub struct PlatformCall {
        /// The operation.
        pub cmd: u32,
        /// [`PLATFORM_VERSION`].
        pub interface_version: u32,
        /// The operation's structure.
        pub time: SetTime,
        /// Other operations have larger ones.
        pub rest: [u64; 13],
    }

    /// Payload of [`PlatformOp::SetTime64`] (`struct xenpf_settime64`).
    pub struct SetTime {
        /// Seconds since 1970 began ...
        pub secs: u64,
        /// ... and nanoseconds ...
        pub nsecs: u32,
        /// (zero)
        pub mbz: u32,
        /// ... at this system time, nanoseconds.
        pub system_time: u64,
    }

    /// Payload of [`SysctlOp::ReadConsole`] (`struct xen_sysctl_readconsole`).
    pub struct ReadConsole {
        /// Unless 0, what was read is read no more by who asks for all.
        pub clear: u8,
        /// Unless 0, it begins at `index`.
        pub incremental: u8,
        /// Unused.
        pub pad: u16,
        /// In: where to begin, bytes since the machine started, modulo 2^32. Out: where to go on.
        pub index: u32,
        /// Where the bytes go.
        pub buffer: GuestHandle,
        /// In: its size, bytes. Out: how many there are.
        pub count: u32,
        /// Unused.
        pub pad2: u32,
    }

    /// Payload of [`DomctlOp::SetVcpuAffinity`] (`struct xen_domctl_vcpuaffinity`).
    pub struct VcpuAffinity {
        /// The vCPU.
        pub vcpu: u32,
        /// [`affinity`].
        pub flags: u32,
        /// In: a bitmap of CPUs, one byte and more. Out: those of them that there are.
        pub hard: GuestHandle,
        /// Bits in it.
        pub hard_bits: u32,
        /// Unused.
        pub pad: u32,
        /// A bitmap of CPUs that are preferred: not offered.
        pub soft: GuestHandle,
        /// Bits in it.
        pub soft_bits: u32,
        /// Unused.
        pub pad2: u32,
    }

    /// Payload of [`DomctlOp::SchedulerOp`] (`struct xen_domctl_scheduler_op`).
    pub struct SchedulerParams {
        /// [`scheduler`]: that of the domain's pool.
        pub scheduler: u32,
        /// [`scheduler::PUT`] or [`scheduler::GET`].
        pub cmd: u32,
        /// Weight; 0 leaves it as it is.
        pub weight: u16,
        /// Per cent of one CPU, 100 for each vCPU at most; 0 for no limit.
        pub cap: u16,
    }

    /// What is told of a domain (`struct xen_domctl_getdomaininfo`).
    pub struct DomainInfo {
        /// Its number.
        pub domain: DomId,
        /// Zero.
        pub pad: u16,
        /// [`flags`], and why it shut down in bits 31:16 (all ones: it has not).
        pub flags: u32,
        /// Pages of RAM that it has.
        pub tot_pages: u64,
        /// Pages of RAM that it may have.
        pub max_pages: u64,
        /// Zero.
        pub outstanding_pages: u64,
        /// Zero.
        pub shr_pages: u64,
        /// Zero.
        pub paged_pages: u64,
        /// Guest frame of its shared info, all ones while that is nowhere.
        pub shared_info_frame: u64,
        /// Nanoseconds that its vCPUs have run, together.
        pub cpu_time: u64,
        /// vCPUs that are on.
        pub nr_online_vcpus: u32,
        /// Number of its last vCPU.
        pub max_vcpu_id: u32,
        /// Zero.
        pub ssidref: u32,
        /// Zero.
        pub handle: [u8; 16],
        /// Its CPU pool.
        pub cpupool: u32,
        /// Bits of its physical addresses.
        pub gpaddr_bits: u8,
        /// Zero.
        pub pad2: [u8; 7],
        /// Zero, as Xen leaves it.
        pub arch_config: [u32; 3],
        /// Zero.
        pub tail: u32,
    }

    /// Payload of [`SysctlOp::GetDomainInfoList`].
    pub struct InfoList {
        /// The first domain to be told of.
        pub first_domain: DomId,
        /// Unused.
        pub pad: u16,
        /// Domains that the buffer has room for.
        pub max_domains: u32,
        /// Array of [`DomainInfo`].
        pub buffer: GuestHandle,
        /// Out: how many were told of.
        pub num_domains: u32,
        /// Unused.
        pub pad2: u32,
    }

    /// Payload of [`SysctlOp::Counters`].
    pub struct AskCounters {
        /// A domain; [`DomId::XEN`] for what is the hypervisor's own, or nobody's.
        pub domain: DomId,
        /// Unused.
        pub pad: [u16; 3],
        /// Where a [`Counters`] is written.
        pub buffer: GuestHandle,
    }

    /// What the hypervisor has counted.
    pub struct Counters {
        /// Frames of 4 KiB by role, index = role ([`role`]).
        pub frames: [u64; 16],
        /// Ports in use.
        pub ports: u32,
        /// Others' grants that it has mapped.
        pub grants_mapped: u32,
        /// Frames of its grant table.
        pub grant_frames: u32,
        /// Names of address spaces in the TLB.
        pub vmids: u32,
        /// Moments at which the hypervisor will do something for it: ends of waits, watchdogs.
        pub timers: u32,
        /// How often it has been built.
        pub generation: u32,
        /// With [`DomId::XEN`], index = CPU: exits, which are interrupts that it took while a guest ran, and guests' traps; not their calls, each of
        /// which a guest counts itself.
        pub exits: [u64; 8],
        /// Likewise: exits for a WFI or WFE.
        pub trapped_waits: [u64; 8],
        /// Likewise: how often it had nothing to do and waited for an interrupt.
        pub idle_waits: [u64; 8],
    }
}

impl SchedulerParams {
    /// Whether it asks, or sets; `None` for another command.
    pub const fn is_get(&self) -> Option<bool> {
        match self.cmd {
            scheduler::PUT => Some(false),
            scheduler::GET => Some(true),
            _ => None,
        }
    }
}

/// Numbers of [`SchedulerParams`] (`XEN_SCHEDULER_*`, `XEN_DOMCTL_SCHEDOP_*`).
pub mod scheduler {
    /// What `fair` is taken for.
    pub const CREDIT2: u32 = 6;
    /// What `partition` is taken for.
    pub const NULL: u32 = 9;
    /// Set.
    pub const PUT: u32 = 0;
    /// Tell.
    pub const GET: u32 = 1;
}

/// Bits of [`VcpuAffinity::flags`] (`XEN_VCPUAFFINITY_*`).
pub mod affinity {
    /// Where it may run.
    pub const HARD: u32 = 1;
    /// Where it prefers to.
    pub const SOFT: u32 = 2;
}

/// Bits of [`DomainInfo::flags`] (`XEN_DOMINF_*`).
pub mod flags {
    /// It is being destroyed, or (Pavo's own) built anew.
    pub const DYING: u32 = 1;
    /// It has shut down.
    pub const SHUTDOWN: u32 = 1 << 2;
    /// It is paused.
    pub const PAUSED: u32 = 1 << 3;
    /// All vCPUs that are on wait.
    pub const BLOCKED: u32 = 1 << 4;
    /// A vCPU runs.
    pub const RUNNING: u32 = 1 << 5;
    /// Stage 2 translates for it: every domain.
    pub const HAP: u32 = 1 << 8;
    /// Where the reason for a shutdown is.
    pub const REASON_SHIFT: u32 = 16;
    /// The reason of one that has not shut down.
    pub const NO_REASON: u32 = 0xFFFF;
}

/// Indices into [`Counters::frames`].
pub mod role {
    /// Not memory, or not the allocator's.
    pub const NOT_RAM: usize = 0;
    /// Free.
    pub const FREE: usize = 1;
    /// The hypervisor's own.
    pub const HYPERVISOR: usize = 2;
    /// A domain's RAM.
    pub const DATA: usize = 3;
    /// Stage-2 tables.
    pub const STAGE2: usize = 4;
    /// Shared info and grant table.
    pub const SHARED: usize = 5;
    /// What the hypervisor remembers of a domain's grants.
    pub const DOMAIN_TABLE: usize = 6;
    /// Left a domain, not free yet.
    pub const LIMBO: usize = 7;
}

layout!(Domctl, 144, { cmd: 0, interface_version: 4, domain: 8, pad: 10, payload: 16 });
layout!(Sysctl, 136, { cmd: 0, interface_version: 4, payload: 8 });
layout!(PlatformCall, 136, { cmd: 0, interface_version: 4, time: 8, rest: 32 });
layout!(SetTime, 24, { secs: 0, nsecs: 8, mbz: 12, system_time: 16 });
layout!(ReadConsole, 24, { clear: 0, incremental: 1, pad: 2, index: 4, buffer: 8, count: 16, pad2: 20 });
layout!(DomainInfo, 120, {
    domain: 0, pad: 2, flags: 4, tot_pages: 8, max_pages: 16, outstanding_pages: 24, shr_pages: 32,
    paged_pages: 40, shared_info_frame: 48, cpu_time: 56, nr_online_vcpus: 64, max_vcpu_id: 68, ssidref: 72,
    handle: 76, cpupool: 92, gpaddr_bits: 96, pad2: 97, arch_config: 104, tail: 116,
});
layout!(VcpuAffinity, 40, {
    vcpu: 0, flags: 4, hard: 8, hard_bits: 16, pad: 20, soft: 24, soft_bits: 32, pad2: 36,
});
layout!(SchedulerParams, 12, { scheduler: 0, cmd: 4, weight: 8, cap: 10 });
layout!(InfoList, 24, { first_domain: 0, pad: 2, max_domains: 4, buffer: 8, num_domains: 16, pad2: 20 });
layout!(AskCounters, 16, { domain: 0, pad: 2, buffer: 8 });
layout!(Counters, 344, {
    frames: 0, ports: 128, grants_mapped: 132, grant_frames: 136, vmids: 140, timers: 144, generation: 148, exits: 152,
    trapped_waits: 216, idle_waits: 280,
});
