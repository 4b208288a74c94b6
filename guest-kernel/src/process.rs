//! Processes: programs at EL0 in address spaces of their own, with memory that comes when it is touched, copies that are made when somebody
//! writes, and system calls that come straight to EL1.
//!
//! 1. A page of a process is counted in [`Pages`] once for each space that maps it, and given back with the last.
//! 2. One process runs at a time, on the vCPU that has the [`Processes`]; what it did is a [`Stop`].
#![expect(unsafe_code, reason = "runs programs, and copies pages that they map")]
use alloc::vec::Vec;
use core::ops::Range;

use aarch64_cpu::registers::{Readable, SP_EL0, Writeable};
use pv_abi::{Errno, PAGE_SIZE};

use crate::attempt::{self, Level, Registers, class};
use crate::pv::{self, Page};
use crate::space::{self, Changes, Entry, PAGE, Rights, Space};
use crate::{cpu, paging};

/// Where a process has its program.
pub const TEXT: u64 = 1 << 39;
/// Where it has its data.
pub const DATA: u64 = TEXT + (1 << 30);
/// The end of its stack.
pub const STACK_END: u64 = TEXT + (2 << 30);
/// Most bytes of stack; nothing is mapped below them.
pub const STACK: u64 = 64 << 10;
/// Most processes, and the ASIDs that they take turns with: 2 and on.
pub const MAX: usize = 128;
const FIRST_ASID: u16 = 2;

/// A program that was loaded: pages that EL0 executes.
pub struct Program {
    pages: Vec<u64>,
}

impl Program {
    /// Copies a program into pages of its own, and makes them text.
    ///
    /// # Errors
    /// `-ENOMEM`, or with checked page tables those of `mmuext_op.pin_user_text` in docs/abi.md.
    pub fn load(bytes: &[u8]) -> Result<Self, Errno> {
        let mut pages = Vec::new();
        for part in bytes.chunks(PAGE_SIZE) {
            let page = space::take_page()?;
            let to = core::ptr::with_exposed_provenance_mut::<u8>(page as usize);
            // SAFETY: a fresh page, and at most its size.
            unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len()) };
            cpu::sync_instructions(page as usize, PAGE_SIZE);
            if pv::is_on() {
                pv::pin(Page::UserText, page)?;
            }
            pages.push(page);
        }
        Ok(Self { pages })
    }
}

/// How many spaces map each page of RAM.
struct Pages {
    first: u64,
    counts: Vec<u16>,
}

impl Pages {
    fn count(&mut self, page: u64) -> Option<&mut u16> {
        let index = usize::try_from(page.checked_sub(self.first)? / PAGE).ok()?;
        self.counts.get_mut(index)
    }

    /// One space more maps it.
    fn share(&mut self, page: u64) {
        if let Some(count) = self.count(page) {
            *count += 1;
        }
    }

    /// One space less maps it; the last one gives it back.
    fn leave(&mut self, page: u64) {
        if let Some(count) = self.count(page) {
            *count -= 1;
            if *count == 0 {
                // SAFETY: it came from `take_page`, and nobody maps it any more.
                unsafe { space::give_page(page) };
            }
        }
    }
}

/// Memory that a process may touch.
struct Area {
    range: Range<u64>,
    writable: bool,
}

/// A process.
struct Process {
    id: u32,
    parent: u32,
    space: Space,
    x: Registers,
    pc: u64,
    sp: u64,
    areas: Vec<Area>,
}

/// Why a process does not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It asked for something: the number in x8, arguments in x0 to x2.
    Call(u64, [u64; 3]),
    /// It did what it may not: syndrome and address.
    Killed(u64, u64),
    /// An interrupt came.
    Interrupted,
}

/// A process that has ended: its number, its parent's, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Its number.
    pub id: u32,
    /// Its parent's; 0 for one that was begun by the kernel.
    pub parent: u32,
    /// What it said, or `Err` with the syndrome and address of what it may not.
    pub how: Result<u64, (u64, u64)>,
}

