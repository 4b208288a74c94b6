//! Every call of the table, and every number that is not in it, with registers and structures that nobody chose: alone, and while another
//! vCPU writes into the structures. Each call ends, and with an answer that the table has.
#![expect(unsafe_code, reason = "hypercalls with arbitrary arguments are what is tested")]
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use guest_kernel::interrupt::{self, Intid};
use guest_kernel::{Guest, hypercall, smp, time, timer};
use pv_abi::call::{Operation, Origin, Row, TABLE};
use pv_abi::event::Reset;
use pv_abi::grant::GrantOp;
use pv_abi::sched::SchedOp;
use pv_abi::vcpu::ASSIST_RUNSTATE_UPDATE_FLAG;
use pv_abi::{DomId, Errno, Hypercall};

use super::pool::{PAGE_AT, Pool, put};
use crate::tap::Tap;

/// Tries of each sub-call.
const SEEDS: u64 = 200;
/// Tries of each command that there is not.
const FEW: u64 = 8;
/// Words of a structure: more than any has.
const WORDS: u64 = 24;
/// Calls with answers of their own for who is not the control domain: `platform_op`, `sysctl`, `domctl`, `hypfs_op`; and the versions
/// that the first three ask for.
const PRIVILEGED: [(u64, u64); 4] = [(7, 0x0300_0001), (35, 0x15), (36, 0x17), (42, 0)];

/// Registers of a call: x16, x0 to x4.
type Registers = (u64, [u64; 5]);
/// A call that was not answered as it may be: its registers, and the answer.
type Wrong = Option<(Registers, i64)>;

static CHANGING: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    // Whatever blocks ends with the next tick.
    let ticks = interrupt::start(guest.tree.gic).and_then(|()| interrupt::enable(Intid::TIMER, tick));
    tick();
    tap.is("the timer", ticks, Ok(()));
    let Some(mut pool) = Pool::new() else { return tap.that("pages", false) };
    let page = PAGE_AT;
    // The first reason that is latched is the one: the end of this guest is to be an orderly one, whatever comes.
    put(page, 0);
    tap.is(
        "a reason",
        call((
            u64::from(Hypercall::SchedOp.number()),
            [u64::from(SchedOp::ShutdownCode.number()), page, 0, 0, 0],
        )),
        0,
    );
    numbers(tap, &mut pool);
    privileged(tap, &mut pool, page);
    firmware(tap, &mut pool);
    tap.is("every sub-call, with any registers, answers as its row says", table(&mut pool, page), None);
    tap.is("multicalls of them end", multicalls(&mut pool, page), None);
    changing(tap, &mut pool, page);
    timer::disarm();
    tap.that("no port and no watchdog is left", settle());
}

fn tick() {
    timer::arm(time::now().after(Duration::from_millis(1)));
}

fn call((number, args): Registers) -> i64 {
    // SAFETY: what is named lies in pages that nobody uses, or nowhere (`Pool`).
    unsafe { hypercall::raw(number, args) }
}

/// Ends all ports and watchdogs of this domain.
pub(super) fn settle() -> bool {
    let watchdogs = [1_u64, 2].map(|id| {
        let stop = [id];
        let at = stop.as_ptr().expose_provenance() as u64;
        call((u64::from(Hypercall::SchedOp.number()), [u64::from(SchedOp::Watchdog.number()), at, 0, 0, 0]))
    });
    let ports = hypercall::event_reset(&mut Reset { dom: DomId::SELF });
    ports.is_ok() && watchdogs.iter().all(|answer| *answer <= 0)
}

