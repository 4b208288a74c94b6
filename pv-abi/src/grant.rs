//! `grant_table_op` and the shared table, version 1 (`public/grant_table.h`).
use crate::call::{abi_struct, layout, sub_calls};
use crate::{DomId, GrantHandle, GrantRef, GuestHandle};

sub_calls! {
    /// What `grant_table_op` does.
    GrantOp {
        /// Maps a granted frame ([`MapGrantRef`]).
        0 MapGrantRef map_grant_ref("array of MapGrantRef") Restartable ok [Efault, Einval] {Okay, GeneralError, BadDomain, BadGntref, PermissionDenied, BadPage, NoSpace};
        /// Undoes a mapping ([`UnmapGrantRef`]).
        1 UnmapGrantRef unmap_grant_ref("array of UnmapGrantRef") Restartable ok [Efault, Einval] {Okay, GeneralError, BadHandle};
        /// Sizes one's own table and lists its frames ([`SetupTable`]).
        2 SetupTable setup_table("SetupTable") Restartable ok [Efault, Einval] {Okay, GeneralError, BadDomain, BadVirtAddr, PermissionDenied};
        /// Prints a table: not in a shipped hypervisor.
        3 DumpTable dump_table("any") Constant no [Einval, Enosys];
        /// Gives a frame away: refused.
        4 Transfer transfer("any") Constant no [Einval, Eopnotsupp];
        /// Copies between frames and grants ([`GrantCopy`]).
        5 Copy copy("array of GrantCopy") Restartable ok [Efault, Einval] {Okay, GeneralError, BadDomain, BadGntref, PermissionDenied, BadPage, BadCopyArg};
        /// Tells the size of a table ([`QuerySize`]).
        6 QuerySize query_size("QuerySize") Constant ok [Efault, Einval] {Okay, BadDomain, PermissionDenied};
        /// Undoes a mapping; nothing can be put in its place on ARM ([`UnmapAndReplace`]).
        7 UnmapAndReplace unmap_and_replace("array of UnmapAndReplace") Restartable ok [Efault, Einval] {Okay, GeneralError, BadHandle};
        /// Chooses the table's version ([`SetVersion`]).
        8 SetVersion set_version("SetVersion") Constant ok [Efault, Einval, Enosys];
        /// Version 2 only ([`GetStatusFrames`]).
        9 GetStatusFrames get_status_frames("GetStatusFrames") Constant ok [Efault, Einval] {Okay, GeneralError, BadDomain, PermissionDenied};
        /// Tells the table's version ([`GetVersion`]).
        10 GetVersion get_version("GetVersion") Constant ok [Eperm, Esrch, Efault, Einval];
        /// Exchanges two entries ([`SwapGrantRef`]).
        11 SwapGrantRef swap_grant_ref("array of SwapGrantRef") Restartable ok [Efault, Einval] {Okay, BadGntref, Eagain};
        /// Cleans or invalidates the data cache of a frame ([`CacheFlush`]).
        12 CacheFlush cache_flush("array of CacheFlush") Restartable ok [Eperm, Efault, Einval, Eilseq];
    }
}

/// Status of one element of a batch (`GNTST_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i16)]
pub enum GrantStatus {
    /// Done.
    Okay = 0,
    /// None of the others.
    GeneralError = -1,
    /// No such domain, or one that may not be named here.
    BadDomain = -2,
    /// Reference out of range or not granted.
    BadGntref = -3,
    /// Handle out of range or not in use.
    BadHandle = -4,
    /// Bad address to map at.
    BadVirtAddr = -5,
    /// Bad device address.
    BadDevAddr = -6,
    /// No room for the device mapping.
    NoDeviceSpace = -7,
    /// The grant does not permit this.
    PermissionDenied = -8,
    /// Not a page that can be used here.
    BadPage = -9,
    /// Copy crosses a page.
    BadCopyArg = -10,
    /// Address beyond what can be named.
    AddressTooBig = -11,
    /// The caller is to try again.
    Eagain = -12,
    /// Out of resources.
    NoSpace = -13,
}

