//! Translations from before, vCPUs that start otherwise, and vCPUs that are faster than a check.
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_kernel::attempt::{self, Level, class};
use guest_kernel::psci::{self, Power};
use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights, Space};
use guest_kernel::{exception, hypercall, paging, smp};
use pv_abi::Errno;
use pv_abi::paging::ExtOp;

use super::{Came, Tap, Target, WRITE_FAULTS, code, extended, load, peek, store, update};

/// Rounds of a race.
const ROUNDS: u32 = 300;
/// Of one with long calls.
const LONG_ROUNDS: u32 = 60;

/// Runs what is mapped at [`Target::VA`] at EL0; whether its system call came.
fn runs_at_el0(va: u64) -> Result<bool, u64> {
    let mut x = [0; 31];
    // SAFETY: EL0 has nothing of the kernel's.
    match unsafe { attempt::run(Level::El0, va, &mut x) } {
        Some(taken) if taken.class() == class::SVC64 => Ok(x[0] == 0x55),
        Some(taken) => Err(taken.class()),
        None => Err(u64::MAX),
    }
}

/// Translations that a TLB has from before a role changed.
pub(super) fn warm(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let [.., last] = target.tables;
    let page = space::take_page()?;
    let before = store(page + 8, 0) == Came::Through(0);
    pv::pin(Page::Table(3), page)?;
    tap.nothing(
        "a store by a translation from before the page was a table (XSA-408)",
        before && store(page + 8, 1) == WRITE_FAULTS,
    );
    pv::unpin(page)?;
    tap.nothing("a page that is no table any more can be written", store(page + 8, 0) == Came::Through(0));
    tap.nothing("EL0 executes its text", runs_at_el0(Target::VA) == Ok(true));
    // The same instructions in a page that was text and is data again.
    let text = space::take_page()?;
    for offset in (0..16).step_by(8) {
        store(text + offset, peek(target.text + offset));
    }
    pv::pin(Page::UserText, text)?;
    let (va, slot) = (Target::VA + 21 * PAGE, last + 8 * 21);
    update(slot, Entry::page(text, Rights::UserText).bits())?;
    let before = runs_at_el0(va) == Ok(true);
    tap.refused("text that is executed as data", pv::unpin(text), Errno::Ebusy);
    update(slot, 0)?;
    pv::unpin(text)?;
    store(text, 0);
    tap.nothing(
        "executing by a translation from before the text went",
        before && runs_at_el0(va) == Err(class::INSTRUCTION_ABORT_LOWER),
    );
    tap.refused(
        "executing it again",
        update(slot, Entry::page(text, Rights::UserText).bits()),
        Errno::Einval,
    );
    let data = runs_at_el0(Target::VA + PAGE);
    tap.nothing("EL0 does not execute data", data == Err(class::INSTRUCTION_ABORT_LOWER));
    Ok(())
}

/// Goes over to a root.
fn enter(root: u64) -> Result<(), Errno> {
    extended(ExtOp::NewUserBase, root / PAGE, 2)
}

/// Roots that were left, with the ASID of those in use: when their tables can be written again nothing is walked by them.
pub(super) fn roots_left(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let Some(second) = smp::all().nth(1) else { return Ok(()) };
    let va = 2 * Target::VA;
    let word = usize::try_from(va).map_err(|_| Errno::Efault)?;
    let mut space = Space::new(paging::kernel_link(), 2)?;
    let last = space.make_tables(va)?;
    update(last, Entry::page(target.data, Rights::Data).bits())?;
    let root = space.root();
    let link = |table: u64, index: u64| peek(table + 8 * index) & 0x0000_ffff_ffff_f000;
    let one = link(root, 2);
    let tables = [root, one, link(one, 0), last];
    enter(root)?;
    let warm = matches!(load(va), Came::Through(_));
    enter(target.tables[0])?;
    // What a sibling reads there: with that root first, and goes off with it.
    let reads = |first: Option<u64>| {
        let found = Arc::new(AtomicU64::new(u64::MAX));
        let theirs = Arc::clone(&found);
        let job = move || {
            let entered = first.is_none_or(|root| enter(root).is_ok());
            theirs.store(u64::from(entered && exception::probe(word).is_some()), Ordering::Release);
        };
        smp::start(second, job).map_err(|_| Errno::Einval)?.join();
        Ok::<bool, Errno>(found.load(Ordering::Acquire) == 1)
    };
    let theirs = reads(Some(root))?;
    tap.refused("a root with which a vCPU went off, as data", pv::unpin(root), Errno::Ebusy);
    tap.nothing("a vCPU that comes on again has left its root", theirs && !reads(None)?);
    for table in tables {
        pv::unpin(table)?;
    }
    // They map what they did, and can be written.
    let written = store(last + 8, 0) == Came::Through(0);
    tap.nothing(
        "a root that was left, its ASID in use (XSA-292, XSA-294)",
        warm && written && matches!(load(va), Came::Fault(class::DATA_ABORT, _)) && !reads(None)?,
    );
    Ok(())
}

