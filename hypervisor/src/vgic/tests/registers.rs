//! Register contents, from IHI 0069 and what Xen 4.20 answers.

use super::machine::Machine;
use crate::vgic::{Access, AccessSize, Frame, Handling};

const DIST: Frame = Frame::Distributor;
const REDIST: Frame = Frame::Redistributor;

#[test]
fn the_distributor_identifies_itself_as_in_xen() {
    let mut m = Machine::new(3, 256, crate::vgic::Layout::V3, 4);
    assert_eq!(m.read(0, DIST, 0), 0x10);
    // 8 words of SPIs, 3 CPUs, 10 bits of INTID.
    assert_eq!(m.read(0, DIST, 4), 8 | 2 << 5 | 9 << 19);
    assert_eq!(m.read(0, DIST, 8), 0x34c);
    assert_eq!(m.read(0, DIST, 0xffe8), 0x30);
}

#[test]
fn the_number_of_interrupts_follows_the_domain() {
    for (spis, lines) in [(0, 0), (1, 1), (32, 1), (33, 2), (256, 8), (4096, 8)] {
        let mut m = Machine::new(1, spis, crate::vgic::Layout::V3, 4);
        assert_eq!(m.read(0, DIST, 4) & 0x1f, lines);
    }
    let mut m = Machine::new(16, 0, crate::vgic::Layout::V3, 4);
    assert_eq!(m.read(0, DIST, 4) >> 5 & 7, 7);
}

#[test]
fn only_the_group_1_enable_can_be_changed_in_ctlr() {
    let mut m = Machine::new(1, 0, crate::vgic::Layout::V3, 4);
    m.write(0, DIST, 0, 0xffff_ffff);
    assert_eq!(m.read(0, DIST, 0), 0x12);
    m.write(0, DIST, 0, 0);
    assert_eq!(m.read(0, DIST, 0), 0x10);
}

#[test]
fn each_redistributor_has_its_affinity_and_only_the_last_says_so() {
    let mut m = Machine::new(3, 0, crate::vgic::Layout::V3, 4);
    for n in 0..3_u64 {
        let typer = Access { frame: REDIST, offset: n * 0x2_0000 + 8, size: AccessSize::Double };
        let last = if n == 2 { 0x10 } else { 0 };
        assert_eq!(m.read_as(0, typer).value, n << 32 | n << 8 | last);
        assert_eq!(m.read(0, REDIST, n * 0x2_0000 + 12), n);
        assert_eq!(m.read(0, REDIST, n * 0x2_0000 + 0xffe8), 0x30);
        assert_eq!(m.read(0, REDIST, n * 0x2_0000 + 4), 0x34c);
    }
    let beyond = Access { frame: REDIST, offset: 3 * 0x2_0000 + 8, size: AccessSize::Double };
    assert_eq!(m.read_as(0, beyond).handling, Handling::Unhandled);
}

#[test]
fn a_redistributor_is_awake_whatever_is_written() {
    let mut m = Machine::new(1, 0, crate::vgic::Layout::V3, 4);
    m.write(0, REDIST, 0x14, 0xffff_ffff);
    assert_eq!(m.read(0, REDIST, 0x14), 0);
}

#[test]
fn enables_are_set_and_cleared_bit_by_bit() {
    let mut m = Machine::new(2, 32, crate::vgic::Layout::V3, 4);
    m.write(0, REDIST, 0x3_0100, 0xf0f0);
    m.write(0, REDIST, 0x3_0180, 0x8010);
    assert_eq!(m.read(0, REDIST, 0x3_0100), 0x70e0);
    assert_eq!(m.read(0, REDIST, 0x3_0180), 0x70e0);
    assert_eq!(m.read(0, REDIST, 0x1_0100), 0);
    // Through the distributor each vCPU sees its own.
    assert_eq!(m.read(1, DIST, 0x100), 0x70e0);
    assert_eq!(m.read(0, DIST, 0x100), 0);
    m.write(0, DIST, 0x104, 0x8000_0001);
    assert_eq!(m.read(1, DIST, 0x184), 0x8000_0001);
    m.write(0, DIST, 0x108, 0xffff_ffff);
    assert_eq!(m.read(0, DIST, 0x108), 0, "the domain has one word of SPIs");
}

