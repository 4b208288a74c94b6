//! Mappings in the upper half of the kernel's addresses: pages from anywhere side by side, with nothing mapped before and behind them.
//!
//! 1. Addresses are used once: what still points at something that is gone faults.
#![expect(unsafe_code, reason = "slices of memory that is mapped here")]
use alloc::vec::Vec;
use pv_abi::{Errno, PAGE_SIZE};

use crate::lock::Lock;
use crate::space::{self, Changes, Entry, PAGE, Rights, Space};
use crate::{cpu, paging};

/// The first address of the upper half, 48 bits.
const FIRST: u64 = 0xffff_0000_0000_0000;

struct Upper {
    space: Option<Space>,
    next: u64,
}

static UPPER: Lock<Upper> = Lock::new(Upper { space: None, next: FIRST });

fn with<R>(work: impl FnOnce(&mut Space, &mut u64) -> Result<R, Errno>) -> Result<R, Errno> {
    cpu::without_interrupts(|| {
        let upper = &mut *UPPER.lock();
        let space = upper.space.get_or_insert_with(|| Space::upper(paging::upper_root()));
        work(space, &mut upper.next)
    })
}

/// Pages that are mapped side by side, read and write, zero at first.
pub struct Mapped {
    at: u64,
    pages: Vec<u64>,
}

impl Mapped {
    /// Maps so many fresh pages.
    ///
    /// # Errors
    /// `-ENOMEM`, or those of [`Space::make_tables`] and [`Changes::make`].
    pub fn new(count: usize) -> Result<Self, Errno> {
        with(|space, next| {
            let at = *next + PAGE;
            *next = at + count as u64 * PAGE;
            let mut mapped = Self { at, pages: Vec::with_capacity(count) };
            let mut changes = Changes::with_room(count);
            for n in 0..count {
                let page = space::take_page()?;
                mapped.pages.push(page);
                let address = at + n as u64 * PAGE;
                space.make_tables(address)?;
                space.change(&mut changes, address, Entry::page(page, Rights::Data))?;
            }
            // SAFETY: nothing was there, and the pages are its own.
            unsafe { changes.make() }?;
            Ok(mapped)
        })
    }

    /// The first address.
    pub const fn start(&self) -> u64 {
        self.at
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = core::ptr::with_exposed_provenance_mut(self.at as usize);
        // SAFETY: mapped, its own, writable while nobody has protected it (`protect` borrows it).
        unsafe { core::slice::from_raw_parts_mut(start, self.pages.len() * PAGE_SIZE) }
    }

    /// Takes the right to write away, for as long as the result is held.
    ///
    /// # Errors
    /// As [`Changes::make`].
    pub fn protect(&mut self) -> Result<Protected<'_>, Errno> {
        self.change(Rights::Constant)?;
        Ok(Protected(self))
    }

    fn change(&self, rights: Rights) -> Result<(), Errno> {
        with(|space, _| {
            let mut changes = Changes::with_room(self.pages.len());
            for (n, page) in self.pages.iter().enumerate() {
                space.change(&mut changes, self.at + n as u64 * PAGE, Entry::page(*page, rights))?;
            }
            // SAFETY: the same pages.
            unsafe { changes.make() }
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let unmapped = with(|space, _| {
            let mut changes = Changes::with_room(self.pages.len());
            for n in 0..self.pages.len() {
                space.change(&mut changes, self.at + n as u64 * PAGE, Entry::EMPTY)?;
            }
            // SAFETY: nobody has a reference to it any more.
            unsafe { changes.make() }
        });
        if unmapped.is_ok() {
            for page in self.pages.drain(..) {
                // SAFETY: nobody maps it any more.
                unsafe { space::give_page(page) };
            }
        }
    }
}

/// Pages that can only be read.
pub struct Protected<'a>(&'a mut Mapped);

impl Protected<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        let start = core::ptr::with_exposed_provenance(self.0.at as usize);
        // SAFETY: mapped, borrowed.
        unsafe { core::slice::from_raw_parts(start, self.0.pages.len() * PAGE_SIZE) }
    }
}

impl Drop for Protected<'_> {
    fn drop(&mut self) {
        // What cannot be written again is the owner's next fault.
        let _ = self.0.change(Rights::Data);
    }
}