/// A sibling uses what is mapped while a link far above goes, and while its text goes: not a moment longer.
pub(super) fn siblings_warm(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    let Some(second) = smp::all().nth(1) else { return Ok(()) };
    let [root, one, two, last] = target.tables;
    let word = usize::try_from(Target::VA + PAGE).map_err(|_| Errno::Efault)?;
    let shared = Arc::new(Writer {
        stop: AtomicBool::new(false),
        tries: AtomicU64::new(0),
        through: AtomicU64::new(0),
    });
    let reader = Arc::clone(&shared);
    let started = smp::start(second, move || {
        let entered = enter(root).is_ok();
        while entered && !reader.stop.load(Ordering::Acquire) {
            let through = exception::probe(word).is_some();
            reader.through.fetch_add(u64::from(through), Ordering::AcqRel);
            reader.tries.fetch_add(1, Ordering::AcqRel);
        }
    })
    .map_err(|_| Errno::Einval)?;
    let (mut read, mut later) = (true, false);
    for (at, links) in [(root + 8, one), (one, two), (two, last)].into_iter().cycle().take(12) {
        let before = shared.through.load(Ordering::Acquire);
        shared.wait(2);
        read &= shared.through.load(Ordering::Acquire) > before;
        update(at, 0)?;
        // What is under way may end late.
        shared.wait(2);
        let through = shared.through.load(Ordering::Acquire);
        shared.wait(2);
        later |= shared.through.load(Ordering::Acquire) != through;
        update(at, links | 3)?;
    }
    shared.stop.store(true, Ordering::Release);
    started.join();
    tap.nothing("what a sibling uses, when a link above it goes", read && !later);
    Ok(())
}

/// A word that a sibling writes as fast as it can.
struct Writer {
    stop: AtomicBool,
    tries: AtomicU64,
    through: AtomicU64,
}

impl Writer {
    /// Until it has tried so often again.
    fn wait(&self, count: u64) {
        let from = self.tries.load(Ordering::Acquire);
        while self.tries.load(Ordering::Acquire) < from + count {
            let _ = hypercall::sched_yield();
        }
    }
}

/// A sibling writes to a page while its role changes.
pub(super) fn role_changes(tap: &mut Tap) -> Result<(), Errno> {
    let Some(second) = smp::all().nth(1) else { return Ok(()) };
    let page = space::take_page()?;
    let word = usize::try_from(page + 56).map_err(|_| Errno::Efault)?;
    let evil = Entry::page(page, Rights::Data).bits() & !(1 << 53);
    let shared = Arc::new(Writer {
        stop: AtomicBool::new(false),
        tries: AtomicU64::new(0),
        through: AtomicU64::new(0),
    });
    let writer = Arc::clone(&shared);
    let started = smp::start(second, move || {
        while !writer.stop.load(Ordering::Acquire) {
            for value in [evil, 0] {
                // SAFETY: nobody keeps anything there.
                let through = unsafe { exception::probe_write(word, value) };
                writer.through.fetch_add(u64::from(through), Ordering::AcqRel);
                writer.tries.fetch_add(1, Ordering::AcqRel);
            }
        }
    })
    .map_err(|_| Errno::Einval)?;
    let wait = |count: u64| shared.wait(count);
    let (mut pinned, mut bad, mut odd) = (0, 0, 0);
    for _ in 0..ROUNDS {
        wait(1);
        match pv::pin(Page::Table(3), page) {
            Ok(()) => {
                pinned += 1;
                // The write that is under way may end late, and count as one that came through; none is after that.
                let found = peek(page + 56);
                wait(2);
                let through = shared.through.load(Ordering::Acquire);
                wait(2);
                let later = shared.through.load(Ordering::Acquire) != through;
                bad += u32::from(found != 0 || later || peek(page + 56) != found);
                odd += u32::from(pv::unpin(page).is_err());
            }
            Err(Errno::Einval) => {}
            Err(_) => odd += 1,
        }
    }
    shared.stop.store(true, Ordering::Release);
    started.join();
    tap.nothing("a sibling that writes while a page becomes a table (XSA-401)", bad == 0);
    tap.nothing("which is one or is refused", odd == 0 && pinned > 0);
    all_pin(tap, page)
}

