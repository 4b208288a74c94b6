//! Known bugs, put back on purpose, to see that the tests would find them.
//!
//! Where one was, `seeded!` stands with its name: false in every build but those with the feature `seeded`, which only the tests of
//! the tests have, and in those true while the bug is planted (`plant`). In the image nothing is left of it, which `cargo xtask check`
//! proves.
#[cfg(feature = "seeded")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether a known bug is planted: `seeded!("its name")`, a constant `false` in what ships.
#[macro_export]
macro_rules! seeded {
    ($name:literal) => {{
        #[cfg(feature = "seeded")]
        let planted = {
            const BUG: usize = $crate::seeded::index($name);
            $crate::seeded::is_planted(BUG)
        };
        #[cfg(not(feature = "seeded"))]
        let planted = const { false };
        planted
    }};
}

/// Every bug: its name (an advisory that it repeats, or what it does), and what is wrong.
pub const BUGS: &[(&str, &str)] = &[
    ("xsa-18", "a reference beyond the table may be granted from"),
    ("xsa-22", "frame and guest frame disagree after a populate"),
    ("xsa-98", "results are written to a page that the guest may only read"),
    ("xsa-100", "memory is given to a domain uncleared"),
    ("xsa-218b", "the second of two mappings that goes takes the frame's reference again"),
    ("xsa-218c", "a grant is reported free while its mapping is still there"),
    ("xsa-224d", "a map that fails late keeps its use of the reference"),
    ("xsa-230", "a copy clears the marks of a reference that is mapped"),
    ("xsa-234", "a mapping that was asked for reading may be written"),
    ("xsa-235", "a lock is kept when add_to_physmap fails"),
    ("xsa-241", "an unmapped page stays in the TLB"),
    ("xsa-252", "memory that is in use is taken from its domain"),
    ("xsa-301", "upper bits of a guest frame number are ignored"),
    ("xsa-318", "a batch that restarts leaves elements out"),
    ("xsa-327", "a vcpu_info may be misaligned"),
    ("xsa-379", "a page of the hypervisor's is mapped at two guest frames"),
    ("xsa-385", "a domain gets more memory than it may have"),
    ("xsa-448", "copies of no length look at their references"),
    ("xsa-500", "a copy from a reference in use takes the frame from the shared entry"),
    ("grant-of-another", "a reference in use may be used by a third domain"),
    ("grant-read-only", "a read-only grant may be mapped for writing"),
    ("swap-in-use", "entries in use are exchanged"),
    ("handle-quota", "a domain may hold any number of mappings"),
    ("remove-grant", "a grant is removed from the physmap and its use stays"),
    ("close-one-end", "the other end of a closed channel stays connected"),
    ("close-pending", "a port keeps its event when it is closed"),
    ("bind-for-another", "a port that waits for one domain is bound by another"),
    ("alloc-for-another", "a domain makes ports in another"),
    ("status-of-another", "a domain looks at the ports of another"),
    ("vcpu-number", "a port may notify a vCPU that there is not"),
    ("unmask-silent", "a pending port is unmasked and nobody is told"),
    ("poll-asleep", "an event does not wake who polls for it"),
    ("info-unreferenced", "a registered vcpu_info does not hold its frame"),
    ("xsa-107", "an event for a vCPU without a control block is put into its queue"),
    ("fifo-early", "an event for a port without its array page is lost"),
    ("fifo-masked", "a masked event is put into its queue"),
    ("fifo-old-tail", "an event is put behind one that has left for another queue"),
    ("fifo-told-twice", "a vCPU is told of each event that is put into a queue"),
    ("fifo-priority", "a port keeps the priority of who had it before"),
    ("fifo-busy-port", "a port is given out whose last event is in a queue still"),
    ("fifo-unreferenced", "pages of queues do not hold their frames"),
    ("fifo-reset-held", "pages of queues stay held after a reset"),
    ("fifo-link-race", "a link is stored over what the guest does to the word meanwhile"),
    ("fifo-impatient", "an event is lost when the guest changes the word before it as often as it may"),
    ("fifo-busy-kept", "a word that the guest kept changing stays busy"),
    ("unpause-all", "an unpause ends all pauses"),
    ("unpause-one", "a vCPU of a domain that goes on is forgotten"),
    ("xsa-148", "a block of data may begin anywhere"),
    ("xsa-182", "an entry may let hardware write its permissions"),
    ("xsa-227", "an entry may begin in the middle of another"),
    ("xsa-240", "a link may lead to a table of any level"),
    ("xsa-248", "data may be mapped where the domain has nothing"),
    ("xsa-249", "a full count goes on"),
    ("xsa-286", "an entry that is changed stays in the TLB"),
    ("xsa-288", "a page that others may write becomes a table"),
    ("xsa-291", "an entry that goes keeps its count"),
    ("xsa-292", "a table is data again with its translations still in the TLB"),
    ("xsa-294", "an address of the upper half is looked up by the root of the lower"),
    ("xsa-299", "a table that fails its check keeps what its entries held"),
    ("xsa-309", "a pin that goes on begins anew"),
    ("xsa-310", "a pin that is undone half-way gives back what it has not taken"),
    ("xsa-402", "a table is checked as the caches show it"),
    ("xsa-408", "a page becomes a table with writable translations still in the TLB"),
    ("flush-page-alone", "what combines both stages of a page outlives its entry of stage 2"),
    (
        "flush-page-at-once",
        "what combines both stages is invalidated before it is certain that stage 2's part is gone",
    ),
    ("flush-here", "an address space is flushed on one CPU"),
    ("flush-stage-1-here", "stage 1 is flushed on one CPU"),
    ("flush-one-asid", "stage 1 is flushed for one ASID"),
    ("flush-unordered", "an invalidation may come before the writes that it is for"),
    ("flush-unfinished", "nobody waits for an invalidation"),
    ("protect-early", "stage 2 is flushed before a page becomes a table, not after"),
    ("change-unbroken", "an entry is replaced by another in one step"),
    ("update-data", "entries are written into what is no table"),
    ("batch-count", "a batch goes on after what it was refused"),
    ("unpin-linked", "a table is unpinned that others link"),
    ("execute-data", "data is executed"),
    ("kernel-text-of-el0", "EL0 has access to what EL1 executes"),
    ("unsealed", "the seal is forgotten"),
    ("root-uncounted", "a root in use is not counted"),
    ("root-kept", "a root that was left stays counted"),
    ("start-uncounted", "the roots of a vCPU that comes on are not counted"),
    ("trust-of-two", "the trust ends while another vCPU runs"),
    ("trust-executes", "data can be executed after the trust has ended"),
    ("unsound-controls", "the trust ends with controls that let tables mean something else"),
    ("clear-table", "the hypervisor clears a table for the guest"),
    ("decrease-table", "a table is taken from its domain"),
    ("replace-table", "a page is placed over a table"),
    ("remove-table", "a table is removed from its place"),
    ("grant-over-table", "a grant is mapped over a table"),
];

