//! What is swept of grants and memory.
use super::raw::FREE;
use super::sweep::Base::{Is, Page};
use super::sweep::Kind::{Any, Domain, Handle, List, Of, Out, Place as Free, Progress, Reference};
use super::sweep::Place::{At, X};
use super::sweep::State::{Given, Granted, Had, Mapped, Nothing, Placed};
use super::sweep::{Base, Field, Kind, Op, State};
use super::sweep_table::{NONE, OWN, SELF, ops, other, told};
use super::sweep_world::{END, FIRST, INDEX_LIST, NOWHERE, OUT_LIST, PAGES_LIST, PLACES_LIST, READ_ONLY};

const REFERENCE: Base = Is(FIRST as u64);
const FLAGS: Kind = Of(
    &[
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        15,
        16,
        18,
        31,
        32,
        34,
        64,
        1 << 8,
        1 << 12,
        1 << 15,
        1 << 16,
        1 << 30,
        1 << 31,
        0xffff_ffff,
    ],
    &[0, 3, 0x8000_0000],
);
/// Frames and offsets of a copy.
const OFFSETS: Kind = Of(&[0, 1, 2047, 2048, 4095, 4096, 4097, 0x7fff, 0x8000, 0xffff], &[4095, 4096]);
/// Guest physical addresses where nothing is.
const ADDRESSES: Kind = Of(
    &[
        FREE << 12,
        FREE << 12 | 1,
        FREE << 12 | 0xfff,
        0,
        1,
        0x1000,
        (1 << 40) - 4096,
        1 << 48,
        1 << 52,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
    ],
    &[1, 1 << 48],
);
/// Those, and frames, that a domain of Pavo's cannot have.
const HIGH_ADDRESSES: Kind = Of(&[1 << 40, (1 << 44) - 4096, 1 << 44, (1 << 48) - 4096], &[]);
const HIGH_PLACES: Kind = Of(&[1 << 28, (1 << 32) - 1, 1 << 32, (1 << 36) - 1], &[]);
/// As [`Out`]: what no call writes.
const UNWRITTEN: Base = Is(0x9999_9999);
const COUNTS: Kind =
    Of(&[0, 1, 1 << 32, 1 << 32 | 1, 1 << 63, 0x8000_0000, 0xffff_ffff, u64::MAX], &[0, 0x8000_0000]);
/// Lists of frames. None is off its alignment: of frames that cannot be there Xen loses the pages that it had for them.
const EXTENTS: Kind = Of(
    &[
        PLACES_LIST,
        OUT_LIST,
        END - 8,
        END - 4,
        END,
        READ_ONLY + 0xb00,
        0,
        NOWHERE,
        1 << 47,
        1 << 48,
        1 << 63,
        u64::MAX,
    ],
    &[PLACES_LIST, NOWHERE],
);
/// As many as lists name, and more than a call takes.
const NUMBERS: Kind = Of(
    &[0, 1, 2, 7, 8, 1 << 26, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 52, 1 << 63, u64::MAX],
    &[3, 1 << 26],
);

const ORDERS: Kind = Of(&[0, 1, 2, 3, 9, 10, 11, 18, 31, 32, 63, 64, 0x7fff_ffff, 0xffff_ffff], &[1, 10]);
const MEM_FLAGS: [u64; 17] = [
    0,
    1,
    12,
    32,
    40,
    64,
    255,
    1 << 8,
    2 << 8,
    255 << 8,
    1 << 16,
    1 << 17,
    1 << 17 | 1 << 8,
    1 << 17 | 2 << 8,
    1 << 18,
    1 << 31,
    0xffff_ffff,
];

const fn grant(
    name: &'static str,
    cmd: u64,
    size: usize,
    status: Option<usize>,
    state: State,
    fields: &'static [Field],
) -> Op {
    Op { x: [cmd, 0, 1, 0, 0], status, ..other(name, 20, cmd, size, state, fields) }
}

const fn memory(name: &'static str, cmd: u64, size: usize, state: State, fields: &'static [Field]) -> Op {
    other(name, 12, cmd, size, state, fields)
}

const fn counted(name: &'static str, cmd: u64, size: usize, fields: &'static [Field]) -> Op {
    told(name, 12, cmd, size, fields)
}

