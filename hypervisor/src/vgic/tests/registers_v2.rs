//! Contents of a `GICv2`'s distributor, from IHI 0048 and what Xen 4.20 answers.

use super::machine::{Machine, private, vcpu};
use crate::vgic::{Access, AccessSize, Frame, Handling, Layout, Sgi, Spi, VcpuMask, decode_sgir};

const DIST: Frame = Frame::DistributorV2;

fn byte(offset: u64) -> Access {
    Access { frame: DIST, offset, size: AccessSize::Byte }
}

#[test]
fn the_distributor_identifies_itself_as_in_xen() {
    let mut m = Machine::new(3, 256, Layout::V2, 4);
    // 8 words of SPIs, 3 CPUs, no security extensions; an Arm part with a JEP106 code, architecture 2.
    assert_eq!(m.read(0, DIST, 4), 8 | 2 << 5);
    assert_eq!(m.read(0, DIST, 8), 0x43b);
    assert_eq!(m.read(0, DIST, 0xfe8) >> 4, 2);
    for (vcpus, field) in [(1, 0), (2, 1), (8, 7), (16, 7)] {
        let mut m = Machine::new(vcpus, 0, Layout::V2, 4);
        assert_eq!(m.read(0, DIST, 4), field << 5);
    }
}

#[test]
fn only_the_enable_bit_of_ctlr_is_kept_and_it_gates_delivery() {
    let mut m = Machine::running_v2(1, 32);
    m.write(0, DIST, 0, 0xffff_fffe);
    assert_eq!(m.read(0, DIST, 0), 0);
    let _ = m.raise(0, 20);
    assert_eq!(m.acknowledge(0), None);
    m.write(0, DIST, 0, 0xffff_ffff);
    assert_eq!(m.read(0, DIST, 0), 1);
    assert_eq!(m.acknowledge(0), Some(20));
}

#[test]
fn identification_registers_and_groups_cannot_be_written() {
    let mut m = Machine::running_v2(2, 32);
    for offset in [4, 8, 0xfe8, 0x80, 0x84] {
        let before = m.read(0, DIST, offset);
        assert_eq!(m.write(0, DIST, offset, 0xffff_ffff).handling, Handling::Handled);
        assert_eq!(m.read(0, DIST, offset), before);
    }
    assert_eq!(m.read(0, DIST, 0x80), 0, "all in group 0");
}

#[test]
fn targets_of_private_interrupts_are_the_reader_and_read_only() {
    let mut m = Machine::running_v2(3, 32);
    for me in 0..3 {
        for n in 0..8 {
            m.write(me, DIST, 0x800 + 4 * n, 0xffff_ffff);
            assert_eq!(m.read(me, DIST, 0x800 + 4 * n), 0x0101_0101 << me);
        }
        assert_eq!(m.read_as(me, byte(0x800 + 31)).value, 1 << me);
    }
}

#[test]
fn a_spi_has_one_target_the_lowest_that_exists() {
    let mut m = Machine::running_v2(3, 32);
    assert_eq!(m.read(0, DIST, 0x820), 0x0101_0101);
    // Bytes from the lowest: vCPU 1; 2 of 2 and 3; one that does not exist; none. The last two change nothing.
    m.write(0, DIST, 0x820, 0x00f8_0c02);
    assert_eq!(m.read(0, DIST, 0x820), 0x0101_0402);
    let _ = m.access(0, byte(0x822), 2);
    assert_eq!(m.read(0, DIST, 0x820), 0x0102_0402);
    assert_eq!(m.read_as(2, byte(0x821)).value, 4);
    assert_eq!(m.dist.route(Spi::new(1)), vcpu(2));
    // SPIs that the domain does not have.
    m.write(0, DIST, 0x840, 0x0202_0202);
    assert_eq!(m.read(0, DIST, 0x840), 0);
}

#[test]
fn a_spi_goes_where_its_target_says_and_moves_with_it() {
    let mut m = Machine::running_v2(2, 32);
    m.raise_spi(5);
    assert!(m.access(0, byte(0x825), 2).kick.contains(vcpu(1)));
    m.settle();
    assert_eq!((m.acknowledge(0), m.acknowledge(1)), (None, Some(37)));
}

