//! `vcpu_op` (`public/vcpu.h`). On ARM only [`VcpuOp::RegisterRunstateMemoryArea`] and [`VcpuOp::RegisterVcpuInfo`] exist.
use crate::call::{abi_struct, layout, sub_calls};

sub_calls! {
    /// What `vcpu_op` does on ARM.
    VcpuOp {
        /// Registers where the vCPU's run state is published, by address ([`RegisterRunstate`]).
        5 RegisterRunstateMemoryArea register_runstate_memory_area("RegisterRunstate") Constant ok [Enoent, Efault];
        /// Moves the vCPU's `vcpu_info` into guest memory ([`RegisterVcpuInfo`]).
        10 RegisterVcpuInfo register_vcpu_info("RegisterVcpuInfo") Constant ok [Enoent, Enxio, Efault, Ebusy, Einval];
    }
}

sub_calls! {
    /// What `vm_assist` does (`VMASST_CMD_*`). There is one assistance on ARM: [`ASSIST_RUNSTATE_UPDATE_FLAG`].
    AssistOp {
        /// Turns an assistance on.
        0 Enable enable("the assistance itself") Constant ok [Einval];
        /// Turns it off.
        1 Disable disable("the assistance itself") Constant ok [Einval];
    }
}

/// `VMASST_TYPE_runstate_update_flag`: updates of run-state areas are marked ([`RUNSTATE_UPDATE`]).
pub const ASSIST_RUNSTATE_UPDATE_FLAG: u32 = 5;

/// `XEN_RUNSTATE_UPDATE`: the bit of [`RunstateInfo::state_entry_time`] that marks an update in progress.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

abi_struct! {
    /// Argument of [`VcpuOp::RegisterVcpuInfo`].
    pub struct RegisterVcpuInfo {
        /// Guest frame.
        pub gfn: u64,
        /// Offset in it, bytes.
        pub offset: u32,
        /// Unused.
        pub rsvd: u32,
    }
    /// Argument of [`VcpuOp::RegisterRunstateMemoryArea`].
    pub struct RegisterRunstate {
        /// Guest virtual address of a [`RunstateInfo`].
        pub addr: u64,
    }
    /// Published run state of a vCPU.
    pub struct RunstateInfo {
        /// `RUNSTATE_*`: 0 running, 1 runnable, 2 blocked, 3 offline.
        pub state: u32,
        /// Unused.
        pub pad: u32,
        /// System time when this state began, nanoseconds; bit 63 marks an update in progress.
        pub state_entry_time: u64,
        /// Nanoseconds spent in each state.
        pub time: [u64; 4],
    }
}
layout!(RegisterRunstate, 8, { addr: 0 });
layout!(RegisterVcpuInfo, 16, { gfn: 0, offset: 8, rsvd: 12 });
layout!(RunstateInfo, 48, { state: 0, pad: 4, state_entry_time: 8, time: 16 });
