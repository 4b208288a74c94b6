//! No access and no value does more than its register says.

use super::machine::Machine;
use super::random::Random;
use crate::vgic::{Access, AccessSize, Frame, Handling, Layout};

const SIZES: [(AccessSize, u64); 4] =
    [(AccessSize::Byte, 1), (AccessSize::Half, 2), (AccessSize::Word, 4), (AccessSize::Double, 8)];

/// Every byte offset of both frames, every size, aligned or not, several values: an access that is not aligned or has a
/// width that only 64-bit registers have is refused elsewhere, values fit their width, and nothing panics.
#[test]
fn every_offset_of_every_frame_takes_every_width_and_value() {
    let frames = [
        (Frame::Distributor, 0x1_0000, Layout::V3),
        (Frame::Redistributor, 0x6_0000, Layout::V3),
        (Frame::DistributorV2, 0x1000, Layout::V2),
    ];
    for (frame, size_of_frame, layout) in frames {
        let mut m = Machine::new(2, 64, layout, 4);
        if layout == Layout::V3 {
            m.enable_all(0xa0);
        }
        for offset in 0..size_of_frame + 16 {
            for (size, bytes) in SIZES {
                let access = Access { frame, offset, size };
                for value in [0, u64::MAX, 1 << (offset % 64)] {
                    let written = m.access(0, access, value);
                    let read = m.read_as(0, access);
                    assert_eq!(read.handling, written.handling);
                    if read.handling == Handling::Unhandled {
                        assert_eq!(read.value, 0);
                        assert!(written.kick.is_empty() && written.serviced.is_none());
                    } else {
                        assert_eq!(offset % bytes, 0, "{access:?}");
                        assert_ne!(size, AccessSize::Half);
                    }
                    if bytes < 8 {
                        assert_eq!(read.value >> (8 * bytes), 0, "{access:?}");
                    }
                }
            }
        }
        m.settle();
    }
}

#[test]
fn offsets_at_the_end_of_the_address_space_are_nowhere() {
    let mut m = Machine::new(1, 32, Layout::V3, 4);
    for frame in [Frame::Distributor, Frame::Redistributor, Frame::DistributorV2] {
        for offset in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 1 << 32 | 0x100, 0x1_0000_0000_0004] {
            for (size, _) in SIZES {
                let access = Access { frame, offset, size };
                assert_eq!(m.read_as(0, access).handling, Handling::Unhandled, "{access:?}");
                assert_eq!(m.access(0, access, u64::MAX).handling, Handling::Unhandled);
            }
        }
    }
}

/// Writes to one vCPU's redistributor leave every other register of every other vCPU as it was.
#[test]
fn redistributor_writes_change_only_the_vcpu_they_name() {
    let mut m = Machine::new(3, 0, Layout::V3, 4);
    let mut random = Random::new(7);
    let before: Vec<u64> = snapshot(&mut m);
    for offset in (0x2_0000..0x4_0000).step_by(4) {
        m.write(0, Frame::Redistributor, offset, random.next());
    }
    assert_eq!(snapshot(&mut m), before);
}

fn snapshot(m: &mut Machine) -> Vec<u64> {
    let offsets = |n: u64| (0x1_0000..0x1_1000).step_by(4).map(move |offset| n * 0x2_0000 + offset);
    offsets(0).chain(offsets(2)).map(|offset| m.read(0, Frame::Redistributor, offset)).collect()
}

#[test]
fn a_vcpu_that_is_not_in_the_slice_is_left_alone() {
    let mut m = Machine::new(4, 32, Layout::V3, 4);
    m.shared.truncate(1);
    m.gics.truncate(1);
    m.write(0, Frame::Distributor, 0, 2);
    m.write(0, Frame::Redistributor, 0x3_0100, 0xffff_ffff);
    m.write(0, Frame::Distributor, 0x6100, 3);
    m.write(0, Frame::Distributor, 0x104, 1);
    m.raise_spi(0);
    assert_eq!(m.acknowledge(0), None);
}