macro_rules! copies {
    ($($name:literal: $from:expr, $whose:expr, $source:expr, $to:expr, $theirs:expr, $dest:expr, $flags:literal;)*) => {
        ops! { $(
            grant $name (5, 40, Some(36), Granted) {
                "source" At(0, 8) $from, $source;
                "source.domid" At(8, 2) $whose, Domain;
                "source.offset" At(10, 2) NONE, OFFSETS;
                "dest" At(16, 8) $to, $dest;
                "dest.domid" At(24, 2) $theirs, Domain;
                "dest.offset" At(26, 2) NONE, OFFSETS;
                "len" At(32, 2) Is(64), OFFSETS;
                "flags" At(34, 2) Is($flags), Of(&[0, 1, 2, 3, 4, 8, 0x10, 0x8000, 0xffff], &[4, 0xffff]);
                "count" X(2) Is(1), COUNTS;
            }
        )* }
    };
}

/// By reference and by frame, both ways.
pub(crate) const COPIES: &[Op] = copies! {
    "grant_table_op.copy of frames": Page, SELF, Free, Page, SELF, Free, 0;
    "grant_table_op.copy from a reference": REFERENCE, OWN, Reference, Page, SELF, Free, 1;
    "grant_table_op.copy to a reference": Page, SELF, Free, REFERENCE, OWN, Reference, 2;
    "grant_table_op.copy between references": REFERENCE, OWN, Reference, REFERENCE, OWN, Reference, 3;
};

/// Grants.
pub(crate) const GRANTS: &[Op] = ops! {
    grant "grant_table_op.map_grant_ref" (0, 32, Some(18), Granted) {
        "handle" At(20, 4) UNWRITTEN, Out;
        "host_addr beyond 40 bits" At(0, 8) Is(FREE << 12), HIGH_ADDRESSES;
        "host_addr" At(0, 8) Is(FREE << 12), ADDRESSES;
        "flags" At(8, 4) Is(2), FLAGS;
        "ref" At(12, 4) REFERENCE, Reference;
        "dom" At(16, 2) OWN, Domain;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.map_grant_ref for reading" (0, 32, Some(18), Granted) {
        "handle" At(20, 4) UNWRITTEN, Out;
        "host_addr beyond 40 bits" At(0, 8) Is(FREE << 12), HIGH_ADDRESSES;
        "host_addr" At(0, 8) Is(FREE << 12), ADDRESSES;
        "flags" At(8, 4) Is(6), FLAGS;
        "ref" At(12, 4) REFERENCE, Reference;
        "dom" At(16, 2) OWN, Domain;
    }
    grant "grant_table_op.unmap_grant_ref" (1, 24, Some(20), Mapped) {
        "host_addr of another page" At(0, 8) Is(FREE << 12), Of(&[(FREE - 1) << 12], &[]);
        "host_addr" At(0, 8) Is(FREE << 12), Of(&[FREE << 12, FREE << 12 | 1, FREE << 12 | 0xfff, 0], &[0]);
        "dev_bus_addr" At(8, 8) NONE, Any;
        "handle" At(16, 4) NONE, Handle;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.setup_table" (2, 24, Some(8), Nothing) {
        "dom" At(0, 2) SELF, Domain;
        "nr_frames" At(4, 4) Is(1), Of(&[0, 1, 2, 63, 64, 65, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff], &[0, 64, 65]);
        "frame_list" At(16, 8) Is(OUT_LIST), List;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.dump_table" (3, 8, Some(4), Nothing) {
        "dom" At(0, 2) SELF, Domain;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.transfer" (4, 24, Some(16), Nothing) {
        "domid" At(8, 2) SELF, Domain;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.query_size" (6, 16, Some(12), Nothing) {
        "dom" At(0, 2) SELF, Domain;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.unmap_and_replace" (7, 24, Some(20), Mapped) {
        "host_addr" At(0, 8) Is(FREE << 12), Of(&[FREE << 12, 0], &[0]);
        "new_addr" At(8, 8) NONE, Any;
        "handle" At(16, 4) NONE, Handle;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.set_version" (8, 4, None, Nothing) {
        "version" At(0, 4) Is(1), Any;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.get_status_frames" (9, 16, Some(6), Nothing) {
        "nr_frames" At(0, 4) NONE, Any;
        "dom" At(4, 2) SELF, Domain;
        "frame_list" At(8, 8) Is(OUT_LIST), List;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.get_version" (10, 8, None, Nothing) {
        "dom" At(0, 2) SELF, Domain;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.swap_grant_ref" (11, 12, Some(8), Granted) {
        "ref_a" At(0, 4) REFERENCE, Reference;
        "ref_b" At(4, 4) Is(FIRST as u64 + 1), Reference;
        "count" X(2) Is(1), COUNTS;
    }
    grant "grant_table_op.cache_flush" (12, 16, None, Granted) {
        "ref" At(0, 8) REFERENCE, Of(&[
            FIRST as u64, FIRST as u64 + 1, FIRST as u64 + 2, FIRST as u64 + 6, 0, 8, 32768, 0xffff_ffff, 1 << 32 | FIRST as u64,
            u64::MAX
        ], &[FIRST as u64 + 2, 32768],);
        "offset" At(8, 2) NONE, OFFSETS;
        "length" At(10, 2) Is(64), OFFSETS;
        "op" At(12, 4) Is(1 | 1 << 31), Of(&[
            0, 1, 2, 3, 4, 5, 1 << 31, 1 | 1 << 31, 2 | 1 << 31, 3 | 1 << 31, 4 | 1 << 31, 7 | 1 << 31, 1 << 30, 0xffff_ffff
        ], &[0, 4, 4 | 1 << 31],);
        "count" X(2) Is(1), COUNTS;
    }
};