#[test]
fn priorities_are_bytes_and_words() {
    let mut m = Machine::new(1, 32, crate::vgic::Layout::V3, 4);
    for (frame, base) in [(REDIST, 0x1_0400), (DIST, 0x420)] {
        m.write(0, frame, base + 4, 0x4433_2211);
        let byte = Access { frame, offset: base + 6, size: AccessSize::Byte };
        assert_eq!(m.read_as(0, byte).value, 0x33);
        let _ = m.access(0, byte, 0xaa);
        assert_eq!(m.read(0, frame, base + 4), 0x44aa_2211);
        let half = Access { frame, offset: base + 4, size: AccessSize::Half };
        assert_eq!(m.read_as(0, half).handling, Handling::Unhandled);
    }
    m.write(0, DIST, 0x440, 0xffff_ffff);
    assert_eq!(m.read(0, DIST, 0x440), 0);
}

#[test]
fn sgis_stay_edge_triggered_and_ppis_can_be_configured() {
    let mut m = Machine::new(1, 32, crate::vgic::Layout::V3, 4);
    m.write(0, REDIST, 0x1_0c00, 0);
    assert_eq!(m.read(0, REDIST, 0x1_0c00), 0xaaaa_aaaa);
    assert_eq!(m.read(0, REDIST, 0x1_0c04), 0);
    m.write(0, REDIST, 0x1_0c04, 0xc000_0003);
    assert_eq!(m.read(0, REDIST, 0x1_0c04), 0x8000_0002);
    // SPIs 16 to 31 are in ICFGR3.
    m.write(0, DIST, 0xc0c, 0x0000_0008);
    assert_eq!((m.read(0, DIST, 0xc08), m.read(0, DIST, 0xc0c)), (0, 8));
}

#[test]
fn routes_are_affinities_and_a_bad_one_is_ignored() {
    let mut m = Machine::new(3, 32, crate::vgic::Layout::V3, 4);
    let route = Access { frame: DIST, offset: 0x6000 + 33 * 8, size: AccessSize::Double };
    let _ = m.access(0, route, 2);
    assert_eq!(m.read_as(0, route).value, 2);
    for bad in [3, 16, 0x100, 1 << 16, 1 << 32 | 2, !(1 << 31)] {
        let _ = m.access(0, route, bad);
        assert_eq!(m.read_as(0, route).value, 2, "{bad:#x}");
    }
    m.write(0, DIST, 0x6000 + 33 * 8, 1);
    m.write(0, DIST, 0x6004 + 33 * 8, 0);
    assert_eq!(m.read(0, DIST, 0x6000 + 33 * 8), 1);
    // Any vCPU: the first.
    let _ = m.access(0, route, 1 << 31);
    assert_eq!(m.read_as(0, route).value, 0);
    let beyond = Access { frame: DIST, offset: 0x6000 + 64 * 8, size: AccessSize::Double };
    let _ = m.access(0, beyond, 1);
    assert_eq!(m.read_as(0, beyond).value, 0);
}

#[test]
fn groups_read_as_zero() {
    let mut m = Machine::new(1, 32, crate::vgic::Layout::V3, 4);
    for offset in [0x80, 0x84, 0xd00, 0xe00] {
        let written = m.write(0, DIST, offset, 0xffff_ffff);
        assert_eq!(written.handling, Handling::Handled);
        assert_eq!(m.read(0, DIST, offset), 0);
    }
}

#[test]
fn what_is_not_there_reads_as_zero_and_is_reported() {
    let mut m = Machine::new(1, 32, crate::vgic::Layout::V3, 4);
    for offset in [0xc, 0x18, 0x40, 0x800, 0xf10, 0x3700, 0x8000, 0xffd0] {
        let access = Access { frame: DIST, offset, size: AccessSize::Word };
        let read = m.read_as(0, access);
        assert_eq!((read.value, read.handling), (0, Handling::Unhandled), "{offset:#x}");
        assert_eq!(m.access(0, access, 1).handling, Handling::Unhandled);
    }
}

#[test]
fn a_write_names_the_vcpus_to_kick_and_never_the_writer() {
    let mut m = Machine::running(3, 32);
    let enable = Access { frame: REDIST, offset: 0x3_0180, size: AccessSize::Word };
    let written = m.access(0, enable, 1);
    assert_eq!((written.kick.bits(), written.serviced), (0b010, None));
    let own = m.access(1, enable, 2);
    assert!(own.kick.is_empty() && own.serviced.is_some());
    let ctlr = Access { frame: DIST, offset: 0, size: AccessSize::Word };
    assert_eq!(m.access(2, ctlr, 0).kick.bits(), 0b011);
}
