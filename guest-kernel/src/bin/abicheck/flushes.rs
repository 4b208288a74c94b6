//! Cache maintenance of another's page: while it is mapped, and wherever a command says that it goes on.
extern crate alloc;
use alloc::vec;
use alloc::vec::Vec;

use pv_abi::grant::{CacheFlush, GrantOp, GrantStatus, MapFlags, MapGrantRef, UnmapGrantRef};
use pv_abi::multicall::MulticallEntry;
use pv_abi::{Errno, Hypercall};

use super::domains::Partner;
use super::partner::Command;
use super::raw::{self, FREE, address};
use super::tap::Tap;

/// Where it is mapped: nothing is there.
const AT: u64 = (FREE - 8) << 12;
/// `cache_flush`, and the bit from which on a command says at which reference it goes on: a multiple of 4096.
const FLUSH: u64 = 12;
const PROGRESS: u64 = 1 << 12;

pub(crate) fn of_another(tap: &mut Tap, partner: &Partner) {
    let (index, gref) = partner.grant(partner.own, 0);
    let flags = MapFlags::HOST_MAP.bits();
    let mut map = MapGrantRef { host_addr: AT, flags, gref, dom: partner.id, ..Default::default() };
    let mapped = raw::grant(GrantOp::MapGrantRef, &mut map, |it| it.status);
    tap.is("a page to flush is mapped", mapped, Ok(GrantStatus::Okay));
    let flush = |cmd: u64, length: u16, count: usize| {
        let one = CacheFlush { addr_or_ref: map.dev_bus_addr, offset: 0, length, op: 3 };
        raw::grants(cmd, &mut vec![one; count])
    };
    tap.is("cache_flush of another's page that is mapped", flush(FLUSH, 4096, 1), Ok(0));
    for count in [15, 16, 17, 40] {
        tap.is(format_args!("cache_flush of it {count} times in a batch"), flush(FLUSH, 64, count), Ok(0));
    }
    for step in [1, 2, 7, 8, 1 << 18, 0xF_FFFF] {
        tap.is(
            format_args!("cache_flush of it that goes on at step {step}, behind its reference"),
            flush(FLUSH | (PROGRESS * step), 64, 1),
            Err(Errno::Einval),
        );
        tap.is(
            format_args!("cache_flush of nothing that goes on at step {step}"),
            flush(FLUSH | (PROGRESS * step), 0, 1),
            Err(Errno::Eilseq),
        );
    }
    let mut flushes = vec![CacheFlush { addr_or_ref: map.dev_bus_addr, offset: 0, length: 64, op: 3 }; 16];
    let mut entries: Vec<MulticallEntry> = (0..12)
        .map(|_| MulticallEntry {
            op: u64::from(Hypercall::GrantTableOp.number()),
            args: [FLUSH, address(&mut flushes[..]), 16, 0, 0, 0],
            result: 99,
        })
        .collect();
    tap.is(
        "cache_flush of it 16 times in each of twelve calls of a multicall",
        (raw::multicall(&mut entries), entries.iter().all(|entry| entry.result == 0)),
        (Ok(0), true),
    );
    let mut unmap = UnmapGrantRef { host_addr: AT, handle: map.handle, ..Default::default() };
    let unmapped = raw::grant(GrantOp::UnmapGrantRef, &mut unmap, |it| it.status);
    tap.is("the page that was flushed is unmapped", unmapped, Ok(GrantStatus::Okay));
    tap.is("cache_flush of another's page that is mapped no more", flush(FLUSH, 64, 1), Err(Errno::Einval));
    tap.is("and taken back", partner.ask(Command::End, &[index])[0], 1);
}
