//! What changes of page tables cost, in instructions where the counter counts those (`--icount`, `-cpu max`): an entry in batches of several sizes,
//! pins and unpins of tables and trees.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "maps its own pages")]
extern crate alloc;
use alloc::vec::Vec;

use guest_kernel::pv::{self, Page};
use guest_kernel::space::{self, Entry, PAGE, Rights, Space};
use guest_kernel::{Guest, cpu, paging, println};
use pv_abi::Errno;
use pv_abi::paging::{ExtOp, MmuUpdate};

guest_kernel::main!(main);

/// Times each figure is taken; the least is told.
const TIMES: u32 = 5;

/// Ticks that something takes, without those of looking at the counter.
fn ticks(mut work: impl FnMut() -> Result<(), Errno>) -> Result<u64, Errno> {
    let mut least = u64::MAX;
    for _ in 0..TIMES {
        let nothing = cpu::counter();
        let start = cpu::counter();
        work()?;
        let end = cpu::counter();
        least = least.min((end - start).saturating_sub(start - nothing));
    }
    Ok(least)
}

fn update(updates: &[MmuUpdate]) -> Result<(), Errno> {
    // SAFETY: pages of this guest's, mapped where nothing else is.
    unsafe { pv::update(updates) }.map_err(|(errno, _)| errno)
}

/// One batch of so many entries, all the same kind of change: from the first value to the second.
fn batch(table: u64, count: u64, from: u64, to: u64) -> Result<u64, Errno> {
    let entries = |val: u64| -> Vec<MmuUpdate> {
        (0..count)
            .map(|n| MmuUpdate { ptr: table + 8 * n, val: if val == 0 { 0 } else { val + PAGE * (n % 8) } })
            .collect()
    };
    let (before, after) = (entries(from), entries(to));
    let mut least = u64::MAX;
    for _ in 0..TIMES {
        update(&before)?;
        least = least.min(ticks_once(|| update(&after))?);
    }
    update(&entries(0))?;
    Ok(least)
}

fn ticks_once(work: impl FnOnce() -> Result<(), Errno>) -> Result<u64, Errno> {
    let nothing = cpu::counter();
    let start = cpu::counter();
    work()?;
    let end = cpu::counter();
    Ok((end - start).saturating_sub(start - nothing))
}

fn main(_: &Guest) -> Result<(), Errno> {
    let mut space = Space::new(paging::kernel_link(), 2)?;
    let at = 1 << 39;
    let table = space.make_tables(at)?;
    // Eight pages side by side, for leaves.
    let mut pages: Vec<u64> = (0..64).map(|_| space::take_page()).collect::<Result<_, _>>()?;
    pages.sort_unstable();
    let run = pages.windows(8).find(|run| run[7] == run[0] + 7 * PAGE).ok_or(Errno::Enomem)?;
    let data = Entry::page(run[0], Rights::UserData).bits();
    let constant = Entry::page(run[0], Rights::UserConstant).bits();
    for (what, from, to) in [
        ("map", 0, data),
        ("protect", data, constant),
        ("unmap", data, 0),
        ("another memory type", data, data ^ 1 << 2),
    ] {
        for count in [1, 8, 64, 512] {
            let all = batch(table, count, from, to)?;
            println!(
                "{what}: batch of {count}: {all} ticks, {}.{:02} an entry",
                all / count,
                all * 100 / count % 100
            );
        }
    }
    let leaf = Entry::page(run[0], Rights::UserData);
    let mut lone = space::take_page()?;
    for (what, filled) in [("empty", 0), ("full", 512)] {
        for n in 0..filled {
            let to = core::ptr::with_exposed_provenance_mut::<u64>(
                usize::try_from(lone + 8 * n).unwrap_or_default(),
            );
            // SAFETY: a page of its own, which is data now.
            unsafe { to.write_volatile(leaf.bits()) };
        }
        let mut pin = u64::MAX;
        let mut unpin = u64::MAX;
        for _ in 0..TIMES {
            pin = pin.min(ticks_once(|| pv::pin(Page::Table(3), lone))?);
            unpin = unpin.min(ticks_once(|| pv::unpin(lone))?);
        }
        println!("a table of level 3, {what}: pin {pin} ticks, unpin {unpin}");
    }
    lone = space::take_page()?;
    for tables in [1_u64, 8, 64, 512] {
        let (pin, unpin) = tree(lone, tables)?;
        println!(
            "a tree of {tables} tables below one: pin {} ticks a table, unpin {}",
            pin / tables,
            unpin / tables
        );
    }
    let kernel = ticks(|| space.enter())?;
    println!("another address space: {kernel} ticks");
    Ok(())
}

/// A table of level 2 with so many tables of level 3 that map a page each, pinned from below and unpinned from above.
fn tree(above: u64, tables: u64) -> Result<(u64, u64), Errno> {
    let put = |at: u64, value: u64| {
        let to = core::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(at).unwrap_or_default());
        // SAFETY: tables of its own, which are data now.
        unsafe { to.write_volatile(value) };
    };
    let (mut pins, mut unpins, mut below) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..tables {
        let table = space::take_page()?;
        put(table, Entry::page(above, Rights::UserConstant).bits());
        put(above + 8 * n, table | 3);
        pins.push(pv::pin_op(Page::Table(3), table));
        unpins.push(pv::op(ExtOp::Unpin, table / PAGE, 0));
        below.push(table);
    }
    pins.push(pv::pin_op(Page::Table(2), above));
    unpins.insert(0, pv::op(ExtOp::Unpin, above / PAGE, 0));
    // SAFETY: nobody else uses them.
    let pin = ticks_once(|| unsafe { pv::extended(&pins) }.map_err(|(errno, _)| errno))?;
    // SAFETY: as above.
    let unpin = ticks_once(|| unsafe { pv::extended(&unpins) }.map_err(|(errno, _)| errno))?;
    for (n, table) in (0..tables).zip(below) {
        put(above + 8 * n, 0);
        // SAFETY: data again, and nobody's.
        unsafe { space::give_page(table) };
    }
    Ok((pin, unpin))
}