impl GrantStatus {
    /// Every status.
    pub const ALL: &'static [Self] = &[
        Self::Okay,
        Self::GeneralError,
        Self::BadDomain,
        Self::BadGntref,
        Self::BadHandle,
        Self::BadVirtAddr,
        Self::BadDevAddr,
        Self::NoDeviceSpace,
        Self::PermissionDenied,
        Self::BadPage,
        Self::BadCopyArg,
        Self::AddressTooBig,
        Self::Eagain,
        Self::NoSpace,
    ];

    /// The number in a `status` field.
    pub const fn value(self) -> i16 {
        match self {
            Self::Okay => 0,
            Self::GeneralError => -1,
            Self::BadDomain => -2,
            Self::BadGntref => -3,
            Self::BadHandle => -4,
            Self::BadVirtAddr => -5,
            Self::BadDevAddr => -6,
            Self::NoDeviceSpace => -7,
            Self::PermissionDenied => -8,
            Self::BadPage => -9,
            Self::BadCopyArg => -10,
            Self::AddressTooBig => -11,
            Self::Eagain => -12,
            Self::NoSpace => -13,
        }
    }

    /// Decodes a `status` field; unknown numbers are general errors.
    pub fn from_value(value: i16) -> Self {
        Self::ALL.iter().copied().find(|status| status.value() == value).unwrap_or(Self::GeneralError)
    }
}

bitflags::bitflags! {
    /// Flags of a shared entry (`GTF_*`). The low two bits are the type.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct EntryFlags: u16 {
        /// Type: the named domain may use the frame.
        const PERMIT_ACCESS = 1;
        /// Type: frames may be transferred here (refused).
        const ACCEPT_TRANSFER = 2;
        /// Only reading is permitted.
        const READONLY = 1 << 2;
        /// Set by the hypervisor: in use for reading.
        const READING = 1 << 3;
        /// Set by the hypervisor: in use for writing.
        const WRITING = 1 << 4;
    }
}

/// Mask of the type in [`EntryFlags`].
pub const GTF_TYPE_MASK: u16 = 3;

bitflags::bitflags! {
    /// Flags of a mapping (`GNTMAP_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct MapFlags: u32 {
        /// For a device.
        const DEVICE_MAP = 1 << 0;
        /// For the CPU.
        const HOST_MAP = 1 << 1;
        /// Reading only.
        const READONLY = 1 << 2;
        /// Usable by applications: x86 PV only.
        const APPLICATION_MAP = 1 << 3;
        /// By page-table entry: x86 PV only.
        const CONTAINS_PTE = 1 << 4;
    }
}

bitflags::bitflags! {
    /// Flags of a copy (`GNTCOPY_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct CopyFlags: u16 {
        /// The source is a reference, not a frame.
        const SOURCE_GREF = 1 << 0;
        /// The destination is a reference, not a frame.
        const DEST_GREF = 1 << 1;
    }
}

/// References that guests leave to well-known uses (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 8;
/// Entries in one frame of a version-1 table.
pub const ENTRIES_PER_FRAME: u32 = 512;
/// Version-1 entry in the shared table, 8 bytes.
pub const ENTRY_SIZE: usize = 8;

