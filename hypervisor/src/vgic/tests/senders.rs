//! SGIs of a `GICv2`: one is pending for each sender (IHI 0048, 4.1.4 and 4.3.12 to 4.3.15).

use super::machine::Machine;
use super::random::Random;
use crate::vgic::{Access, AccessSize, Frame, Raised};

const DIST: Frame = Frame::DistributorV2;
const SGI: u16 = 5;

/// To vCPU 0.
const TO_FIRST: u32 = 1 << 16;

fn from(sender: u16) -> u16 {
    sender << 10 | SGI
}

#[test]
fn the_acknowledged_value_names_the_sender() {
    let mut m = Machine::running_v2(8, 32);
    for sender in 0..8 {
        m.send(sender.into(), TO_FIRST | u32::from(SGI));
        assert_eq!(m.acknowledge(0), Some(from(sender)));
        m.end(0, from(sender));
        assert_eq!(m.acknowledge(0), None);
    }
}

#[test]
fn each_sender_is_delivered_once_one_after_the_other() {
    let mut m = Machine::running_v2(8, 32);
    for _ in 0..2 {
        for sender in [3, 7, 0, 5] {
            m.send(sender, TO_FIRST | u32::from(SGI));
        }
    }
    let mut taken = Vec::new();
    while let Some(value) = m.acknowledge(0) {
        assert_eq!(m.acknowledge(0), None, "the others wait for the deactivation");
        m.end(0, value);
        taken.push(value);
    }
    taken.sort_unstable();
    assert_eq!(taken, [from(0), from(3), from(5), from(7)]);
    assert!(!m.has_deliverable(0, 0xff));
}

