//! `memory_op` (`public/memory.h`). The low six bits of `cmd` are the operation, the rest is progress of a restarted call.
use crate::call::{abi_struct, layout, operations, sub_calls};
use crate::{DomId, GuestHandle};

sub_calls! {
    /// What `memory_op` does.
    MemoryOp {
        /// Gives frames to the domain at machine's choice ([`Reservation`]).
        0 IncreaseReservation increase_reservation("Reservation") Restartable ok [];
        /// Takes frames from the domain ([`Reservation`]).
        1 DecreaseReservation decrease_reservation("Reservation") Restartable ok [];
        /// Highest machine frame, as the result.
        2 MaximumRamPage maximum_ram_page("none") Constant ok [Einval];
        /// Frames the domain has, as the result.
        3 CurrentReservation current_reservation("DomId") Constant ok [Eperm, Esrch, Efault, Einval];
        /// Frames the domain may have, as the result.
        4 MaximumReservation maximum_reservation("DomId") Constant ok [Eperm, Esrch, Efault, Einval];
        /// Puts frames at guest frame numbers ([`Reservation`]).
        6 PopulatePhysmap populate_physmap("Reservation") Restartable ok [];
        /// Places a shared frame at a guest frame number ([`AddToPhysmap`]).
        7 AddToPhysmap add_to_physmap("AddToPhysmap") Restartable ok [Eperm, Esrch, Eacces, Efault, Ebusy, Einval, Edom, Eilseq, Eoverflow, Enosys];
        /// Exchanges frames: never, on ARM ([`MemoryExchange`]).
        11 Exchange exchange("MemoryExchange") Constant ok [Eperm, Esrch, Efault, Einval, Eopnotsupp];
        /// Highest guest frame number, as the result.
        14 MaximumGpfn maximum_gpfn("DomId") Constant ok [Eperm, Esrch, Efault, Einval];
        /// Takes whatever is at a guest frame number away ([`RemoveFromPhysmap`]).
        15 RemoveFromPhysmap remove_from_physmap("RemoveFromPhysmap") Constant ok [Eperm, Enoent, Esrch, Efault, Einval];
        /// Frames saved by sharing: 0, as the result.
        18 SharingFreedPages get_sharing_freed_pages("none") Constant ok [Enosys];
        /// Frames that are shared: 0, as the result.
        19 SharingSharedPages get_sharing_shared_pages("none") Constant ok [Enosys];
        /// [`MemoryOp::AddToPhysmap`] in batches.
        23 AddToPhysmapBatch add_to_physmap_batch("AddToPhysmapBatch") Restartable ok [Eperm, Esrch, Eacces, Efault, Einval, Edom, Eilseq, Eopnotsupp];
        /// Reserves frames for a domain: the control domain's ([`Reservation`]).
        24 ClaimPages claim_pages("Reservation") Constant no [Eperm, Efault, Einval];
        /// Describes virtual NUMA nodes: there are none ([`VnumaTopology`]).
        26 GetVnumainfo get_vnumainfo("VnumaTopology") Constant no [Eperm, Esrch, Efault, Einval, Eopnotsupp];
        /// Lists memory that devices use: none ([`ReservedDeviceMap`]).
        27 ReservedDeviceMemoryMap reserved_device_memory_map("ReservedDeviceMap") Constant ok [Efault, Einval];
        /// Maps what a domain consists of: a device model's ([`AcquireResource`]).
        28 AcquireResource acquire_resource("AcquireResource") Constant no [Eperm, Esrch, Efault, Einval];
    }
}

/// Bits of `cmd` that are the operation (`MEMOP_CMD_MASK`).
pub const MEMOP_CMD_MASK: u64 = 0x3F;
/// Where progress starts in `cmd` (`MEMOP_EXTENT_SHIFT`).
pub const MEMOP_EXTENT_SHIFT: u32 = 6;

operations! {
    /// What [`AddToPhysmap`] places (`XENMAPSPACE_*`).
    MapSpace {
        /// The shared-info page.
        0 SharedInfo;
        /// Grant-table frame `idx`.
        1 GrantTable;
        /// Another of the domain's own frames.
        2 Gmfn;
        /// A range of them.
        3 GmfnRange;
        /// A frame of another domain.
        4 GmfnForeign;
        /// Device memory.
        5 DevMmio;
    }
}

