//! What the hypervisor has counted for a domain that asks for it, case by case, through a page that it grants: everything is as it was
//! when it asked first; and the hypervisor checks itself, in a build that does. `attack/ledger.rs` is the other end.
//!
//! A domain may make the hypervisor keep more for it than at first, within its quota: tables of stage 2, its grant table and what is
//! remembered of its grants grow, and stay until it ends. So those may be more, never less; all else is the same.
use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use guest_kernel::grant::{Access, MappedGrant};
use guest_kernel::{control, println};
use pv_abi::control::role;
use pv_abi::{DomId, Errno, GrantRef};

use crate::{checked, sleep};

/// Reference of the first page that a guest grants.
const FIRST: GrantRef = GrantRef(8);

/// What is compared, in the order of [`WHAT`].
const COUNTS: usize = 10;

/// How a count may change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    /// Not at all.
    Stay,
    /// Only grow.
    Grow,
    /// Only shrink, where the guest gives pages away.
    Shrink,
}

/// Places are told to the guest from 1.
const WHAT: [May; COUNTS] = [
    May::Stay,   // 1: ports
    May::Stay,   // 2: mappings of grants
    May::Stay,   // 3: address spaces
    May::Stay,   // 4: timers
    May::Shrink, // 5: RAM
    May::Grow,   // 6: shared pages: of its grant table
    May::Grow,   // 7: tables of stage 2
    May::Grow,   // 8: tables of grants
    May::Stay,   // 9: the hypervisor's own frames
    May::Stay,   // 10: frames of domains that are no more
];

fn counted(id: DomId) -> Result<[u64; COUNTS], Errno> {
    let of = control::counters(id)?;
    let nobodys = control::counters(DomId::XEN)?;
    Ok([
        of.ports.into(),
        of.grants_mapped.into(),
        of.vmids.into(),
        of.timers.into(),
        of.frames[role::DATA],
        of.frames[role::SHARED],
        of.frames[role::STAGE2],
        of.frames[role::DOMAIN_TABLE],
        nobodys.frames[role::HYPERVISOR],
        nobodys.frames[role::DATA],
    ])
}

/// How often a domain's pages are used in a life of it, in turn.
const LONG: [u32; 6] = [1, 0, 7, 20, 0, 30];

/// A domain that dies time and again.
struct Mate {
    id: DomId,
    deaths: u32,
    /// Uses of its pages when this life began.
    before: u32,
}

impl Mate {
    /// Ends its life if that was long enough, and builds it again.
    fn age(&mut self, used: u32) -> Result<(), Errno> {
        let long = LONG[self.deaths as usize % LONG.len()];
        if used.wrapping_sub(self.before) >= long {
            control::destroy(self.id)?;
            control::build(self.id)?;
            (self.before, self.deaths) = (used, self.deaths + 1);
        }
        Ok(())
    }
}

/// Serves domain `id` until it says that it is done, or ends. Meanwhile `mate` is destroyed and built again, time and again; when something is
/// counted it is not there.
pub(crate) fn serve(id: DomId, mate: Option<DomId>) -> Result<(), String> {
    let refused = |errno: Errno| format!("{errno:?}");
    let mut mate = mate.map(|id| Mate { id, deaths: 0, before: 0 });
    let mapped = loop {
        match MappedGrant::map(id, FIRST, Access::ReadWrite) {
            Ok(mapped) => break mapped,
            Err(_) => sleep(1)?,
        }
    };
    let [asked, answered, place, before, now, gives, used, ..] =
        mapped.frame().ok_or("the page is not mapped for writing")?.words();
    let mut began = None;
    loop {
        let number = asked.load(Ordering::Acquire);
        if number == u32::MAX || control::domain_info(id).is_err() {
            break;
        }
        if number != answered.load(Ordering::Acquire) {
            mate.as_ref().map_or(Ok(()), |mate| control::destroy(mate.id)).map_err(refused)?;
            checked()?;
            let found = counted(id).map_err(refused)?;
            mate.as_ref().map_or(Ok(()), |mate| control::build(mate.id)).map_err(refused)?;
            let first = *began.get_or_insert(found);
            let gives = gives.load(Ordering::Acquire) != 0;
            let differs = (1_u32..).zip(WHAT).zip(first.iter().zip(&found)).find(
                |((_, may), (one, other))| match may {
                    May::Stay => one != other,
                    May::Grow => one > other,
                    May::Shrink => one != other && !(gives && one > other),
                },
            );
            let low = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
            let told = differs.map_or([0; 3], |((at, _), (one, other))| [at, low(*one), low(*other)]);
            for (word, value) in [place, before, now].into_iter().zip(told) {
                word.store(value, Ordering::Release);
            }
            answered.store(number, Ordering::Release);
        }
        sleep(1)?;
        mate.as_mut().map_or(Ok(()), |mate| mate.age(used.load(Ordering::Acquire))).map_err(refused)?;
    }
    if let Some(mate) = mate {
        println!("control: {} lives ended", mate.deaths);
    }
    mapped.unmap().map_err(|error| format!("{error:?}"))
}
