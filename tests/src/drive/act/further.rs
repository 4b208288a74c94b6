//! Further calls: `cache_flush`, the batch form of `add_to_physmap`, watchdogs; and queues of events.
use pv_abi::grant::{CacheFlush, GrantOp};
use pv_abi::memory::AddToPhysmapBatch;
use pv_abi::sched::Watchdog;
use pv_abi::{DomId, GuestHandle};

use super::numbers::Numbers;
use super::{LIST, Run, address, code};
use crate::number;
use crate::spec::SELF;

/// `XENMEM_add_to_physmap_batch`.
const BATCH: u64 = 23;
/// `SCHEDOP_watchdog`.
const WATCHDOG: u64 = 6;
/// A frame behind all that there are.
const NO_FRAME: u64 = 0x8_0000;

impl Run {
    pub(super) fn further_step(
        &mut self,
        who: (u16, u32),
        kind: u8,
        n: &mut Numbers<'_>,
    ) -> Result<(), String> {
        match kind {
            0..0x60 => self.flush_step(who, n),
            0x60..0xC0 => self.place_many(who, n),
            0xC0..0xD0 => self.watchdog_step(who, n),
            // Where page tables are checked queues are here only.
            _ => self.queue_step(who, n.next(), n),
        }
    }

    /// A frame by its machine address: one's own, one that is mapped by a grant, another's, none.
    fn flush_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (of, gfn, held) = (n.one(&[id, id, 1, 2]), n.gfn(), usize::from(n.next()));
        let used = self.spec.of(id).held.values().nth(held % 8);
        let used =
            used.and_then(|held| self.spec.of(held.granter).uses.get(&held.gref)).map(|used| used.frame);
        let frame = match n.below(4) {
            0 => used.unwrap_or(NO_FRAME),
            _ => self.spec.own(of, gfn).unwrap_or(NO_FRAME),
        };
        let (offset, length) =
            (n.one(&[0, 1, 64, 4095, 4096]), n.one(&[0, 1, 64, 4032, 4095, 4096, u16::MAX]));
        let op = n.one(&[0, 1, 2, 3, 3, 1, 4, 1 << 31]);
        self.tell(|| format!("d{id}v{vcpu} cache_flush {op:#x} of {frame:#x} + {offset}, {length}"));
        let wanted = code(&self.spec.cache_flush(id, frame, offset, length, op));
        let arg = CacheFlush { addr_or_ref: address(frame), offset, length, op };
        let cmd = u64::from(GrantOp::CacheFlush.number());
        let (result, _) = self.with(who, number::GRANT_TABLE_OP, cmd, arg)?;
        if result == wanted { Ok(()) } else { Err(format!("cache_flush: {result}, specified {wanted}")) }
    }

    fn place_many(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (dom, space) =
            (n.one(&[SELF, SELF, SELF, id, 1, 2, 3]), n.one(&[0_u16, 1, 1, 1, 1, 2, 3, 4, 5, 6]));
        let foreign = n.one(&[0, 1, 2, 3, SELF, 0x7FF2]);
        // More than one run does, now and then.
        let size = n.one(&[1_u16, 2, 2, 0, 3, 1, 2, 20]);
        let (first, end) = (u64::from(n.below(5)), n.next() >= 0xF0);
        let gfns: Vec<u64> = (0..u64::from(size))
            .map(|index| match n.gfn() {
                _ if end && index + 1 == u64::from(size) => u64::MAX,
                gfn => gfn,
            })
            .collect();
        let (idxs, at, errs) = (LIST + 64, LIST + 512, LIST + 1024);
        let index = |number: usize| first + number as u64 % 4;
        for (number, gfn) in gfns.iter().enumerate() {
            self.guest(id, vcpu).write(idxs + 8 * number as u64, &index(number).to_le_bytes());
            self.guest(id, vcpu).write(at + 8 * number as u64, &gfn.to_le_bytes());
            self.guest(id, vcpu).write(errs + 4 * number as u64, &[0x5A; 4]);
        }
        self.tell(|| {
            format!("d{id}v{vcpu} add_to_physmap_batch of {dom}, space {space}, {first} on at {gfns:x?}")
        });
        let mut wanted = self.spec.may_place(id, dom, space);
        let mut answers = Vec::new();
        for (number, gfn) in gfns.iter().enumerate().filter(|_| wanted.is_ok()).collect::<Vec<_>>() {
            if *gfn == u64::MAX {
                wanted = Err(pv_abi::Errno::Einval);
                break;
            }
            let placed = match space {
                4 => Err(self.spec.foreign(foreign)),
                space => self.spec.add(id, SELF, u32::from(space), index(number), *gfn),
            };
            answers.push(code(&placed));
        }
        let arg = AddToPhysmapBatch {
            domid: DomId(dom),
            space,
            size,
            foreign_domid: DomId(foreign),
            idxs: GuestHandle(idxs),
            gpfns: GuestHandle(at),
            errs: GuestHandle(errs),
        };
        let (result, _) = self.with(who, number::MEMORY_OP, BATCH, arg)?;
        let told = |number: usize| i64::from(self.guest(id, vcpu).read::<i32>(errs + 4 * number as u64));
        let found: Vec<i64> = (0..answers.len()).map(told).collect();
        let untouched = (answers.len()..gfns.len()).all(|number| told(number) == 0x5A5A_5A5A);
        if (result, &found) == (code(&wanted), &answers) && untouched {
            Ok(())
        } else {
            Err(format!("add_to_physmap_batch: {result} {found:?}, specified {wanted:?} {answers:?}"))
        }
    }

    /// Watchdogs are set, set again, and cancelled. None's time comes: that would be the domain's end.
    fn watchdog_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let dog = n.one(&[0, 1, 2, 1, 2, 3, 0, u32::MAX]);
        let seconds = n.one(&[0, 60, u32::MAX]);
        // A new one of no time is one whose time has come.
        let seconds = if dog == 0 { seconds.max(1) } else { seconds };
        self.tell(|| format!("d{id}v{vcpu} watchdog {dog}, {seconds} s"));
        let wanted = match self.spec.watchdog(id, dog, seconds) {
            Ok(number) => number,
            Err(errno) => errno.to_result(),
        };
        let (result, _) =
            self.with(who, number::SCHED_OP, WATCHDOG, Watchdog { id: dog, timeout: seconds })?;
        if result == wanted { Ok(()) } else { Err(format!("watchdog: {result}, specified {wanted}")) }
    }
}
