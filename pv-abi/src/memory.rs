//! `memory_op` (`public/memory.h`). The low six bits of `cmd` are the operation, the rest is progress of a restarted call.
use crate::call::{abi_struct, layout, operations};
use crate::{DomId, GuestHandle};

operations! {
    /// What `memory_op` does.
    MemoryOp {
        /// Gives frames to the domain at machine's choice ([`Reservation`]).
        0 IncreaseReservation;
        /// Takes frames from the domain ([`Reservation`]).
        1 DecreaseReservation;
        /// Highest machine frame, as the result.
        2 MaximumRamPage;
        /// Frames the domain has, as the result.
        3 CurrentReservation;
        /// Frames the domain may have, as the result.
        4 MaximumReservation;
        /// Puts frames at guest frame numbers ([`Reservation`]).
        6 PopulatePhysmap;
        /// Places a shared frame at a guest frame number ([`AddToPhysmap`]).
        7 AddToPhysmap;
        /// Highest guest frame number, as the result.
        14 MaximumGpfn;
        /// Takes whatever is at a guest frame number away ([`RemoveFromPhysmap`]).
        15 RemoveFromPhysmap;
        /// [`MemoryOp::AddToPhysmap`] in batches.
        23 AddToPhysmapBatch;
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
/// `XENMEMF_populate_on_demand` of [`Reservation::mem_flags`].
pub const MEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
layout!(AddToPhysmap, 24, { domid: 0, size: 2, space: 4, idx: 8, gpfn: 16 });
layout!(AddToPhysmapBatch, 32, { domid: 0, space: 2, size: 4, foreign_domid: 6, idxs: 8, gpfns: 16, errs: 24 });
layout!(RemoveFromPhysmap, 16, { domid: 0, gpfn: 8 });
layout!(Reservation, 32, { extent_start: 0, nr_extents: 8, extent_order: 16, mem_flags: 20, domid: 24 });
