//! Paravirtual page tables: `mmu_update`, `update_va_mapping` and `mmuext_op`, with the numbers and structures of `public/xen.h`. Xen
//! has them on x86 only; what they mean on ARM64, in domains configured `pv`, is said here and in ARCHITECTURE.md.
//!
//! A table or text page is named by its guest frame number. Levels are the Arm ARM's: 0 is the root (x86's L4), 3 holds pages (L1).
use crate::Errno;
use crate::call::{Cost, Operation, abi_struct, layout, sub_calls};

/// In the count of a batch: it is going on (`MMU_UPDATE_PREEMPTED`). Set by the hypervisor when it restarts a call.
pub const PREEMPTED: u32 = 0x8000_0000;
/// Command in the low bits of [`MmuUpdate::ptr`]: write the entry (`MMU_NORMAL_PT_UPDATE`). No other is offered.
pub const NORMAL_PT_UPDATE: u64 = 0;

/// Flags of `update_va_mapping` (`UVMF_*`): which flush, and on whom. What a change needs is done whatever they say.
pub mod flush {
    /// None is asked for (`UVMF_NONE`).
    pub const NONE: u64 = 0;
    /// Everything (`UVMF_TLB_FLUSH`).
    pub const ALL: u64 = 1;
    /// This address (`UVMF_INVLPG`).
    pub const ADDRESS: u64 = 2;
    /// Bits of the kind (`UVMF_FLUSHTYPE_MASK`).
    pub const KIND: u64 = 3;
    /// On this vCPU (`UVMF_LOCAL`), instead of all of them or of those in a mask: the address of a 64-bit word, a multiple of 8 (`UVMF_MULTI`).
    pub const HERE: u64 = 0;
    /// On all vCPUs (`UVMF_ALL`).
    pub const EVERYWHERE: u64 = 1 << 2;
}

abi_struct! {
    /// One element of `mmu_update` (`mmu_update_t`).
    pub struct MmuUpdate {
        /// Guest physical address of the entry, a multiple of 8; the command is in its low two bits.
        pub ptr: u64,
        /// The new entry.
        pub val: u64,
    }

    /// One element of `mmuext_op` (`struct mmuext_op`).
    pub struct MmuExtOp {
        /// [`ExtOp`].
        pub cmd: u32,
        /// Unused.
        pub pad: u32,
        /// A guest frame number (`mfn`), or an address (`linear_addr`).
        pub arg1: u64,
        /// A guest frame number (`src_mfn`), an ASID, or the address of a vCPU mask (`vcpumask`).
        pub arg2: u64,
    }
}
layout!(MmuUpdate, 16, { ptr: 0, val: 8 });
layout!(MmuExtOp, 24, { cmd: 0, pad: 4, arg1: 8, arg2: 16 });

sub_calls! {
    /// What `mmuext_op` does. Several go in one call; the first that is refused ends it.
    ExtOp {
        /// Makes a page a table of level 3 (`MMUEXT_PIN_L1_TABLE`).
        0 PinLevel3 pin_l1_table("frame") Restartable ok [Ebusy, Einval, Enomem];
        /// Makes a page a table of level 2 (`MMUEXT_PIN_L2_TABLE`).
        1 PinLevel2 pin_l2_table("frame") Restartable ok [Ebusy, Einval, Enomem];
        /// Makes a page a table of level 1 (`MMUEXT_PIN_L3_TABLE`).
        2 PinLevel1 pin_l3_table("frame") Restartable ok [Ebusy, Einval, Enomem];
        /// Makes a page a table of level 0, a root (`MMUEXT_PIN_L4_TABLE`).
        3 PinLevel0 pin_l4_table("frame") Restartable ok [Ebusy, Einval, Enomem];
        /// Makes a table or text page data again; nothing may refer to it (`MMUEXT_UNPIN_TABLE`).
        4 Unpin unpin_table("frame") Restartable ok [Ebusy, Einval];
        /// Takes a root for the upper half of this vCPU's addresses; the first time, ends the trust in the domain (`MMUEXT_NEW_BASEPTR`).
        5 NewBase new_baseptr("frame") Restartable ok [Ebusy, Einval];
        /// Forgets this vCPU's translations (`MMUEXT_TLB_FLUSH_LOCAL`).
        6 FlushLocal tlb_flush_local("none") Constant ok [];
        /// Forgets this vCPU's translations of an address (`MMUEXT_INVLPG_LOCAL`).
        7 FlushAddressLocal invlpg_local("address") Constant ok [];
        /// Forgets the translations of the vCPUs of a mask, the 64-bit word at `arg2` (`MMUEXT_TLB_FLUSH_MULTI`).
        8 FlushMulti tlb_flush_multi("address of a mask") Constant ok [Efault];
        /// Forgets their translations of address `arg1` (`MMUEXT_INVLPG_MULTI`).
        9 FlushAddressMulti invlpg_multi("address, and of a mask") Constant ok [Efault];
        /// Forgets all vCPUs' translations (`MMUEXT_TLB_FLUSH_ALL`).
        10 FlushAll tlb_flush_all("none") Constant ok [];
        /// Forgets all vCPUs' translations of an address (`MMUEXT_INVLPG_ALL`).
        11 FlushAddressAll invlpg_all("address") Constant ok [];
        /// Takes a root for the lower half, with its ASID in `arg2` (`MMUEXT_NEW_USER_BASEPTR`).
        15 NewUserBase new_user_baseptr("frame, ASID") Constant ok [Ebusy, Einval];
        /// Clears a page (`MMUEXT_CLEAR_PAGE`).
        16 ClearPage clear_page("frame") Constant ok [Einval];
        /// Copies page `arg2` to page `arg1` (`MMUEXT_COPY_PAGE`).
        17 CopyPage copy_page("two frames") Constant ok [Einval];
        /// Makes a page text of the kernel. Ours.
        0x8000 PinKernelText pin_kernel_text("frame") Constant ok [Eperm, Ebusy, Einval, Enomem];
        /// Makes a page text of user programs. Ours.
        0x8001 PinUserText pin_user_text("frame") Constant ok [Ebusy, Einval, Enomem];
        /// No page becomes text of the kernel from here on. Ours.
        0x8002 Seal seal("none") Constant ok [];
    }
}

/// The one row of `mmu_update`, for the reference.
pub const MMU_UPDATE: &[Operation] = &[Operation {
    number: 0,
    name: "mmu_update",
    argument: "array of MmuUpdate",
    cost: Cost::Restartable,
    succeeds: true,
    errors: &[Errno::Eperm, Errno::Esrch, Errno::Efault, Errno::Ebusy, Errno::Einval, Errno::Enosys],
    statuses: &[],
    doc: " Writes entries, one after the other; the first that is refused ends it.",
}];

/// The one row of `update_va_mapping`, for the reference.
pub const UPDATE_VA_MAPPING: &[Operation] = &[Operation {
    number: 0,
    name: "update_va_mapping",
    argument: "none",
    cost: Cost::Constant,
    succeeds: true,
    errors: &[Errno::Efault, Errno::Ebusy, Errno::Einval, Errno::Enosys],
    statuses: &[],
    doc: " Writes the entry that maps an address by this vCPU's roots.",
}];

/// What a call of `mmuext_op` can be answered, whatever its operations.
pub const BATCH: &[Errno] = &[Errno::Eperm, Errno::Esrch, Errno::Efault, Errno::Enosys];