abi_struct! {
    /// A shared entry (`grant_entry_v1`). The guest writes `frame` and `domid`, then `flags`.
    pub struct GrantEntry {
        /// [`EntryFlags`].
        pub flags: u16,
        /// Who may use it.
        pub domid: DomId,
        /// Guest frame number.
        pub frame: u32,
    }
    /// Argument of [`GrantOp::MapGrantRef`].
    pub struct MapGrantRef {
        /// Guest physical address to map at.
        pub host_addr: u64,
        /// [`MapFlags`].
        pub flags: u32,
        /// The reference.
        pub gref: GrantRef,
        /// The granter.
        pub dom: DomId,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Out: names the mapping.
        pub handle: GrantHandle,
        /// Out: machine address, where that may be known; else 0.
        pub dev_bus_addr: u64,
    }
    /// Argument of [`GrantOp::UnmapGrantRef`].
    pub struct UnmapGrantRef {
        /// Where it was mapped.
        pub host_addr: u64,
        /// As for the mapping; 0 keeps a device mapping.
        pub dev_bus_addr: u64,
        /// The mapping.
        pub handle: GrantHandle,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Unused.
        pub pad: u16,
    }
    /// Argument of [`GrantOp::SetupTable`].
    pub struct SetupTable {
        /// Whose table.
        pub dom: DomId,
        /// Unused.
        pub pad: u16,
        /// Frames it shall have.
        pub nr_frames: u32,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Unused.
        pub pad2: [u16; 3],
        /// Out: array of frame numbers.
        pub frame_list: GuestHandle,
    }
    /// One side of a copy.
    pub struct CopyPtr {
        /// A reference (low 32 bits) or a guest frame number.
        pub ref_or_gfn: u64,
        /// Whose.
        pub domid: DomId,
        /// Offset in the frame, bytes.
        pub offset: u16,
        /// Unused.
        pub pad: u32,
    }
    /// Argument of [`GrantOp::Copy`].
    pub struct GrantCopy {
        /// From.
        pub source: CopyPtr,
        /// To.
        pub dest: CopyPtr,
        /// Bytes.
        pub len: u16,
        /// [`CopyFlags`].
        pub flags: u16,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Unused.
        pub pad: u16,
    }
    /// Argument of [`GrantOp::QuerySize`].
    pub struct QuerySize {
        /// Whose table.
        pub dom: DomId,
        /// Unused.
        pub pad: u16,
        /// Out: frames it has.
        pub nr_frames: u32,
        /// Out: frames it may have.
        pub max_nr_frames: u32,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Unused.
        pub pad2: u16,
    }
    /// Argument of [`GrantOp::UnmapAndReplace`].
    pub struct UnmapAndReplace {
        /// Where it was mapped.
        pub host_addr: u64,
        /// Where the mapping to put there is.
        pub new_addr: u64,
        /// The mapping.
        pub handle: GrantHandle,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Unused.
        pub pad: u16,
    }
    /// Argument of [`GrantOp::GetStatusFrames`].
    pub struct GetStatusFrames {
        /// Frames to be told of.
        pub nr_frames: u32,
        /// Whose table.
        pub dom: DomId,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Out: array of frame numbers.
        pub frame_list: GuestHandle,
    }
    /// Argument of [`GrantOp::SetVersion`].
    pub struct SetVersion {
        /// In: wanted; out: in force.
        pub version: u32,
    }
    /// Argument of [`GrantOp::GetVersion`].
    pub struct GetVersion {
        /// Whose table.
        pub dom: DomId,
        /// Unused.
        pub pad: u16,
        /// Out: its version.
        pub version: u32,
    }
    /// Argument of [`GrantOp::SwapGrantRef`].
    pub struct SwapGrantRef {
        /// One entry.
        pub ref_a: GrantRef,
        /// The other.
        pub ref_b: GrantRef,
        /// Out: a [`GrantStatus`].
        pub status: i16,
        /// Unused.
        pub pad: u16,
    }
    /// Argument of [`GrantOp::CacheFlush`].
    pub struct CacheFlush {
        /// A bus address or a reference.
        pub addr_or_ref: u64,
        /// Offset in the frame, bytes.
        pub offset: u16,
        /// Bytes.
        pub length: u16,
        /// 1 clean, 2 invalidate; bit 31: by reference.
        pub op: u32,
    }
}
layout!(SetVersion, 4, { version: 0 });
layout!(UnmapAndReplace, 24, { host_addr: 0, new_addr: 8, handle: 16, status: 20, pad: 22 });
layout!(GetStatusFrames, 16, { nr_frames: 0, dom: 4, status: 6, frame_list: 8 });
layout!(GrantEntry, 8, { flags: 0, domid: 2, frame: 4 });
layout!(MapGrantRef, 32, {
    host_addr: 0, flags: 8, gref: 12, dom: 16, status: 18, handle: 20, dev_bus_addr: 24,
});
layout!(UnmapGrantRef, 24, { host_addr: 0, dev_bus_addr: 8, handle: 16, status: 20, pad: 22 });
layout!(SetupTable, 24, { dom: 0, pad: 2, nr_frames: 4, status: 8, pad2: 10, frame_list: 16 });
layout!(CopyPtr, 16, { ref_or_gfn: 0, domid: 8, offset: 10, pad: 12 });
layout!(GrantCopy, 40, { source: 0, dest: 16, len: 32, flags: 34, status: 36, pad: 38 });
layout!(QuerySize, 16, { dom: 0, pad: 2, nr_frames: 4, max_nr_frames: 8, status: 12, pad2: 14 });
layout!(GetVersion, 8, { dom: 0, pad: 2, version: 4 });
layout!(SwapGrantRef, 12, { ref_a: 0, ref_b: 4, status: 8, pad: 10 });
layout!(CacheFlush, 16, { addr_or_ref: 0, offset: 8, length: 10, op: 12 });
