//! Decoding of SGI targets.

use super::machine::{private, vcpu};
use crate::vgic::{Sgi, VcpuMask, decode_sgi1r};

fn targets(value: u64, sender: usize, vcpus: usize) -> u32 {
    decode_sgi1r(value, vcpu(sender), vcpus).targets.bits()
}

#[test]
fn target_list_names_vcpus_by_affinity_0() {
    assert_eq!(
        decode_sgi1r(5 << 24 | 0b1010, vcpu(0), 4),
        Sgi { intid: private(5), targets: VcpuMask::only(vcpu(1)).with(vcpu(3)) }
    );
    assert_eq!(targets(0xffff, 3, 16), 0xffff);
}

#[test]
fn targets_that_do_not_exist_are_left_out() {
    assert_eq!(targets(0xffff, 0, 3), 0b111);
    for garbage in [1 << 16, 0xff << 16, 1 << 32, 1 << 44, 0xf << 44, 1 << 48, 0xff << 48] {
        assert_eq!(targets(garbage | 0xffff, 0, 16), 0, "{garbage:#x}");
    }
}

#[test]
fn routing_to_all_leaves_out_the_sender_and_ignores_the_list() {
    assert_eq!(targets(1 << 40, 2, 4), 0b1011);
    assert_eq!(targets(1 << 40 | 0xff << 48 | 0xffff, 0, 1), 0);
}

#[test]
fn no_value_names_a_vcpu_outside_the_domain() {
    for vcpus in [1, 2, 7, 16] {
        for bit in 0..64 {
            for other in 0..64 {
                let value = 1 << bit | 1 << other | 0xffff;
                let sgi = decode_sgi1r(value, vcpu(0), vcpus);
                assert_eq!(sgi.targets.bits() >> vcpus, 0);
                assert!(sgi.intid.number() < 16);
            }
        }
    }
}
