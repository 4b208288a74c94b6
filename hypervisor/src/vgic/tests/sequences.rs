//! What a guest sees, step by step.

use super::machine::{Machine, private, vcpu};
use crate::vgic::{Access, AccessSize, Backing, Frame, Layout, Line, LrState, Maintenance, Raised};

#[test]
fn a_raised_ppi_is_delivered_once() {
    let mut m = Machine::running(1, 0);
    assert_eq!(m.raise(0, 31), Raised::Placed);
    assert!(m.has_deliverable(0, 0xff));
    assert_eq!(m.acknowledge(0), Some(31));
    assert_eq!(m.acknowledge(0), None);
    assert!(!m.has_deliverable(0, 0xff));
    m.end(0, 31);
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn raising_a_ppi_again_and_again_costs_one_list_register_access_each() {
    let mut m = Machine::running(1, 0);
    let _ = m.raise(0, 31);
    for _ in 0..5 {
        m.acknowledge(0);
        m.end(0, 31);
        m.cpus[0].reads.set(0);
        m.cpus[0].writes = 0;
        let shared = &m.shared[0];
        assert_eq!(m.gics[0].raise(private(31), shared, &mut m.cpus[0]), Raised::Placed);
        assert_eq!((m.cpus[0].reads.get(), m.cpus[0].writes), (1, 1));
    }
}

#[test]
fn raises_are_short_again_after_a_service() {
    let mut m = Machine::running(1, 0);
    for irq in 16..22 {
        let _ = m.raise(0, irq);
    }
    assert_eq!(m.raise(0, 31), Raised::NeedsService);
    while let Some(intid) = m.acknowledge(0) {
        m.end(0, intid);
    }
    assert_eq!(m.raise(0, 31), Raised::Placed);
}

#[test]
fn a_service_takes_what_others_raised_meanwhile() {
    let mut m = Machine::running(1, 32);
    m.post(0, 31);
    m.post(0, 33);
    m.service(0);
    assert_eq!(m.cpus[0].entries().map(|lr| lr.intid).collect::<Vec<_>>(), [31, 33]);
    assert!(!m.shared[0].has_mail());
}

#[test]
fn two_raises_before_the_guest_looks_are_one_interrupt() {
    let mut m = Machine::running(1, 0);
    let _ = m.raise(0, 31);
    let _ = m.raise(0, 31);
    assert_eq!(m.acknowledge(0), Some(31));
    m.end(0, 31);
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn a_raise_while_active_is_delivered_after_the_end() {
    let mut m = Machine::running(1, 0);
    let _ = m.raise(0, 31);
    m.acknowledge(0);
    assert_eq!(m.raise(0, 31), Raised::Placed);
    assert_eq!(m.acknowledge(0), None);
    m.end(0, 31);
    assert_eq!(m.acknowledge(0), Some(31));
}

#[test]
fn a_disabled_interrupt_waits_until_it_is_enabled() {
    let mut m = Machine::running(1, 0);
    m.write(0, Frame::Redistributor, 0x1_0180, 1 << 31);
    assert_eq!(m.raise(0, 31), Raised::Held);
    assert!(!m.has_deliverable(0, 0xff));
    assert_eq!(m.acknowledge(0), None);
    m.write(0, Frame::Redistributor, 0x1_0100, 1 << 31);
    assert_eq!(m.acknowledge(0), Some(31));
}

#[test]
fn disabling_takes_a_pending_interrupt_out_of_its_list_register() {
    let mut m = Machine::running(1, 32);
    let _ = m.raise(0, 31);
    m.raise_spi(0);
    m.write(0, Frame::Redistributor, 0x1_0180, 1 << 31);
    m.write(0, Frame::Distributor, 0x184, 1);
    assert_eq!(m.acknowledge(0), None);
    assert_eq!(m.read(0, Frame::Redistributor, 0x1_0200), 1 << 31);
    assert_eq!(m.read(0, Frame::Distributor, 0x204), 1);
    m.write(0, Frame::Distributor, 0x104, 1);
    assert_eq!(m.acknowledge(0), Some(32));
}

#[test]
fn nothing_is_delivered_while_the_distributor_does_not_forward() {
    let mut m = Machine::running(2, 32);
    m.write(0, Frame::Distributor, 0, 0);
    let _ = m.raise(1, 31);
    m.raise_spi(3);
    assert_eq!((m.acknowledge(0), m.acknowledge(1)), (None, None));
    m.write(0, Frame::Distributor, 0, 2);
    assert_eq!((m.acknowledge(0), m.acknowledge(1)), (Some(35), Some(31)));
}

#[test]
fn twenty_interrupts_pass_through_four_list_registers_in_order_of_priority() {
    let mut m = Machine::running(1, 32);
    for n in 0..20_u64 {
        // SPI n has priority 8 * (19 - n): the last raised is the most urgent.
        let offset = 0x400 + 32 + n / 4 * 4;
        let word = m.read(0, Frame::Distributor, offset);
        let shift = n % 4 * 8;
        m.write(0, Frame::Distributor, offset, word & !(0xff << shift) | (8 * (19 - n)) << shift);
    }
    for n in 0..20 {
        m.raise_spi(n);
    }
    assert_eq!(m.maintenance[0], Maintenance::NoPending);
    for n in (0..20).rev() {
        assert_eq!(m.acknowledge(0), Some(32 + n));
        m.end(0, 32 + n);
    }
    assert_eq!(m.acknowledge(0), None);
    assert_eq!(m.maintenance[0], Maintenance::None);
}

#[test]
fn an_urgent_interrupt_displaces_a_pending_one_from_full_list_registers() {
    let mut m = Machine::running(1, 0);
    for irq in 16..20 {
        let _ = m.raise(0, irq);
    }
    m.write(0, Frame::Redistributor, 0x1_0400, 0x10);
    assert_eq!(m.raise(0, 0), Raised::NeedsService);
    assert_eq!(m.acknowledge(0), Some(0));
    for irq in 16..20 {
        assert_eq!(m.acknowledge(0).map(|i| m.end(0, i)), Some(()), "{irq}");
    }
}

#[test]
fn an_interrupt_waits_no_longer_than_until_one_of_many_active_ones_ends() {
    let mut m = Machine::running(1, 0);
    for irq in 16..20 {
        let _ = m.raise(0, irq);
        assert_eq!(m.acknowledge(0), Some(irq.into()));
    }
    let _ = m.raise(0, 31);
    assert_eq!(m.maintenance[0], Maintenance::Underflow);
    assert_eq!(m.acknowledge(0), None);
    m.end(0, 17);
    assert_eq!(m.acknowledge(0), Some(31));
}

#[test]
fn many_interrupts_in_turn_share_the_list_registers_without_service() {
    let mut m = Machine::running(1, 0);
    for irq in (0..32).cycle().take(200) {
        assert_eq!(m.raise(0, irq), Raised::Placed);
        assert_eq!(m.acknowledge(0), Some(irq.into()));
        m.end(0, irq.into());
    }
}

#[test]
fn a_level_is_delivered_as_long_as_it_is_high() {
    let mut m = Machine::running(1, 32);
    m.set_spi_line(0, Line::High);
    m.set_line(0, 20, Line::High);
    for _ in 0..3 {
        let mut taken = [m.acknowledge(0).unwrap(), m.acknowledge(0).unwrap()];
        taken.sort_unstable();
        assert_eq!(taken, [20, 32]);
        for intid in taken {
            m.end(0, intid);
        }
    }
    m.set_spi_line(0, Line::Low);
    m.set_line(0, 20, Line::Low);
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn a_falling_line_leaves_a_software_latch_pending() {
    let mut m = Machine::running(1, 32);
    m.set_spi_line(1, Line::High);
    m.write(0, Frame::Distributor, 0x204, 1 << 1);
    m.set_spi_line(1, Line::Low);
    assert_eq!(m.acknowledge(0), Some(33));
    m.end(0, 33);
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn an_edge_configured_line_is_delivered_once_a_rise() {
    let mut m = Machine::running(1, 32);
    m.write(0, Frame::Distributor, 0xc08, 0b10);
    m.set_spi_line(0, Line::High);
    m.set_spi_line(0, Line::High);
    assert_eq!(m.acknowledge(0), Some(32));
    m.end(0, 32);
    assert_eq!(m.acknowledge(0), None);
    m.set_spi_line(0, Line::Low);
    m.set_spi_line(0, Line::High);
    assert_eq!(m.acknowledge(0), Some(32));
}

#[test]
fn a_new_priority_holds_for_what_is_pending_and_for_the_next_raise() {
    let mut m = Machine::running(1, 0);
    let _ = m.raise(0, 30);
    m.acknowledge(0);
    m.end(0, 30);
    let _ = m.raise(0, 31);
    m.write(0, Frame::Redistributor, 0x1_041c, 0x2010_a0a0);
    let _ = m.raise(0, 30);
    assert_eq!(m.cpus[0].entries().map(|lr| lr.priority).min(), Some(0x10));
    assert_eq!(m.cpus[0].entries().map(|lr| lr.priority).max(), Some(0x20));
}

#[test]
fn the_timer_carries_its_physical_interrupt() {
    let mut m = Machine::running(1, 0);
    m.gics[0].declare_hw(private(27), 27);
    assert_eq!(m.raise(0, 27), Raised::Placed);
    let lr = m.cpus[0].entries().next().unwrap();
    assert_eq!((lr.backing, lr.state), (Backing::Hardware(27), LrState::Pending));
    assert_eq!(m.gics[0].hw_in_flight(&m.cpus[0]), 1 << 27);
    m.acknowledge(0);
    assert_eq!(m.gics[0].hw_in_flight(&m.cpus[0]), 1 << 27);
    m.end(0, 27);
    assert_eq!(m.cpus[0].deactivated, [27]);
    assert_eq!(m.gics[0].hw_in_flight(&m.cpus[0]), 0);
}

#[test]
fn a_switch_looks_at_no_list_register_of_an_interrupt_that_is_over_and_keeps_the_others() {
    let mut m = Machine::running(1, 0);
    m.gics[0].declare_hw(private(27), 27);
    let _ = m.raise(0, 27);
    let _ = m.raise(0, 31);
    for _ in 0..2 {
        m.acknowledge(0);
    }
    m.end(0, 31);
    m.cpus[0].reads.set(0);
    m.cpus[0].writes = 0;
    assert_eq!(m.gics[0].save(&mut m.cpus[0]), 1 << 27, "the timer's is active still");
    assert_eq!((m.cpus[0].reads.get(), m.cpus[0].writes), (1, 1), "the timer's alone");
    assert_eq!(m.cpus[0].entries().count(), 0);
    assert_eq!(m.gics[0].restore(&mut m.cpus[0]), 1 << 27);
    assert_eq!(m.cpus[0].active(), [27]);
    m.end(0, 27);
    m.cpus[0].reads.set(0);
    assert!(!m.gics[0].has_deliverable(&m.shared[0], &m.cpus[0], 0xff));
    assert_eq!(m.gics[0].save(&mut m.cpus[0]), 0);
    assert_eq!(m.cpus[0].reads.get(), 0);
    // What was left there is not in the way of the next.
    let _ = m.gics[0].restore(&mut m.cpus[0]);
    assert_eq!(m.raise(0, 31), Raised::Placed);
    assert_eq!(m.acknowledge(0), Some(31));
}

#[test]
fn cancelling_the_timer_deactivates_the_physical_one() {
    for cancel in [(0x1_0280, false), (0x1_0380, true)] {
        let mut m = Machine::running(1, 0);
        m.gics[0].declare_hw(private(27), 30);
        let _ = m.raise(0, 27);
        if cancel.1 {
            m.acknowledge(0);
        }
        m.write(0, Frame::Redistributor, cancel.0, 1 << 27);
        assert_eq!(m.deactivate[0], 1 << 27);
        assert_eq!(m.acknowledge(0), None);
    }
}

#[test]
fn a_cancelled_passthrough_spi_is_deactivated_wherever_it_was() {
    let mut m = Machine::running(2, 32);
    m.dist.declare_hw(crate::vgic::Spi::new(4), 100);
    m.write(0, Frame::Distributor, 0x6000 + 36 * 8, 1);
    m.raise_spi(4);
    m.write(0, Frame::Distributor, 0x284, 1 << 4);
    assert!(m.deactivate_spis.contains(crate::vgic::Spi::new(4)));
    m.deactivate_spis = crate::vgic::SpiBits::default();
    m.write(0, Frame::Distributor, 0x184, 1 << 4);
    m.raise_spi(4);
    m.write(0, Frame::Distributor, 0x284, 1 << 4);
    assert!(m.deactivate_spis.contains(crate::vgic::Spi::new(4)));
    assert_eq!(m.acknowledge(1), None);
}

#[test]
fn a_switch_keeps_pending_and_active_interrupts() {
    let mut m = Machine::running(1, 32);
    let _ = m.raise(0, 3);
    assert_eq!(m.acknowledge(0), Some(3));
    let _ = m.raise(0, 31);
    m.raise_spi(7);
    m.switch(0);
    assert!(m.has_deliverable(0, 0xff));
    m.raise_remote(0, 27);
    m.switch(0);
    let mut taken: Vec<_> = (0..3).map(|_| m.acknowledge(0).unwrap()).collect();
    taken.sort_unstable();
    assert_eq!(taken, [27, 31, 39]);
    m.end(0, 3);
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn a_remote_raise_asks_for_one_kick() {
    let m = Machine::running(2, 32);
    let irq = crate::vgic::Intid::new(31).unwrap();
    assert!(m.shared[1].raise_remote(irq));
    assert!(!m.shared[1].raise_remote(irq));
    assert!(m.has_deliverable(1, 0xff));
    assert!(!m.has_deliverable(0, 0xff));
}

#[test]
fn a_spi_raised_in_any_mailbox_reaches_the_vcpu_it_is_routed_to() {
    let mut m = Machine::running(3, 64);
    m.write(0, Frame::Distributor, 0x6000 + 40 * 8, 2);
    m.raise_remote(1, 40);
    assert_eq!((m.acknowledge(0), m.acknowledge(1), m.acknowledge(2)), (None, None, Some(40)));
}

#[test]
fn rerouting_moves_a_pending_spi_and_what_comes_after_an_active_one() {
    let mut m = Machine::running(2, 32);
    m.raise_spi(0);
    m.write(0, Frame::Distributor, 0x6100, 1);
    assert_eq!(m.acknowledge(0), None);
    assert_eq!(m.acknowledge(1), Some(32));
    m.write(0, Frame::Distributor, 0x6100, 0);
    m.raise_spi(0);
    assert_eq!((m.acknowledge(0), m.acknowledge(1)), (None, None));
    m.end(1, 32);
    assert_eq!((m.acknowledge(0), m.acknowledge(1)), (Some(32), None));
}

#[test]
fn the_guest_can_set_and_clear_pending_and_active_of_another_vcpu() {
    let mut m = Machine::running(2, 0);
    let other = 0x3_0000;
    m.write(0, Frame::Redistributor, other + 0x200, 1 << 5 | 1 << 6);
    m.write(0, Frame::Redistributor, other + 0x280, 1 << 6);
    assert_eq!(m.read(0, Frame::Redistributor, other + 0x200), 1 << 5);
    assert_eq!(m.acknowledge(1), Some(5));
    m.end(1, 5);
    assert_eq!(m.acknowledge(1), None);
    m.write(0, Frame::Redistributor, other + 0x300, 1 << 5);
    let _ = m.raise(1, 5);
    assert_eq!(m.acknowledge(1), None);
    assert_eq!(m.read(1, Frame::Redistributor, other + 0x300), 1 << 5);
    m.write(0, Frame::Redistributor, other + 0x380, 1 << 5);
    assert_eq!(m.acknowledge(1), Some(5));
}

#[test]
fn priority_mask_decides_whether_wfi_may_sleep() {
    let mut m = Machine::running(1, 0);
    let _ = m.raise(0, 31);
    assert!(m.has_deliverable(0, 0xa8));
    assert!(!m.has_deliverable(0, 0xa0));
}

#[test]
fn the_same_sequence_runs_on_v2_list_registers() {
    let mut m = Machine::new(1, 32, Layout::V2, 4);
    m.enable_all(0xa0);
    m.gics[0].declare_hw(private(27), 27);
    let _ = m.raise(0, 27);
    m.raise_spi(0);
    m.switch(0);
    m.switch(0);
    let mut taken = [m.acknowledge(0).unwrap(), m.acknowledge(0).unwrap()];
    taken.sort_unstable();
    assert_eq!(taken, [27, 32]);
    m.end(0, 27);
    assert_eq!(m.cpus[0].deactivated, [27]);
    assert_eq!(m.gics[0].index(), vcpu(0));
}

#[test]
fn an_interrupt_made_active_without_room_for_it_is_not_delivered() {
    let mut m = Machine::running(1, 0);
    for irq in 16..20 {
        let _ = m.raise(0, irq);
        assert_eq!(m.acknowledge(0), Some(irq.into()));
    }
    m.write(0, Frame::Redistributor, 0x1_0300, 1 << 31);
    m.end(0, 16);
    let _ = m.raise(0, 31);
    assert_eq!(m.acknowledge(0), None);
    m.end(0, 31);
    assert_eq!(m.acknowledge(0), Some(31));
}

#[test]
fn a_spi_made_active_can_be_ended_by_the_vcpu_it_is_routed_to() {
    let mut m = Machine::running(2, 32);
    m.write(0, Frame::Distributor, 0x6100, 1);
    m.write(0, Frame::Distributor, 0x304, 1);
    assert_eq!(m.cpus[0].active(), []);
    m.raise_spi(0);
    assert_eq!(m.acknowledge(1), None);
    m.end(1, 32);
    assert_eq!(m.acknowledge(1), Some(32));
}

/// Requests for a list register that its owner has not looked at: of each bit the last write counts.
#[test]
fn the_last_of_several_requests_to_another_vcpu_counts() {
    const SET_PENDING: u64 = 0x200;
    const CLEAR_PENDING: u64 = 0x280;
    const SET_ACTIVE: u64 = 0x300;
    const CLEAR_ACTIVE: u64 = 0x380;
    for (first, last, pending, active) in [
        (SET_ACTIVE, CLEAR_ACTIVE, true, false),
        (CLEAR_ACTIVE, SET_ACTIVE, true, true),
        (SET_PENDING, CLEAR_PENDING, false, false),
        (CLEAR_PENDING, SET_PENDING, true, false),
    ] {
        for (frame, base, intid) in [(Frame::Distributor, 4, 37), (Frame::Redistributor, 0x3_0000, 5)] {
            let mut m = Machine::running(2, 32);
            m.write(0, Frame::Distributor, 0x6000 + 37 * 8, 1);
            m.post(1, intid);
            m.settle();
            for offset in [first, last] {
                let access = Access { frame, offset: base + offset, size: AccessSize::Word };
                let _ = m.access(0, access, 1 << 5);
            }
            m.settle();
            let state = m.cpus[1].entries().find(|lr| lr.intid == intid).map(|lr| lr.state);
            let (is_pending, is_active) =
                (state.is_some_and(LrState::is_pending), state.is_some_and(LrState::is_active));
            assert_eq!((is_pending, is_active), (pending, active), "{intid} {first:#x} {last:#x}");
        }
    }
}
