//! List register layouts, against values worked out from the architecture's field tables.

use crate::vgic::{
    Backing, Group, Layout, ListRegister, ListRegisters, LrState, ParkedLrs, VcpuGic, VcpuNumber,
};

const TIMER: ListRegister = ListRegister {
    intid: 27,
    priority: 0xa0,
    group: Group::One,
    state: LrState::Pending,
    backing: Backing::Hardware(27),
    sender: 0,
};

#[test]
fn v3_fields_are_where_ich_lr_el2_has_them() {
    // State 0b01, HW, Group 1, priority 0xa0, pINTID 27, vINTID 27.
    assert_eq!(TIMER.encode_v3(), 0x70a0_001b_0000_001b);
    let uart = ListRegister { intid: 32, priority: 0x48, backing: Backing::SoftwareNotify, ..TIMER };
    // State 0b01, Group 1, EOI is bit 41.
    assert_eq!(uart.encode_v3(), 0x5048_0200_0000_0020);
    let idle =
        ListRegister { state: LrState::Inactive, group: Group::Zero, backing: Backing::Software, ..TIMER };
    assert_eq!(idle.encode_v3(), 0x00a0_0000_0000_001b);
}

#[test]
fn v2_fields_are_where_gich_lr_has_them() {
    // HW 31, Grp1 30, State 29:28, Priority 0xa0 >> 3 at 27:23, PhysicalID 19:10, VirtualID 9:0.
    assert_eq!(TIMER.encode_v2(), 1 << 31 | 1 << 30 | 1 << 28 | 0x14 << 23 | 0x1b << 10 | 0x1b);
    let uart = ListRegister { intid: 32, priority: 0x48, backing: Backing::SoftwareNotify, ..TIMER };
    assert_eq!(uart.encode_v2(), 1 << 30 | 1 << 28 | 9 << 23 | 1 << 19 | 0x20);
}

#[test]
fn v2_names_the_sender_of_a_sgi_where_gicc_iar_has_it() {
    // CPUID 12:10, beside EOI 19; with HW the field is the physical INTID's.
    let sgi = ListRegister { intid: 3, backing: Backing::Software, sender: 5, ..TIMER };
    assert_eq!(sgi.encode_v2(), 1 << 30 | 1 << 28 | 0x14 << 23 | 5 << 10 | 3);
    let notify = ListRegister { backing: Backing::SoftwareNotify, ..sgi };
    assert_eq!(notify.encode_v2(), sgi.encode_v2() | 1 << 19);
    for sender in 0..8 {
        for backing in [Backing::Software, Backing::SoftwareNotify] {
            let lr = ListRegister { backing, sender, ..sgi };
            assert_eq!(Layout::V2.decode(Layout::V2.encode(lr)), lr);
        }
    }
    assert_eq!(Layout::V2.decode(u64::from(TIMER.encode_v2())).sender, 0);
}

#[test]
fn guests_take_irqs_of_the_group_that_their_cpu_interface_enables() {
    assert_eq!((Layout::V2.group(), Layout::V3.group()), (Group::Zero, Group::One));
}

#[test]
fn every_meaning_survives_both_layouts() {
    for layout in [Layout::V2, Layout::V3] {
        for intid in [0, 15, 31, 32, 287] {
            for priority in [0, 8, 0xa0, 0xf8] {
                for group in [Group::Zero, Group::One] {
                    for state in
                        [LrState::Inactive, LrState::Pending, LrState::Active, LrState::PendingActive]
                    {
                        for backing in [
                            Backing::Software,
                            Backing::SoftwareNotify,
                            Backing::Hardware(0),
                            Backing::Hardware(1019),
                        ] {
                            let lr = ListRegister { intid, priority, group, state, backing, sender: 0 };
                            let raw = layout.encode(lr);
                            assert_eq!(layout.decode(raw), lr);
                            assert_eq!(layout.state(raw), state);
                            let ended = layout.with_state(raw, LrState::Active);
                            assert_eq!(layout.decode(ended), ListRegister { state: LrState::Active, ..lr });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn parked_registers_beyond_the_count_are_not_empty() {
    let gic = VcpuGic::new(VcpuNumber::BOOT, Layout::V3, 4);
    let mut parked: ParkedLrs = *gic.parked();
    assert_eq!(parked.empty_mask(), 0b1111);
    parked.write(1, TIMER.encode_v3());
    parked.write(
        2,
        ListRegister { state: LrState::Inactive, backing: Backing::SoftwareNotify, ..TIMER }.encode_v3(),
    );
    assert_eq!(parked.empty_mask(), 0b1001);
    parked.write(99, 1);
    assert_eq!(parked.read(99), 0);
}