/// All vCPUs pin and unpin the same page.
fn all_pin(tap: &mut Tap, page: u64) -> Result<(), Errno> {
    // Every entry maps data: a pin takes several runs.
    for index in 0..512 {
        store(page + 8 * index, Entry::page(page, Rights::Constant).bits());
    }
    // A pin that finds the page on its way back is refused, and so is an unpin of data, or of what another has pinned meanwhile.
    let fair = |got: Result<(), Errno>| matches!(got, Ok(()) | Err(Errno::Einval | Errno::Ebusy));
    let rounds = move || {
        let one = |round: &u32| {
            let level = if round.is_multiple_of(3) { 2 } else { 3 };
            let got = pv::pin(Page::Table(level), page);
            !fair(got) || !fair(pv::unpin(page))
        };
        (0..LONG_ROUNDS).filter(one).count()
    };
    let odd = Arc::new(AtomicU64::new(0));
    let mut siblings = Vec::new();
    for sibling in smp::all().skip(1) {
        let theirs = Arc::clone(&odd);
        let job = move || {
            theirs.fetch_add(rounds() as u64, Ordering::AcqRel);
        };
        siblings.push(smp::start(sibling, job).map_err(|_| Errno::Einval)?);
    }
    let (ours, vcpus) = (rounds(), siblings.len() + 1);
    siblings.into_iter().for_each(smp::Started::join);
    let _ = pv::unpin(page);
    tap.nothing(
        &format!("{vcpus} vCPUs that change one page's role (XSA-264)"),
        ours == 0 && odd.load(Ordering::Acquire) == 0,
    );
    tap.nothing("which is data in the end", store(page, 0) == Came::Through(0));
    Ok(())
}

/// A further vCPU, started by this kernel's enemy.
pub(super) fn second_vcpu(tap: &mut Tap, target: &Target) -> Result<(), Errno> {
    use aarch64_cpu::registers::{Readable, SCTLR_EL1, TCR_EL1};
    let Some(second) = smp::all().nth(1) else { return Ok(()) };
    let page = space::take_page()?;
    let affinity = psci::affinity(second.number());
    // SAFETY: it runs this guest's text, and touches that page only.
    unsafe { psci::cpu_on(affinity, code!(rootkit_second), page) }.map_err(|_| Errno::Einval)?;
    while peek(page + 32) != 1 || second.power() == Power::On {
        let _ = hypercall::sched_yield();
    }
    let found = [0, 8, 16, 24].map(|offset| peek(page + offset));
    tap.nothing(
        "a vCPU that starts: its MMU is on",
        found[0] == SCTLR_EL1.get() && found[3] == TCR_EL1.get(),
    );
    let root = |base: u64| base & 0x0000_ffff_ffff_f000;
    tap.nothing(
        "by checked roots",
        root(found[1]) != target.data
            && pv::unpin(root(found[1])) == Err(Errno::Ebusy)
            && pv::unpin(root(found[2])) == Err(Errno::Ebusy),
    );
    Ok(())
}

/// A vCPU that starts in data. It is never seen again.
pub(super) fn starts_in_data(tap: &mut Tap) -> Result<(), Errno> {
    let Some(second) = smp::all().nth(1) else { return Ok(()) };
    let (page, flag) = (space::take_page()?, space::take_page()?);
    let from = code!(rootkit_second);
    for offset in (0..64).step_by(8) {
        store(page + offset, peek(from + offset));
    }
    // SAFETY: were it executed, it would touch that page only.
    unsafe { psci::cpu_on(psci::affinity(second.number()), page, flag) }.map_err(|_| Errno::Einval)?;
    for _ in 0..200 {
        let _ = hypercall::sched_yield();
    }
    tap.nothing(
        "a vCPU that starts in data executes nothing of it",
        second.power() == Power::On && peek(flag + 32) == 0,
    );
    Ok(())
}