/// Numbers that are not in the table: all of 16 bits, and some of 64.
fn numbers(tap: &mut Tap, pool: &mut Pool) {
    let known = |number: u64| {
        Hypercall::from_number(number).is_some() || PRIVILEGED.iter().any(|(other, _)| *other == number)
    };
    let mut wrong: Wrong = None;
    let far: Vec<u64> = (0..4096).map(|_| pool.next()).collect();
    let edges = (0..64).map(|bit| 1 << bit | 32);
    for number in (0..=0xffff).chain(far).chain(edges).filter(|number| !known(*number)) {
        let registers = (number, core::array::from_fn(|_| pool.value()));
        let answer = call(registers);
        if answer != Errno::Enosys.to_result() {
            wrong = wrong.or(Some((registers, answer)));
        }
    }
    tap.is("every number that no call has is refused", wrong, None);
}

/// The control domain's calls: refused, whatever they ask for.
fn privileged(tap: &mut Tap, pool: &mut Pool, page: u64) {
    let mut wrong: Wrong = None;
    for (number, version) in PRIVILEGED {
        for cmd in (0..0x100).chain(0x8000..0x8010) {
            for seed in 0..8 {
                pool.seed(number << 32 | cmd << 8 | seed);
                pool.fill(page, WORDS);
                // Mostly as the version that is asked for, about a domain that there is.
                match seed {
                    0 => {}
                    _ if number == 7 => put(page, cmd | version << 32),
                    _ => {
                        put(page, cmd | version << 32);
                        put(page + 8, pool.below(5));
                    }
                }
                let handle = if seed < 7 { page } else { pool.address() };
                let registers = (number, [handle, pool.below(2), pool.value(), pool.value(), 0]);
                let answer = call(registers);
                if !refused(answer, &[Errno::Eperm, Errno::Eacces, Errno::Efault, Errno::Esrch]) {
                    wrong = wrong.or(Some((registers, answer)));
                }
            }
        }
    }
    tap.is("the control domain's calls are refused to others", wrong, None);
}

fn refused(answer: i64, with: &[Errno]) -> bool {
    with.iter().any(|errno| errno.to_result() == answer)
}

/// Functions of `hvc #0`: all that PSCI and SMCCC number, but for those that end this guest or start a vCPU.
fn firmware(tap: &mut Tap, pool: &mut Pool) {
    // CPU_SUSPEND, CPU_OFF, CPU_ON, SYSTEM_OFF, SYSTEM_RESET, SYSTEM_SUSPEND, SYSTEM_RESET2.
    const NOT: [u32; 7] = [1, 2, 3, 8, 9, 14, 18];
    let (mut answered, mut tried) = (0_u32, 0_u32);
    for base in
        [0x8000_0000_u32, 0xc000_0000, 0x8400_0000, 0xc400_0000, 0x8500_0000, 0xc600_0000, 0, 0x4400_0000]
    {
        // PSCI 0.1 has numbers of its own, from 1.
        let standard = base == 0 || base & 0x3f00_0000 == 0x0400_0000;
        for function in (0..0x100).chain(0x8000..0x8010).chain([0x3fff, 0x7fff, 0xff00, 0xff01, 0xff03]) {
            if standard && NOT.contains(&function) {
                continue;
            }
            tried += 1;
            let args = core::array::from_fn(|_| pool.value());
            // SAFETY: none of these functions writes this guest's memory.
            let _ = unsafe { hypercall::smccc(base | function, args) };
            answered += 1;
        }
    }
    tap.is("every function of hvc #0 returns", answered, tried);
}

/// The registers of a sub-call, with its structure in the page, or elsewhere.
fn registers(pool: &mut Pool, row: &Row, cmd: u32, page: u64) -> Registers {
    pool.fill(page, WORDS);
    let good = pool.below(3) != 0;
    let handle = if good { page + pool.below(2) * 8 * pool.below(8) } else { pool.address() };
    let mut args = core::array::from_fn(|_| pool.value());
    for (arg, name) in args.iter_mut().zip(row.args) {
        match *name {
            "cmd" => *arg = with_progress(pool, row, cmd),
            "arg" | "args" | "calls" | "buffer" => *arg = handle,
            "count" => *arg = count(pool, row, *arg),
            _ => {}
        }
    }
    (u64::from(row.number), args)
}