/// What processes do is counted here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// How often.
    pub times: u64,
    /// Hypercalls for all of them.
    pub hypercalls: u64,
    /// Ticks of the counter for all of them.
    pub ticks: u64,
}

impl Counts {
    fn of<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let (calls, start) = (pv::calls(), cpu::counter());
        let result = work();
        self.ticks += cpu::counter() - start;
        self.hypercalls += pv::calls() - calls;
        self.times += 1;
        result
    }
}

/// All processes of a vCPU.
pub struct Processes {
    all: Vec<Process>,
    pages: Pages,
    free_asids: Vec<u16>,
    next_id: u32,
    /// Whose space is in use; 0 is the kernel's.
    current: u32,
    /// Forks.
    pub forks: Counts,
    /// Starts of programs.
    pub execs: Counts,
    /// Pages that came when they were touched.
    pub zeroed: Counts,
    /// Pages that were copied when they were written.
    pub copied: Counts,
    /// Changes from one space to another.
    pub switches: Counts,
    /// Ends.
    pub exits: Counts,
    /// Changes of rights.
    pub protections: Counts,
}

impl Processes {
    /// None yet; their pages lie in this RAM.
    pub fn new(ram: crate::tree::Region) -> Self {
        let pages = usize::try_from(ram.size / PAGE).unwrap_or(0);
        let counts = alloc::vec![0; pages];
        let free_asids = (0..MAX as u16).rev().map(|n| FIRST_ASID + n).collect();
        Self {
            all: Vec::new(),
            pages: Pages { first: ram.start, counts },
            free_asids,
            next_id: 1,
            current: 0,
            forks: Counts::default(),
            execs: Counts::default(),
            zeroed: Counts::default(),
            copied: Counts::default(),
            switches: Counts::default(),
            exits: Counts::default(),
            protections: Counts::default(),
        }
    }

    fn fresh(
        &mut self,
        program: &Program,
        argument: u64,
        data: u64,
    ) -> Result<(Space, Vec<Area>, Registers), Errno> {
        let asid = self.free_asids.pop().ok_or(Errno::Enospc)?;
        let mut space = Space::new(paging::kernel_link(), asid)?;
        let mut changes = Changes::with_room(program.pages.len());
        for (n, page) in program.pages.iter().enumerate() {
            let at = TEXT + n as u64 * PAGE;
            space.make_tables(at)?;
            space.change(&mut changes, at, Entry::page(*page, Rights::UserText))?;
        }
        // SAFETY: nothing was there.
        unsafe { changes.make() }?;
        let areas = [
            Area { range: DATA..DATA + data, writable: true },
            Area { range: STACK_END - STACK..STACK_END, writable: true },
        ];
        let mut x = [0; 31];
        x[0] = argument;
        Ok((space, areas.into(), x))
    }

    /// Begins a process that runs a program with an argument in x0 and so many bytes of data; its number.
    ///
    /// # Errors
    /// `-ENOMEM`, `-ENOSPC`, or those of [`Space::new`] and [`Space::make_tables`].
    pub fn spawn(&mut self, program: &Program, argument: u64, data: u64) -> Result<u32, Errno> {
        let mut counts = self.execs;
        let made = counts.of(|| self.fresh(program, argument, data));
        self.execs = counts;
        let (space, areas, x) = made?;
        let id = self.next_id;
        self.next_id += 1;
        self.all.push(Process { id, parent: 0, space, x, pc: TEXT, sp: STACK_END, areas });
        Ok(id)
    }

    fn find(&mut self, id: u32) -> Result<&mut Process, Errno> {
        self.all.iter_mut().find(|process| process.id == id).ok_or(Errno::Esrch)
    }

    /// All that are there, in the order of their beginning.
    pub fn ids(&self) -> Vec<u32> {
        self.all.iter().map(|process| process.id).collect()
    }

    fn switch(&mut self, id: u32) -> Result<(), Errno> {
        if self.current == id {
            return Ok(());
        }
        let mut counts = self.switches;
        let space = &self.find(id)?.space;
        let outcome = counts.of(|| space.enter());
        self.switches = counts;
        self.current = id;
        outcome
    }