#[test]
fn every_priority_is_a_byte_and_a_word_is_four_of_them() {
    let mut m = Machine::running_v2(2, 64);
    for intid in 0..96_u64 {
        let _ = m.access(1, byte(0x400 + intid), intid * 2 + 1);
    }
    for word in 0..24_u64 {
        let expected = (0..4).fold(0, |value, n| value | ((4 * word + n) * 2 + 1) << (8 * n));
        assert_eq!(m.read(1, DIST, 0x400 + 4 * word), expected);
        let other = m.read(0, DIST, 0x400 + 4 * word);
        assert_eq!(other, if word < 8 { 0xa0a0_a0a0 } else { expected }, "private ones are vCPU 1's own");
    }
}

#[test]
fn the_configuration_of_private_interrupts_is_fixed_and_that_of_spis_is_not() {
    let mut m = Machine::running_v2(1, 32);
    for offset in [0xc00, 0xc04, 0xc08] {
        m.write(0, DIST, offset, 0xffff_ffff);
    }
    assert_eq!(m.read(0, DIST, 0xc00), 0xaaaa_aaaa);
    assert_eq!(m.read(0, DIST, 0xc04), 0);
    assert_eq!(m.read(0, DIST, 0xc08), 0xaaaa_aaaa);
}

#[test]
fn pending_bits_of_sgis_are_read_only() {
    let mut m = Machine::running_v2(1, 32);
    m.write(0, DIST, 0x200, 0xffff);
    assert_eq!((m.read(0, DIST, 0x200), m.acknowledge(0)), (0, None));
    m.send(0, 2 << 24 | 3);
    m.write(0, DIST, 0x280, 0xffff);
    assert_eq!(m.read(0, DIST, 0x200), 1 << 3);
    m.write(0, DIST, 0x200, 1 << 20);
    assert_eq!(m.read(0, DIST, 0x280), 1 << 3 | 1 << 20);
    m.write(0, DIST, 0x280, 1 << 20);
    assert_eq!(m.read(0, DIST, 0x200), 1 << 3);
}

#[test]
fn only_bytes_and_words_reach_targets_priorities_and_senders() {
    let mut m = Machine::running_v2(1, 32);
    for (base, bytes) in [(0x400, 64), (0x800, 64), (0xf10, 16), (0xf20, 16)] {
        for offset in base..base + bytes {
            let handled = |m: &mut Machine, size| m.read_as(0, Access { frame: DIST, offset, size }).handling;
            assert_eq!(handled(&mut m, AccessSize::Byte), Handling::Handled);
            let aligned = if offset % 4 == 0 { Handling::Handled } else { Handling::Unhandled };
            assert_eq!(handled(&mut m, AccessSize::Word), aligned, "{offset:#x}");
            assert_eq!(handled(&mut m, AccessSize::Half), Handling::Unhandled);
            assert_eq!(handled(&mut m, AccessSize::Double), Handling::Unhandled);
        }
    }
}

#[test]
fn sgir_is_told_from_its_neighbours() {
    for (offset, size, is) in [
        (0xf00, AccessSize::Word, true),
        (0xf00, AccessSize::Byte, false),
        (0xf04, AccessSize::Word, false),
        (0xefc, AccessSize::Word, false),
    ] {
        assert_eq!(Access { frame: DIST, offset, size }.is_sgir(), is);
        assert!(!Access { frame: Frame::Distributor, offset, size }.is_sgir());
    }
}

#[test]
fn sgir_filters_choose_list_others_self_or_nobody() {
    let targets = |value, sender: usize, vcpus| decode_sgir(value, vcpu(sender), vcpus).targets.bits();
    // List 0b1101_0110 of four vCPUs, the sender may be in it; NSATT and reserved bits say nothing.
    assert_eq!(targets(0xd6 << 16 | 0xfc00_fff0, 1, 4), 0b0110);
    assert_eq!(targets(1 << 24 | 0xff << 16, 1, 4), 0b1101);
    assert_eq!(targets(2 << 24 | 0xff << 16, 1, 4), 0b0010);
    assert_eq!(targets(3 << 24 | 0xff << 16, 1, 4), 0);
    assert_eq!(targets(0xff << 16, 7, 8), 0xff);
    assert_eq!(
        decode_sgir(2 << 24 | 9, vcpu(0), 1),
        Sgi { intid: private(9), targets: VcpuMask::only(vcpu(0)) }
    );
}