/// The command, sometimes with what only a restarted call has, or with bits that are none of an `int`.
fn with_progress(pool: &mut Pool, row: &Row, cmd: u32) -> u64 {
    let cmd = u64::from(cmd);
    match pool.below(4) {
        0 if row.number == Hypercall::MemoryOp.number() => cmd | pool.value() << 6,
        0 if row.number == Hypercall::GrantTableOp.number() => cmd | pool.below(1 << 20) << 12,
        1 => cmd | pool.next() << 32,
        _ => cmd,
    }
}

/// As many as there are, or few: text for the console is for its own family.
fn count(pool: &mut Pool, row: &Row, any: u64) -> u64 {
    match pool.below(3) {
        _ if row.number == Hypercall::ConsoleIo.number() => pool.below(8),
        0 => any,
        _ => pool.below(40),
    }
}

/// Shutting down ends this guest: it finds no structure. A watchdog is one of many hours, and text is blank; while another vCPU writes
/// neither would last.
fn tame(row: &Row, cmd: u32, seed: u64, (_, args): &mut Registers) {
    let nowhere = [0, 0x7e_0000_0000, u64::MAX - 2][seed as usize % 3];
    let gone = CHANGING.load(Ordering::Relaxed) || seed.is_multiple_of(4);
    if row.number == Hypercall::ConsoleIo.number() {
        put(PAGE_AT, 0x2020_2020_2020_2020);
        args[2] = if gone { nowhere } else { PAGE_AT };
    } else if row.number == Hypercall::SchedOp.number() && cmd == SchedOp::Shutdown.number() {
        args[1] = nowhere;
    } else if row.number == Hypercall::SchedOp.number() && cmd == SchedOp::Watchdog.number() {
        put(PAGE_AT, [0, 1, 2, 3, 0xffff_ffff][seed as usize % 5] | (0xffff_ffff - seed) << 32);
        args[1] = if gone { nowhere } else { PAGE_AT };
    }
}

/// Every row, every sub-call, every seed.
fn each(pool: &mut Pool, page: u64, mut told: impl FnMut(&Row, &Operation, Registers, i64)) {
    for row in TABLE.iter().filter(|row| row.number != Hypercall::Multicall.number()) {
        // This guest owns its page tables, and has none of their calls.
        let is_paging = row.origin() == Origin::Meaning;
        let operations = if is_paging { &[] } else { row.operations };
        for operation in operations {
            for seed in 0..SEEDS {
                pool.seed(u64::from(row.number) << 32 | u64::from(operation.number) << 16 | seed);
                let mut registers = registers(pool, row, operation.number, page);
                tame(row, operation.number, seed, &mut registers);
                let answer = call(registers);
                let watchdog = row.number == Hypercall::SchedOp.number()
                    && operation.number == SchedOp::Watchdog.number();
                if watchdog || seed == SEEDS - 1 {
                    let _ = settle();
                }
                told(row, operation, registers, answer);
            }
        }
        // Commands that the row does not have (no command of the console's writes text then).
        let unknown = |cmd: &u32| operations.iter().all(|operation| operation.number != *cmd);
        for cmd in (0..64).chain([0x7f, 0x7fff_ffff]).filter(unknown) {
            for seed in 0..FEW {
                pool.seed(u64::from(row.number) << 32 | u64::from(cmd) << 16 | seed);
                let registers = registers(pool, row, cmd, page);
                let answer = call(registers);
                told(row, if is_paging { &NOT_OFFERED } else { &NO_OPERATION }, registers, answer);
            }
        }
    }
    guest_kernel::println!();
}

/// What only a row's `otherwise` answers.
const NO_OPERATION: Operation = Operation {
    number: 0,
    name: "",
    argument: "none",
    cost: pv_abi::call::Cost::Constant,
    succeeds: false,
    errors: &[],
    statuses: &[],
    doc: "",
};
/// `mmu_update`, `update_va_mapping`, `mmuext_op` in a domain that owns its page tables.
const NOT_OFFERED: Operation = Operation { errors: &[Errno::Enosys], ..NO_OPERATION };