    /// Runs a process until it asks for something, ends, or is interrupted; what it needs of memory it gets meanwhile.
    ///
    /// # Errors
    /// `-ESRCH`, `-ENOMEM`, or those of [`Space::enter`], [`Space::make_tables`] and [`Changes::make`].
    pub fn run(&mut self, id: u32) -> Result<Stop, Errno> {
        loop {
            self.switch(id)?;
            let process = self.find(id)?;
            SP_EL0.set(process.sp);
            // SAFETY: EL0 reaches what its space maps for it, which is its own.
            let taken = unsafe { attempt::run(Level::Process, process.pc, &mut process.x) };
            process.sp = SP_EL0.get();
            let Some(taken) = taken else { return Err(Errno::Einval) };
            process.pc = taken.elr;
            if taken.vector == 9 {
                return Ok(Stop::Interrupted);
            }
            match taken.class() {
                class::SVC64 => {
                    let [x0, x1, x2, ..] = process.x;
                    return Ok(Stop::Call(process.x[8], [x0, x1, x2]));
                }
                // ISS.WnR, and a fault of translation or permission (Arm ARM D24.2.40).
                class::DATA_ABORT_LOWER if self.serve(id, taken.far, taken.esr & 1 << 6 != 0)? => {}
                _ => return Ok(Stop::Killed(taken.esr, taken.far)),
            }
        }
    }

    /// Gives a process the page that it has touched, if it may have it.
    fn serve(&mut self, id: u32, address: u64, write: bool) -> Result<bool, Errno> {
        let at = address & !(PAGE - 1);
        let Self { all, pages, zeroed, copied, .. } = self;
        let process = all.iter_mut().find(|process| process.id == id).ok_or(Errno::Esrch)?;
        let Some(area) = process.areas.iter().find(|area| area.range.contains(&at)) else { return Ok(false) };
        if write && !area.writable {
            return Ok(false);
        }
        let rights = if area.writable { Rights::UserData } else { Rights::UserConstant };
        let entry = process.space.entry(at);
        let space = &mut process.space;
        match entry.target() {
            None => zeroed.of(|| {
                let page = space::take_page()?;
                pages.share(page);
                // SAFETY: nothing was there, and the page is its own.
                unsafe { space.set(at, Entry::page(page, rights)) }
            })?,
            Some(from) if write && entry.is_copied() => copied.of(|| {
                let alone = pages.count(from).is_some_and(|count| *count == 1);
                let page = if alone { from } else { space::take_page()? };
                if !alone {
                    let [source, target] =
                        [from, page].map(|page| core::ptr::with_exposed_provenance_mut::<u8>(page as usize));
                    // SAFETY: pages of processes, none of which runs; both are mapped for the kernel.
                    unsafe { core::ptr::copy_nonoverlapping(source, target, PAGE_SIZE) };
                    pages.share(page);
                }
                // SAFETY: the same bytes.
                unsafe { space.set(at, Entry::page(page, Rights::UserData)) }?;
                if !alone {
                    pages.leave(from);
                }
                Ok::<_, Errno>(())
            })?,
            // It may read what is there, and write what is not copied: this fault is another's.
            Some(_) => return Ok(false),
        }
        Ok(true)
    }

    /// A process becomes two: the new one's number. The new one finds 0 in its x0.
    ///
    /// # Errors
    /// `-ESRCH`, `-ENOMEM`, `-ENOSPC`, or those of [`Space::fork`].
    pub fn fork(&mut self, id: u32) -> Result<u32, Errno> {
        let asid = self.free_asids.pop().ok_or(Errno::Enospc)?;
        let Self { all, pages, forks, .. } = self;
        let process = all.iter().find(|process| process.id == id).ok_or(Errno::Esrch)?;
        // SAFETY: pages are counted.
        let space = forks.of(|| unsafe {
            process.space.fork(asid, |entry| {
                if let Some(page) = entry.target().filter(|_| !entry.is_text()) {
                    pages.share(page);
                }
            })
        })?;
        let areas = process
            .areas
            .iter()
            .map(|area| Area { range: area.range.clone(), writable: area.writable })
            .collect();
        let mut x = process.x;
        x[0] = 0;
        let (pc, sp) = (process.pc, process.sp);
        let child = self.next_id;
        self.next_id += 1;
        self.all.push(Process { id: child, parent: id, space, x, pc, sp, areas });
        Ok(child)
    }