#[test]
fn two_senders_in_one_mail_both_come() {
    let mut m = Machine::running_v2(3, 32);
    m.send(1, TO_FIRST | u32::from(SGI));
    m.send(2, TO_FIRST | u32::from(SGI));
    for sender in [1, 2] {
        assert_eq!(m.acknowledge(0), Some(from(sender)));
        m.end(0, from(sender));
    }
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn a_sgi_sent_again_while_active_comes_again() {
    let mut m = Machine::running_v2(2, 32);
    for again in [0, 1] {
        m.send(0, TO_FIRST | u32::from(SGI));
        assert_eq!(m.acknowledge(0), Some(from(0)));
        m.send(again, TO_FIRST | u32::from(SGI));
        assert_eq!(m.acknowledge(0), None);
        m.end(0, from(0));
        assert_eq!(m.acknowledge(0), Some(from(again.try_into().unwrap())));
        m.end(0, from(again.try_into().unwrap()));
        assert_eq!(m.acknowledge(0), None);
    }
}

#[test]
fn a_sgi_to_self_takes_the_short_way() {
    let mut m = Machine::running_v2(1, 32);
    assert_eq!(m.raise(0, 5), Raised::Placed);
    assert_eq!(m.acknowledge(0), Some(SGI));
    m.end(0, SGI);
    let (reads, writes) = (m.cpus[0].reads.get(), m.cpus[0].writes);
    assert_eq!(m.raise(0, 5), Raised::Placed);
    assert_eq!((m.cpus[0].reads.get() - reads, m.cpus[0].writes - writes), (1, 1));
}

#[test]
fn all_sgis_of_all_senders_pass_through_four_list_registers() {
    let mut m = Machine::running_v2(8, 32);
    for sgi in 0..16 {
        for sender in 0..8 {
            m.send(sender, TO_FIRST | sgi);
        }
    }
    let mut taken: Vec<_> = (0..128)
        .map(|_| {
            let value = m.acknowledge(0).unwrap();
            m.end(0, value);
            value
        })
        .collect();
    assert_eq!(m.acknowledge(0), None);
    taken.sort_unstable();
    let mut all: Vec<_> = (0..8).flat_map(|sender| (0..16).map(move |sgi| sender << 10 | sgi)).collect();
    all.sort_unstable();
    assert_eq!(taken, all);
}

#[test]
fn twenty_interrupts_of_three_kinds_pass_through_four_list_registers_in_order() {
    let mut m = Machine::running_v2(2, 32);
    // SGIs 0..6 at 0x08.., PPIs 16..22 at 0x40.., SPIs 32..40 at 0x80..: the lower the INTID the more urgent.
    let intids: Vec<u8> = (0..6).chain(16..22).chain(32..40).collect();
    for (n, intid) in (1..).zip(&intids) {
        let access = Access { frame: DIST, offset: 0x400 + u64::from(*intid), size: AccessSize::Byte };
        let _ = m.access(0, access, n * 8);
        m.settle();
    }
    for intid in intids.iter().rev() {
        match intid {
            0..16 => m.send(1, TO_FIRST | u32::from(*intid)),
            16..32 => assert!(matches!(m.raise(0, *intid), Raised::Placed | Raised::NeedsService)),
            _ => m.raise_spi(intid - 32),
        }
        m.settle();
    }
    for intid in intids {
        let named = if intid < 16 { 1 << 10 | u16::from(intid) } else { intid.into() };
        assert_eq!(m.acknowledge(0), Some(named));
        m.end(0, named);
    }
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn senders_read_in_the_byte_of_their_sgi_wherever_they_are() {
    let mut m = Machine::running_v2(4, 32);
    m.send(1, TO_FIRST | u32::from(SGI));
    m.send(3, TO_FIRST | u32::from(SGI));
    m.send(2, TO_FIRST | 15);
    for base in [0xf10, 0xf20] {
        assert_eq!(m.read(0, DIST, base + 4), 0b1010 << 8);
        assert_eq!(
            m.read_as(0, Access { frame: DIST, offset: base + 15, size: AccessSize::Byte }).value,
            0b100
        );
        assert_eq!(m.read(1, DIST, base + 4), 0, "another vCPU's are its own");
    }
    let taken = m.acknowledge(0).unwrap();
    assert_eq!(m.read(0, DIST, 0xf14), (0b1010 & !(1 << (taken >> 10))) << 8, "active is not pending");
}

#[test]
fn a_guest_can_make_sgis_of_any_vcpu_pending_and_take_them_back() {
    let mut m = Machine::running_v2(4, 32);
    // Senders 1 and 3, and one that does not exist.
    m.write(0, DIST, 0xf24, 0b100_1010 << 8);
    assert_eq!(m.read(0, DIST, 0xf24), 0b1010 << 8);
    m.write(0, DIST, 0xf14, 0b0010 << 8);
    assert_eq!(m.read(0, DIST, 0xf14), 0b1000 << 8);
    assert_eq!(m.acknowledge(0), Some(from(3)));
    m.end(0, from(3));
    assert_eq!(m.acknowledge(0), None);
    m.write(0, DIST, 0xf24, 1 << 8);
    let _ = m.access(0, Access { frame: DIST, offset: 0xf15, size: AccessSize::Byte }, 0xff);
    m.settle();
    assert_eq!((m.read(0, DIST, 0x200), m.acknowledge(0)), (0, None));
    assert!(!m.has_deliverable(0, 0xff));
}

#[test]
fn a_sgi_whose_sender_was_served_before_the_raise_is_nothing() {
    let mut m = Machine::running_v2(2, 32);
    m.send(1, TO_FIRST | u32::from(SGI));
    // The service takes sender and mail; a raise of a second, that it overtook, finds neither.
    m.service(0);
    m.post_only(0, SGI);
    assert_eq!(m.acknowledge(0), Some(from(1)));
    m.end(0, from(1));
    assert_eq!(m.acknowledge(0), None);
    assert!(!m.has_deliverable(0, 0xff));
}

#[test]
fn a_vcpu_that_starts_again_has_nothing_pending_or_active() {
    let mut m = Machine::running_v2(3, 32);
    for sgi in 0..8 {
        m.send(1, TO_FIRST | sgi);
        m.send(2, TO_FIRST | sgi);
    }
    assert_eq!(m.acknowledge(0), Some(from(1) & !0xf));
    // One more comes while it is off.
    m.switch(0);
    m.post_only(0, SGI);
    let shared = &m.shared[0];
    m.gics[0].forget(shared);
    m.switch(0);
    assert_eq!((m.acknowledge(0), m.has_deliverable(0, 0xff), m.cpus[0].active()), (None, false, Vec::new()));
    assert_eq!((m.read(0, DIST, 0x200), m.read(0, DIST, 0xf24)), (0, 0));
    m.send(2, TO_FIRST | u32::from(SGI));
    assert_eq!(m.acknowledge(0), Some(from(2)));
}

#[test]
fn a_vcpu_that_starts_again_still_hears_of_events() {
    let events = crate::vgic::PrivateIntid::EVENT_UPCALL;
    // In a list register, latched behind another, and in the mailbox.
    for before in 0..3 {
        let mut m = Machine::running_v2_on(1, 32, 1);
        if before == 1 {
            let _ = m.raise(0, 5);
        }
        if before < 2 {
            let _ = m.raise(0, events.number());
        }
        m.switch(0);
        if before == 2 {
            m.post_only(0, events.number().into());
        }
        let shared = &m.shared[0];
        m.gics[0].forget(shared);
        m.switch(0);
        assert_eq!(m.acknowledge(0), Some(events.number().into()), "{before}");
    }
}

#[test]
fn disabled_sgis_keep_their_senders() {
    let mut m = Machine::running_v2(3, 32);
    m.write(0, DIST, 0x180, 1 << SGI);
    m.send(1, TO_FIRST | u32::from(SGI));
    m.send(2, TO_FIRST | u32::from(SGI));
    assert_eq!(m.acknowledge(0), None);
    m.write(0, DIST, 0x100, 1 << SGI);
    for sender in [1, 2] {
        assert_eq!(m.acknowledge(0), Some(from(sender)));
        m.end(0, from(sender));
    }
}

/// One bit for each SGI, sender and target, and what each target has acknowledged: what a `GICv2` says must be true of both at any time.
struct Books {
    pending: Vec<[u8; 16]>,
    active: Vec<Vec<u16>>,
    lrs: usize,
}

impl Books {
    fn new(vcpus: usize, lrs: usize) -> Self {
        Self { pending: vec![[0; 16]; vcpus], active: vec![Vec::new(); vcpus], lrs }
    }

    /// A vCPU acknowledges: what was sent and not taken, if there is any that is not active and active ones leave a list register.
    fn acknowledge(&mut self, m: &mut Machine, me: usize) -> bool {
        if let Some(value) = m.acknowledge(me) {
            let senders = &mut self.pending[me][usize::from(value & 0xf)];
            assert_ne!(*senders & 1 << (value >> 10), 0, "made up");
            *senders &= !(1 << (value >> 10));
            self.active[me].push(value);
            return true;
        }
        let held = |sgi: usize| self.active[me].iter().any(|value| usize::from(value & 0xf) == sgi);
        let waits = (0..16).any(|sgi| self.pending[me][sgi] != 0 && !held(sgi));
        assert!(!waits || self.active[me].len() == self.lrs, "stuck");
        false
    }

    fn end(&mut self, m: &mut Machine, me: usize, which: usize) {
        let value = self.active[me].swap_remove(which);
        m.end(me, value);
    }

    /// Nothing but a guest that takes what is there: all that was sent comes, without another's help.
    fn drain(&mut self, m: &mut Machine) {
        for me in 0..self.active.len() {
            if !m.loaded[me] {
                m.switch(me);
            }
            loop {
                while !self.active[me].is_empty() {
                    self.end(m, me, 0);
                }
                if !self.acknowledge(m, me) {
                    break;
                }
            }
            assert_eq!(self.pending[me], [0; 16], "lost");
        }
    }
}

/// Random sequences of guests that send more than can be taken, or less, on one to eight vCPUs with one to sixteen list registers; each ends
/// with taking all that is left.
#[test]
fn no_sender_is_lost_or_made_up() {
    let (runs, steps) = if cfg!(miri) { (2, 60) } else { (400, 500) };
    for seed in 1..=runs {
        let mut random = Random::new(seed);
        let (vcpus, lrs) = (1 + random.below(8), [1, 2, 4, 16][random.below(4)]);
        let (sgis, pressure) = (1 + random.below(16), 1 + random.below(6));
        let mut m = Machine::running_v2_on(vcpus, 32, lrs);
        let mut books = Books::new(vcpus, lrs);
        for _ in 0..steps {
            let (me, sgi) = (random.below(vcpus), random.below(sgis));
            let sender_bit = 1_u8 << random.below(vcpus);
            let write =
                |offset: usize| Access { frame: DIST, offset: (offset + sgi) as u64, size: AccessSize::Byte };
            match random.below(8 + pressure) {
                0..=2 => {
                    if !m.loaded[me] {
                        m.switch(me);
                    }
                    let _ = books.acknowledge(&mut m, me);
                }
                3 | 4 => {
                    if m.loaded[me] && !books.active[me].is_empty() {
                        let which = random.below(books.active[me].len());
                        books.end(&mut m, me, which);
                    }
                }
                5 => {
                    let _ = m.access(me, write(0xf20), sender_bit.into());
                    books.pending[me][sgi] |= sender_bit;
                }
                6 => {
                    m.settle();
                    let _ = m.access(me, write(0xf10), sender_bit.into());
                    books.pending[me][sgi] &= !sender_bit;
                }
                7 => m.switch(me),
                _ => {
                    let list = random.below(1 << vcpus);
                    m.send(me, u32::try_from(list << 16 | sgi).unwrap());
                    for (target, senders) in books.pending.iter_mut().enumerate() {
                        senders[sgi] |= if list >> target & 1 == 0 { 0 } else { 1 << me };
                    }
                }
            }
            if random.below(4) == 0 {
                m.settle();
                assert_eq!(m.read_as(me, write(0xf20)).value, u64::from(books.pending[me][sgi]));
            }
        }
        books.drain(&mut m);
    }
}