/// Memory.
pub(crate) const MEMORY: &[Op] = ops! {
    memory "memory_op.increase_reservation" (0, 32, Nothing) {
        "progress" X(0) Is(0), Progress;
        "extent_start" At(0, 8) Is(PAGES_LIST), EXTENTS;
        "nr_extents" At(8, 8) Is(1), NUMBERS;
        "extent_order" At(16, 4) NONE, ORDERS;
        "mem_flags for low addresses" At(20, 4) NONE, Of(&[13, 20, 24], &[]);
        "mem_flags" At(20, 4) NONE, Of(&MEM_FLAGS, &[12, 1 << 17 | 2 << 8]);
        "domid" At(24, 2) SELF, Domain;
    }
    memory "memory_op.decrease_reservation" (1, 32, Had) {
        "progress" X(0) Is(1), Progress;
        "extent_start" At(0, 8) Is(PAGES_LIST), EXTENTS;
        "nr_extents" At(8, 8) Is(1), NUMBERS;
        "extent_order" At(16, 4) NONE, ORDERS;
        "mem_flags for low addresses" At(20, 4) NONE, Of(&[13, 20, 24], &[]);
        "mem_flags" At(20, 4) NONE, Of(&MEM_FLAGS, &[12, 1 << 17 | 2 << 8]);
        "domid" At(24, 2) SELF, Domain;
    }
    memory "memory_op.populate_physmap" (6, 32, Given) {
        "progress" X(0) Is(6), Progress;
        "extent_start" At(0, 8) Is(PAGES_LIST), EXTENTS;
        "nr_extents" At(8, 8) Is(1), NUMBERS;
        "extent_order" At(16, 4) NONE, ORDERS;
        "mem_flags for low addresses" At(20, 4) NONE, Of(&[13, 20, 24], &[]);
        "mem_flags" At(20, 4) NONE, Of(&MEM_FLAGS, &[12, 1 << 17 | 2 << 8]);
        "domid" At(24, 2) SELF, Domain;
    }
    counted "memory_op.maximum_ram_page" (2, 2) {
        "progress" X(0) Is(2), Progress;
    }
    counted "memory_op.current_reservation" (3, 2) {
        "progress" X(0) Is(3), Progress;
        "domid" At(0, 2) SELF, Domain;
    }
    counted "memory_op.maximum_reservation" (4, 2) {
        "progress" X(0) Is(4), Progress;
        "domid" At(0, 2) SELF, Domain;
    }
    counted "memory_op.maximum_gpfn" (14, 2) {
        "progress" X(0) Is(14), Progress;
        "domid" At(0, 2) SELF, Domain;
    }
    memory "memory_op.get_sharing_freed_pages" (18, 2, Nothing) {
        "progress" X(0) Is(18), Progress;
    }
    memory "memory_op.get_sharing_shared_pages" (19, 2, Nothing) {
        "progress" X(0) Is(19), Progress;
    }
    memory "memory_op.add_to_physmap" (7, 24, Granted) {
        "progress" X(0) Is(7), Progress;
        "domid" At(0, 2) SELF, Domain;
        "size" At(2, 2) NONE, Any;
        "space" At(4, 4) Is(1), Of(&[0, 1, 2, 3, 4, 5, 6, 7, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff], &[0, 2, 4, 5, 6]);
        "idx" At(8, 8) Is(20), Any;
        "gpfn beyond 40 bits" At(16, 8) Is(FREE), HIGH_PLACES;
        "gpfn" At(16, 8) Is(FREE), Free;
    }
    memory "memory_op.add_to_physmap_batch" (23, 32, Granted) {
        "progress" X(0) Is(23), Progress;
        "domid" At(0, 2) SELF, Domain;
        "space" At(2, 2) Is(1), Of(&[0, 1, 2, 3, 4, 5, 6, 7, 0x7fff, 0x8000, 0xffff], &[0, 2, 3, 4, 5, 6]);
        "size" At(4, 2) Is(2), Any;
        "foreign_domid" At(6, 2) NONE, Domain;
        "idxs" At(8, 8) Is(INDEX_LIST), List;
        "gpfns" At(16, 8) Is(PLACES_LIST), List;
        "errs" At(24, 8) Is(OUT_LIST), List;
    }
    memory "memory_op.remove_from_physmap" (15, 16, Placed) {
        "progress" X(0) Is(15), Progress;
        "domid" At(0, 2) SELF, Domain;
        "gpfn" At(8, 8) Is(FREE), Free;
    }
    memory "memory_op.exchange" (11, 72, Nothing) {
        "progress" X(0) Is(11), Progress;
        "in.extent_start" At(0, 8) Is(PAGES_LIST), List;
        "in.nr_extents" At(8, 8) Is(1), Any;
        "in.extent_order" At(16, 4) NONE, Any;
        "in.mem_flags" At(20, 4) NONE, Of(&MEM_FLAGS, &[12]);
        "in.domid" At(24, 2) SELF, Domain;
        "out.extent_start" At(32, 8) Is(PAGES_LIST), List;
        "out.nr_extents" At(40, 8) Is(1), Any;
        "out.extent_order" At(48, 4) NONE, Any;
        "out.mem_flags" At(52, 4) NONE, Of(&MEM_FLAGS, &[12]);
        "out.domid" At(56, 2) SELF, Domain;
        "nr_exchanged" At(64, 8) NONE, Any;
    }
    memory "memory_op.claim_pages" (24, 32, Nothing) {
        "progress" X(0) Is(24), Progress;
        "extent_start" At(0, 8) NONE, Of(&[0, PAGES_LIST, NOWHERE], &[PAGES_LIST]);
        "nr_extents" At(8, 8) Is(1), Any;
        "extent_order" At(16, 4) NONE, Any;
        "mem_flags" At(20, 4) NONE, Any;
        "domid" At(24, 2) OWN, Domain;
    }
    memory "memory_op.get_vnumainfo" (26, 40, Nothing) {
        "progress" X(0) Is(26), Progress;
        "domid" At(0, 2) SELF, Domain;
        "pad" At(2, 2) NONE, Any;
        "nr_vnodes" At(4, 4) NONE, Any;
    }
    memory "memory_op.reserved_device_memory_map" (27, 24, Nothing) {
        "progress" X(0) Is(27), Progress;
        "flags" At(0, 4) Is(1), Any;
        "nr_entries" At(4, 4) Is(4), Any;
        "buffer" At(8, 8) Is(OUT_LIST), List;
        "seg" At(16, 4) NONE, Any;
    }
    memory "memory_op.acquire_resource" (28, 32, Nothing) {
        "progress" X(0) Is(28), Progress;
        "domid" At(0, 2) OWN, Domain;
        "type" At(2, 2) Is(1), Any;
        "id" At(4, 4) NONE, Any;
        "nr_frames" At(8, 4) Is(1), Any;
        "pad" At(12, 4) NONE, Any;
        "frame" At(16, 8) NONE, Any;
        "frame_list" At(24, 8) Is(PLACES_LIST), List;
    }
};