    /// A process begins anew with another program.
    ///
    /// # Errors
    /// As for [`Processes::spawn`].
    pub fn exec(&mut self, id: u32, program: &Program, argument: u64, data: u64) -> Result<(), Errno> {
        let mut counts = self.execs;
        let outcome = counts.of(|| {
            let (space, areas, x) = self.fresh(program, argument, data)?;
            space.enter()?;
            self.current = id;
            let process = self.find(id)?;
            let old = core::mem::replace(&mut process.space, space);
            (process.areas, process.x, process.pc, process.sp) = (areas, x, TEXT, STACK_END);
            self.discard(old)
        });
        self.execs = counts;
        outcome
    }

    /// Frees a space that no vCPU uses.
    fn discard(&mut self, space: Space) -> Result<(), Errno> {
        let mut leave = Vec::new();
        space.pages(|_, entry| {
            if !entry.is_text() {
                leave.extend(entry.target());
            }
        });
        let asid = space.asid();
        // SAFETY: nobody uses it.
        unsafe { space.free() }?;
        self.free_asids.push(asid);
        for page in leave {
            self.pages.leave(page);
        }
        Ok(())
    }

    /// Ends a process.
    ///
    /// # Errors
    /// `-ESRCH`, or those of [`Space::free`].
    pub fn end(&mut self, id: u32, how: Result<u64, (u64, u64)>) -> Result<Ended, Errno> {
        let mut counts = self.exits;
        let ended = counts.of(|| {
            let index = self.all.iter().position(|process| process.id == id).ok_or(Errno::Esrch)?;
            paging::enter_kernel()?;
            self.current = 0;
            let Process { parent, space, .. } = self.all.remove(index);
            self.discard(space)?;
            Ok(Ended { id, parent, how })
        });
        self.exits = counts;
        ended
    }

    /// Gives a process an answer in a register; x0 is that of a call.
    ///
    /// # Errors
    /// `-ESRCH`, `-EINVAL`
    pub fn set(&mut self, id: u32, register: usize, value: u64) -> Result<(), Errno> {
        *self.find(id)?.x.get_mut(register).ok_or(Errno::Einval)? = value;
        Ok(())
    }

    /// Lets a process write in a range of its data, or not; the range must be one that it has, or its beginning.
    ///
    /// # Errors
    /// `-ESRCH`, `-EINVAL`, or those of [`Changes::make`].
    pub fn protect(&mut self, id: u32, range: Range<u64>, writable: bool) -> Result<(), Errno> {
        let Self { all, protections, .. } = self;
        let process = all.iter_mut().find(|process| process.id == id).ok_or(Errno::Esrch)?;
        let whole =
            range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE) && range.start < range.end;
        let index = process
            .areas
            .iter()
            .position(|area| whole && area.range.start == range.start && range.end <= area.range.end);
        let Some(area) = index.and_then(|index| process.areas.get_mut(index)) else {
            return Err(Errno::Einval);
        };
        let rest = Area { range: range.end..area.range.end, writable: area.writable };
        *area = Area { range: range.clone(), writable };
        if !rest.range.is_empty() {
            process.areas.push(rest);
        }
        let space = &process.space;
        protections.of(|| {
            let mut changes = Changes::default();
            for at in range.step_by(PAGE_SIZE) {
                let entry = space.entry(at);
                let Some(page) = entry.target() else { continue };
                let rights = match (writable, entry.is_copied()) {
                    (false, false) => Rights::UserConstant,
                    (true, false) => Rights::UserData,
                    // It stays shared; who may not write is kept from it by the area.
                    (_, true) => Rights::UserCopied,
                };
                space.change(&mut changes, at, Entry::page(page, rights))?;
            }
            // SAFETY: the same pages.
            unsafe { changes.make() }
        })
    }
}