/// Those that show only where CPUs meet: the models must miss them (`tests/models`).
pub const RACES: &[(&str, &str)] = &[
    ("fifo-page-unlocked", "an event that is kept while its array page comes stays kept"),
    ("close-while-bound", "a port that is bound while it is closed leaves its other end connected"),
];

/// The place of a name in [`BUGS`] and [`RACES`]; a name that is not there does not compile.
#[cfg(feature = "seeded")]
#[doc(hidden)]
pub const fn index(name: &str) -> usize {
    let mut at = 0;
    while at < BUGS.len() {
        if equal(BUGS[at].0.as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    while at - BUGS.len() < RACES.len() {
        if equal(RACES[at - BUGS.len()].0.as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    1 / (BUGS.len() + RACES.len() - at)
}

#[cfg(feature = "seeded")]
const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(feature = "seeded")]
static PLANTED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Plants the bug with this name, and no other; false when there is none.
#[cfg(feature = "seeded")]
pub fn plant(name: &str) -> bool {
    let found = BUGS.iter().chain(RACES).position(|(bug, _)| *bug == name);
    PLANTED.store(found.unwrap_or(usize::MAX), Ordering::SeqCst);
    found.is_some()
}

#[cfg(feature = "seeded")]
#[doc(hidden)]
pub fn is_planted(bug: usize) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug
}