/// What is looked at before the command, and refused with `-EINVAL` whatever it is: for `grant_table_op` a count beyond an `int`, and progress,
/// which only `cache_flush` has; for `vm_assist` any assistance but the one of ARM.
fn is_refused_early(row: &Row, (_, [cmd, second, count, ..]): &Registers) -> bool {
    const PROGRESS_SHIFT: u32 = 12;
    let (cmd, second, count) = (*cmd as u32, *second as u32, *count as u32);
    if row.number == Hypercall::GrantTableOp.number() {
        let op = cmd & ((1 << PROGRESS_SHIFT) - 1);
        i32::try_from(count).is_err() || cmd >> PROGRESS_SHIFT != 0 && op != GrantOp::CacheFlush.number()
    } else {
        row.number == Hypercall::VmAssist.number() && second != ASSIST_RUNSTATE_UPDATE_FLAG
    }
}

/// Whether a sub-call may answer that. Most answers are ints, and a refusal is not always sign-extended; those of `memory_op` are longs.
fn may_answer(row: &Row, operation: &Operation, registers: &Registers, answer: i64) -> bool {
    let int = if row.number == Hypercall::MemoryOp.number() { answer } else { i64::from(answer as i32) };
    if is_refused_early(row, registers) {
        return int == Errno::Einval.to_result();
    }
    let known = operation.errors.iter().chain(row.otherwise).any(|errno| errno.to_result() == int);
    if int < 0 { known } else { operation.succeeds }
}

fn table(pool: &mut Pool, page: u64) -> Wrong {
    let mut wrong = None;
    each(pool, page, |row, operation, registers, answer| {
        if !may_answer(row, operation, &registers, answer) {
            wrong = wrong.or(Some((registers, answer)));
        }
    });
    wrong
}

/// Batches of them: every entry is served, or the batch refused.
fn multicalls(pool: &mut Pool, page: u64) -> Wrong {
    let mut wrong = None;
    for seed in 0..SEEDS * 4 {
        pool.seed(seed ^ 0xffff_0000);
        for entry in 0..16 {
            let row = &TABLE[pool.below(TABLE.len() as u64) as usize];
            pool.fill(page + entry * 64, 8);
            if ![Hypercall::SchedOp.number(), Hypercall::ConsoleIo.number()].contains(&row.number) {
                put(page + entry * 64, u64::from(row.number));
                put(page + entry * 64 + 16, pool.below(16));
            }
        }
        let registers =
            (u64::from(Hypercall::Multicall.number()), [page, pool.below(17), pool.value(), pool.value(), 0]);
        let answer = call(registers);
        if answer != 0 {
            wrong = wrong.or(Some((registers, answer)));
        }
    }
    let _ = settle();
    guest_kernel::println!();
    wrong
}

/// All again while another vCPU writes into the structures and the lists behind them.
fn changing(tap: &mut Tap, pool: &mut Pool, page: u64) {
    let Some(other) = smp::all().next_back().filter(|other| other.number() > 0) else {
        return tap.that("(one vCPU: nothing to do)", true);
    };
    CHANGING.store(true, Ordering::Relaxed);
    let mut changer = pool.share();
    let started = smp::start(other, move || {
        while !DONE.load(Ordering::Relaxed) {
            let at = page + changer.below(WORDS) * 8;
            let value = changer.value();
            put(at, value);
            WRITTEN.fetch_add(1, Ordering::Relaxed);
        }
    });
    let Ok(started) = started else { return tap.that("another vCPU", false) };
    let mut wrong = table(pool, page);
    wrong = wrong.or(multicalls(pool, page));
    DONE.store(true, Ordering::Relaxed);
    started.join();
    tap.is("what another vCPU changes meanwhile is read once: every answer is one of the row's", wrong, None);
    tap.that("it was changed", WRITTEN.load(Ordering::Relaxed) > SEEDS);
}