abi_struct! {
    /// Argument of [`MemoryOp::AddToPhysmap`].
    pub struct AddToPhysmap {
        /// Whose memory changes.
        pub domid: DomId,
        /// Pages, for [`MapSpace::GmfnRange`].
        pub size: u16,
        /// A [`MapSpace`].
        pub space: u32,
        /// Index in that space.
        pub idx: u64,
        /// Guest frame where it appears.
        pub gpfn: u64,
    }
    /// Argument of [`MemoryOp::AddToPhysmapBatch`].
    pub struct AddToPhysmapBatch {
        /// Whose memory changes.
        pub domid: DomId,
        /// A [`MapSpace`].
        pub space: u16,
        /// Elements of the arrays.
        pub size: u16,
        /// Whose frames, for [`MapSpace::GmfnForeign`]; 0 for the other spaces.
        pub foreign_domid: DomId,
        /// Array of indexes in that space.
        pub idxs: GuestHandle,
        /// Array of guest frames where they appear.
        pub gpfns: GuestHandle,
        /// Out: array of 32-bit results, 0 or a negative errno.
        pub errs: GuestHandle,
    }
    /// Argument of [`MemoryOp::RemoveFromPhysmap`].
    pub struct RemoveFromPhysmap {
        /// Whose memory changes.
        pub domid: DomId,
        /// Unused.
        pub pad: [u16; 3],
        /// The guest frame.
        pub gpfn: u64,
    }
    /// Argument of the reservation calls.
    pub struct Reservation {
        /// Array of guest frame numbers.
        pub extent_start: GuestHandle,
        /// Elements in it.
        pub nr_extents: u64,
        /// Binary logarithm of the frames in each.
        pub extent_order: u32,
        /// Address limits and flags.
        pub mem_flags: u32,
        /// Whose memory changes.
        pub domid: DomId,
        /// Unused.
        pub pad: [u16; 3],
    }
}
abi_struct! {
    /// Argument of [`MemoryOp::Exchange`].
    pub struct MemoryExchange {
        /// What goes.
        pub input: Reservation,
        /// What comes.
        pub output: Reservation,
        /// In and out: extents of `input` that are done.
        pub nr_exchanged: u64,
    }
    /// Argument of [`MemoryOp::GetVnumainfo`].
    pub struct VnumaTopology {
        /// Whose.
        pub domid: DomId,
        /// Zero.
        pub pad: u16,
        /// Room for nodes.
        pub nr_vnodes: u32,
        /// Room for vCPUs.
        pub nr_vcpus: u32,
        /// Room for ranges.
        pub nr_vmemranges: u32,
        /// Arrays for distances, nodes of vCPUs, and ranges.
        pub arrays: [GuestHandle; 3],
    }
    /// Argument of [`MemoryOp::ReservedDeviceMemoryMap`].
    pub struct ReservedDeviceMap {
        /// 1 for those of all devices.
        pub flags: u32,
        /// In: room in `buffer`; out: entries.
        pub nr_entries: u32,
        /// Array of entries.
        pub buffer: GuestHandle,
        /// The PCI device: segment, bus, function.
        pub device: u32,
        /// Unused.
        pub pad: u32,
    }
    /// Argument of [`MemoryOp::AcquireResource`].
    pub struct AcquireResource {
        /// Whose.
        pub domid: DomId,
        /// What kind.
        pub kind: u16,
        /// Which of that kind.
        pub id: u32,
        /// How many frames of it.
        pub nr_frames: u32,
        /// Zero.
        pub pad: u32,
        /// The first.
        pub frame: u64,
        /// Array of guest frames where they are to appear.
        pub frame_list: GuestHandle,
    }
}
layout!(MemoryExchange, 72, { input: 0, output: 32, nr_exchanged: 64 });
layout!(VnumaTopology, 40, { domid: 0, pad: 2, nr_vnodes: 4, nr_vcpus: 8, nr_vmemranges: 12, arrays: 16 });
layout!(ReservedDeviceMap, 24, { flags: 0, nr_entries: 4, buffer: 8, device: 16, pad: 20 });
layout!(AcquireResource, 32, { domid: 0, kind: 2, id: 4, nr_frames: 8, pad: 12, frame: 16, frame_list: 24 });

/// Largest extent that a guest may ask for, as order (`CONFIG_DOMU_MAX_ORDER`).
pub const MAX_ORDER: u32 = 9;
/// A NUMA node in [`Reservation::mem_flags`], plus one (`XENMEMF_node`).
pub const NODE_BITS: u32 = 0xFF << 8;
/// `XENMEMF_exact_node_request`: that node or none.
pub const EXACT_NODE_REQUEST: u32 = 1 << 17;
/// `XENMEMF_populate_on_demand` of [`Reservation::mem_flags`].
pub const MEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
/// `XENMEMF_vnode` of [`Reservation::mem_flags`]: its node is a virtual one.
pub const MEMF_VNODE: u32 = 1 << 18;
layout!(AddToPhysmap, 24, { domid: 0, size: 2, space: 4, idx: 8, gpfn: 16 });
layout!(AddToPhysmapBatch, 32, {
    domid: 0, space: 2, size: 4, foreign_domid: 6, idxs: 8, gpfns: 16, errs: 24,
});
layout!(RemoveFromPhysmap, 16, { domid: 0, pad: 2, gpfn: 8 });
layout!(Reservation, 32, {
    extent_start: 0, nr_extents: 8, extent_order: 16, mem_flags: 20, domid: 24, pad: 26,
});
