//! The control domain: does what `do=` on its command line says, word by word, separated by commas, and powers off.
//!
//! | word | what it does |
//! |---|---|
//! | `list` | tells of every domain |
//! | `count:N`, `count:all` | prints what the hypervisor has counted for domain N, for itself, or for all |
//! | `unpause:N` | does that to domain N |
//! | `destroy:N` | destroys domain N, unless it has come to its end by itself |
//! | `pause:N` | pauses domain N; if that is between two lives, waits for the next |
//! | `weight:N:W`, `cap:N:P` | gives domain N weight W, or P per cent of a CPU, and fails when that is not what is told then |
//! | `cpus:N:M` | lets the first vCPU of domain N run on the CPUs of the mask M only, one of which there must be |
//! | `end:N` | waits until domain N has ended and everything is taken back from it; then the hypervisor checks itself, in a build that does |
//! | `shut:N` | waits until domain N has shut down and is kept as it is |
//! | `build:N` | builds domain N anew |
//! | `cycle:N:C` | destroys and builds domain N, C times |
//! | `lives:N:C` | waits until domain N is in its Cth life |
//! | `settle:N` | waits until domain N waits for an event or an interrupt |
//! | `ping:F:L` | sends an event to each `pong` from domain F to L, when all have made their port, and waits for its answer |
//! | `check` | has the hypervisor check itself, with all CPUs standing |
//! | `log` | prints a line, and reads the console back until it finds it |
//! | `log:marked` | reads the console back, and prints the hypervisor's lines without their mark, which nobody else may print |
//! | `clock` | sets the wall clock, and looks at its own |
//! | `soak:L:S` | for S seconds, time and again: destroys, builds, pauses or moves one of the domains 1 to L, or leaves them, and checks |
//! | `ledger:N` | tells domain N, whenever it asks through the first page that it grants, whether its counts are as they were; until it is done |
//! | `ledger:N:M` | that, and destroys and builds domain M, which is not 1, time and again meanwhile |
//! | `twice:F:L` | destroys domains F to L, has each live once more for a while, and fails when counters are not as they were between the lives |
//! | `kills:N:STEP` | lets domain N, a `mixed`, come to its end once, then builds and destroys it at every STEP-th nanosecond of its rounds, until when all counters must be as they were when it was not there, and checks |
//! | `exits:MS` | waits for so many milliseconds, and tells what exits and waits the CPUs had meanwhile |
//! | `ran:MS` | that, and how long each domain ran |
//! | `nudge:N:C` | sends the `pong` of domain N C events, a millisecond apart, and tells the same |
//! | `mark`, `same` | remembers all counters; fails when they are not as they were |
//! | `sleep:MS` | waits for so many milliseconds |
//!
//! A call that is refused ends it as crashed.
#![no_std]
#![no_main]
extern crate alloc;

#[path = "control/exits.rs"]
mod exits;
#[path = "control/kills.rs"]
mod kills;
#[path = "control/ledger.rs"]
mod ledger;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{self, Channel};
use guest_kernel::{Guest, control, interrupt, println, time, timer};
use pv_abi::control::{Counters, DomainInfo, flags, role};
use pv_abi::{DomId, Errno, Port};

guest_kernel::main!(main);

fn main(guest: &Guest) -> Result<(), String> {
    interrupt::start(guest.tree.gic).map_err(|_| String::from("no interrupt controller"))?;
    let script = guest.args().text("do").unwrap_or("list,count:all");
    let mut marked = Vec::new();
    for word in script.split(',') {
        let (verb, object) = word.split_once(':').unwrap_or((word, ""));
        step(verb, object, &mut marked).map_err(|why| format!("{word}: {why}"))?;
    }
    match CHECKS.load(Ordering::Relaxed) {
        0 => {}
        checks => println!("control: the hypervisor checked itself {checks} times"),
    }
    Ok(())
}

/// Everything that is counted.
type Everything = Vec<(DomId, Counters)>;

fn step(verb: &str, object: &str, marked: &mut Everything) -> Result<(), String> {
    let (object, times) = object.split_once(':').unwrap_or((object, "1"));
    let number = || object.parse::<u16>().map(DomId).map_err(|_| String::from("a domain's number expected"));
    let times = || times.parse::<u32>().map_err(|_| String::from("a number expected"));
    let refused = |errno: Errno| format!("{errno:?}");
    match verb {
        "list" => control::for_each_domain(tell).map_err(refused),
        "count" if object == "all" => {
            let mut result = count(DomId::XEN);
            control::for_each_domain(|info| result = result.and(count(info.domain))).map_err(refused)?;
            result.map_err(refused)
        }
        "count" if object.is_empty() => count(DomId::XEN).map_err(refused),
        "count" => count(number()?).map_err(refused),
        "pause" => {
            control::pause(number()?).map_err(refused)?;
            while control::domain_info(number()?).map_err(refused)?.flags & (flags::SHUTDOWN | flags::DYING)
                != 0
            {
                sleep(1)?;
            }
            Ok(())
        }
        "unpause" => control::unpause(number()?).map_err(refused),
        "weight" => {
            let (_, cap) = control::weight_and_cap(number()?).map_err(refused)?;
            schedule(number()?, u16::try_from(times()?).unwrap_or(u16::MAX), cap)
        }
        "cap" => {
            let (weight, _) = control::weight_and_cap(number()?).map_err(refused)?;
            schedule(number()?, weight, u16::try_from(times()?).unwrap_or(u16::MAX))
        }
        "cpus" => {
            let mask = u8::try_from(times()?).unwrap_or(u8::MAX);
            match control::set_affinity(number()?, 0, mask).map_err(refused)? {
                0 => Err(String::from("on no CPU")),
                set if set & !mask == 0 => Ok(()),
                set => Err(format!("on {set:#b}")),
            }
        }
        "destroy" => gone(number()?),
        "build" => control::build(number()?).map_err(refused),
        "cycle" => {
            for _ in 0..times()? {
                control::destroy(number()?).map_err(refused)?;
                control::build(number()?).map_err(refused)?;
            }
            Ok(())
        }
        "lives" => {
            while control::counters(number()?).map_err(refused)?.generation < times()? {
                sleep(1)?;
            }
            Ok(())
        }
        "settle" => {
            while control::domain_info(number()?).map_err(refused)?.flags & flags::BLOCKED == 0 {
                sleep(1)?;
            }
            Ok(())
        }
        "ping" => ping(number()?.0, times()?),
        "ledger" => ledger::serve(number()?, u16::try_from(times()?).ok().filter(|id| *id > 1).map(DomId)),
        "twice" => twice(number()?.0, times()?),
        "check" => control::self_check().map_err(refused),
        "shut" => {
            while control::domain_info(number()?).map_err(refused)?.flags & (flags::SHUTDOWN | flags::DYING)
                != flags::SHUTDOWN
            {
                sleep(1)?;
            }
            Ok(())
        }
        "log" if object == "marked" => marked_lines(),
        "exits" => exits::asleep(object.parse().map_err(|_| String::from("milliseconds expected"))?),
        "ran" => exits::ran(object.parse().map_err(|_| String::from("milliseconds expected"))?),
        "nudge" => exits::nudge(number()?, times()?),
        "log" => log(),
        "clock" => clock(),
        "soak" => soak(number()?.0, times()?),
        "kills" => kills::all(number()?, times()?),
        "mark" => {
            *marked = everything()?;
            Ok(())
        }
        "same" => same(marked, &everything()?),
        "end" => {
            let id = number()?;
            loop {
                match control::domain_info(id) {
                    Ok(_) => sleep(1)?,
                    Err(Errno::Esrch) => return checked(),
                    Err(errno) => return Err(refused(errno)),
                }
            }
        }
        "sleep" => sleep(object.parse().map_err(|_| String::from("milliseconds expected"))?),
        _ => Err(String::from("unknown")),
    }
}

/// How often the hypervisor checked itself.
static CHECKS: AtomicU32 = AtomicU32::new(0);

/// Has the hypervisor check itself, if it is a build that does.
fn checked() -> Result<(), String> {
    match control::self_check() {
        Ok(()) => _ = CHECKS.fetch_add(1, Ordering::Relaxed),
        Err(Errno::Enosys) => {}
        Err(errno) => return Err(format!("self-check: {errno:?}")),
    }
    Ok(())
}

/// Steps of a soak at most between two looks at the time.
const SOAK_PAUSE_MS: u64 = 2;

/// Does to domains 1 to `last` what can be done to them, in an order of xorshift's, for so many seconds, and has the hypervisor check itself between.
fn soak(last: u16, seconds: u32) -> Result<(), String> {
    let refused = |errno: Errno| format!("{errno:?}");
    let end = time::now().after(Duration::from_secs(seconds.into()));
    let (mut seed, mut checks, mut lives) = (0x9e37_79b9_7f4a_7c15_u64, 0, 0);
    while time::now() < end {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let domain = DomId(u16::try_from(seed % u64::from(last.max(1))).unwrap_or(0) + 1);
        let done = match seed >> 32 & 7 {
            0 | 1 => control::destroy(domain),
            2 => control::pause(domain),
            3 => control::unpause(domain),
            4 => control::set_affinity(domain, 0, u8::from(seed >> 40 & 1 == 0) | 0xF0).map(drop),
            5 => control::set_weight_and_cap(domain, 64 << (seed >> 40 & 7), 0),
            6 => control::set_affinity(domain, 0, u8::MAX).map(drop),
            _ => Ok(()),
        };
        match done {
            Err(Errno::Esrch) => {
                control::build(domain).map_err(refused)?;
                lives += 1;
            }
            // An affinity without a CPU that there is, a pause that nobody made.
            Ok(()) | Err(Errno::Einval) => {}
            Err(errno) => return Err(format!("domain {}: {errno:?}", domain.0)),
        }
        control::self_check().map_err(refused)?;
        checks += 1;
        sleep(seed >> 48 & SOAK_PAUSE_MS)?;
    }
    println!("control: soak: {checks} checks, {lives} domains built, all was well");
    // Whatever is paused, ended or lives goes, so that counters can be compared.
    for id in (1..).take(last.into()) {
        gone(DomId(id))?;
    }
    Ok(())
}

/// Destroys a domain, unless it has come to its end by itself.
fn gone(domain: DomId) -> Result<(), String> {
    match control::destroy(domain) {
        Ok(()) | Err(Errno::Esrch) => Ok(()),
        Err(errno) => Err(format!("domain {}: {errno:?}", domain.0)),
    }
}

/// Reads back what it has printed, which is on the console before the call that prints it returns.
fn log() -> Result<(), String> {
    const LINE: &str = "control: a line that is read back";
    println!("{LINE}");
    let all = read_back()?;
    let found = String::from_utf8_lossy(&all).lines().any(|line| line.ends_with(LINE));
    if found { Ok(()) } else { Err(format!("not in {} bytes", all.len())) }
}

/// Prints the hypervisor's lines, as far back as they are kept.
fn marked_lines() -> Result<(), String> {
    let all = read_back()?;
    for line in all.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix("§".as_bytes())) {
        println!("control: log {}", String::from_utf8_lossy(line));
    }
    Ok(())
}

/// What was on the console.
fn read_back() -> Result<Vec<u8>, String> {
    let (mut all, mut index) = (Vec::new(), 0);
    loop {
        let mut part = [0; 3000];
        let (next, count) = control::read_console(index, &mut part).map_err(|errno| format!("{errno:?}"))?;
        index = next;
        match part.get(..count) {
            Some(bytes) if count > 0 => all.extend_from_slice(bytes),
            _ => return Ok(all),
        }
    }
}

/// Says that it is a moment in 2026, and looks.
fn clock() -> Result<(), String> {
    const TIME: Duration = Duration::new(1_795_000_000, 250_000_000);
    let page = event::shared_page().map_err(|errno| format!("{errno:?}"))?;
    let before = page.wall_clock();
    // At a system time of half a second: so much earlier was it when system time was 0.
    control::set_time(TIME, 500_000_000).map_err(|errno| format!("{errno:?}"))?;
    let after = page.wall_clock();
    if (before, after) == ((2, 0, 0), (4, 1_794_999_999, 750_000_000)) {
        return Ok(());
    }
    Err(format!("{before:?} became {after:?}"))
}

/// Sets weight and cap, and looks.
fn schedule(domain: DomId, weight: u16, cap: u16) -> Result<(), String> {
    control::set_weight_and_cap(domain, weight, cap).map_err(|errno| format!("{errno:?}"))?;
    match control::weight_and_cap(domain) {
        Ok(told) if told == (weight, cap) => Ok(()),
        told => Err(format!("{told:?}")),
    }
}

/// Connects to the `pong` of each domain, which all live at one time, and then has each answer.
fn ping(first: u16, last: u32) -> Result<(), String> {
    let mut channels = Vec::new();
    for id in (first..).take_while(|id| u32::from(*id) <= last) {
        // Until it has made its port.
        let channel = loop {
            match Channel::bind(DomId(id), Port(1)) {
                Ok(channel) => break channel,
                Err(Errno::Einval) => sleep(1)?,
                Err(errno) => return Err(format!("domain {id}: {errno:?}")),
            }
        };
        // A new channel's end is pending.
        let _ = channel.take();
        channels.push(channel);
    }
    for channel in &channels {
        channel.notify().map_err(|errno| format!("{errno:?}"))?;
        channel.wait().map_err(|errno| format!("{errno:?}"))?;
    }
    println!("control: {} domains answered", channels.len());
    Ok(())
}

fn everything() -> Result<Everything, String> {
    let refused = |errno: Errno| format!("{errno:?}");
    let mut all = Vec::new();
    let mut nobodys = control::counters(DomId::XEN).map_err(refused)?;
    // Frames in limbo become free when somebody wants one.
    nobodys.frames[role::FREE] += core::mem::take(&mut nobodys.frames[role::LIMBO]);
    // What CPUs did is no resource.
    (nobodys.exits, nobodys.trapped_waits, nobodys.idle_waits) = Default::default();
    all.push((DomId::XEN, nobodys));
    // Those that are dead too: what stays of them is counted. Ids that were refused at boot leave a gap.
    let mut gaps = 0;
    for id in (0..).map(DomId) {
        match control::counters(id) {
            // How often it was built is no resource.
            Ok(counted) => all.push((id, Counters { generation: 0, ..counted })),
            Err(Errno::Esrch) if gaps < 4 => gaps += 1,
            Err(Errno::Esrch) => break,
            Err(errno) => return Err(refused(errno)),
        }
    }
    Ok(all)
}

fn same(before: &Everything, after: &Everything) -> Result<(), String> {
    let total =
        |all: &Everything| -> u64 { all.iter().map(|(_, counted)| counted.frames.iter().sum::<u64>()).sum() };
    if before == after {
        println!("control: all as it was, {} frames", total(after));
        return Ok(());
    }
    for (before, after) in before.iter().zip(after).filter(|(before, after)| before != after) {
        println!("{before:?} became {after:?}");
    }
    Err(format!(
        "{} owners were {}, {} frames were {}",
        after.len(),
        before.len(),
        total(after),
        total(before)
    ))
}

fn sleep(milliseconds: u64) -> Result<(), String> {
    timer::sleep(Duration::from_millis(milliseconds)).map_err(|_| String::from("no timer"))
}

/// How long a second life is: milliseconds of a CPU's time.
const SECOND_LIFE_MS: u64 = 5;

/// Each of the domains lives again for a while, and leaves nothing behind.
fn twice(first: u16, last: u32) -> Result<(), String> {
    let refused = |errno: Errno| format!("{errno:?}");
    let all = || (first..).take_while(|id| u32::from(*id) <= last).map(DomId);
    let destroy = || all().try_for_each(gone);
    destroy()?;
    let between = everything()?;
    for id in all() {
        control::build(id).map_err(refused)?;
    }
    for id in all() {
        lived(id).map_err(refused)?;
    }
    destroy()?;
    checked()?;
    same(&between, &everything()?)
}

/// Waits until a domain that was built has run for a while; also until it waits itself, or is no more.
fn lived(id: DomId) -> Result<(), Errno> {
    let mut began = None;
    loop {
        let info = match control::domain_info(id) {
            Ok(info) => info,
            Err(Errno::Esrch) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let since = info.cpu_time.saturating_sub(*began.get_or_insert(info.cpu_time));
        let still = info.flags & (flags::BLOCKED | flags::SHUTDOWN | flags::DYING) != 0;
        if still || since >= SECOND_LIFE_MS * 1_000_000 {
            return Ok(());
        }
        timer::sleep(Duration::from_millis(1)).map_err(|_| Errno::Eio)?;
    }
}

/// One line a domain.
fn tell(info: &DomainInfo) {
    let has = |flag: u32| info.flags & flag != 0;
    let state = if has(flags::DYING) {
        "dying"
    } else if has(flags::SHUTDOWN) {
        "shut down"
    } else if has(flags::PAUSED) {
        "paused"
    } else if has(flags::RUNNING) {
        "running"
    } else if has(flags::BLOCKED) {
        "blocked"
    } else {
        "ready"
    };
    println!(
        "d{}: {state}, {} KiB, {} of {} vCPUs on, ran {} us",
        info.domain.0,
        info.tot_pages * 4,
        info.nr_online_vcpus,
        info.max_vcpu_id.wrapping_add(1),
        info.cpu_time / 1000
    );
}

/// One line for an owner.
fn count(id: DomId) -> Result<(), Errno> {
    let counted = control::counters(id)?;
    let frames = |index: usize| counted.frames.get(index).copied().unwrap_or(0);
    if id == DomId::XEN {
        println!(
            "count: free={} limbo={} hypervisor={}",
            frames(role::FREE),
            frames(role::LIMBO),
            frames(role::HYPERVISOR)
        );
    } else {
        println!(
            "count: d{} data={} stage2={} shared={} tables={} ports={} grants={} vmids={} timers={} generation={}",
            id.0,
            frames(role::DATA),
            frames(role::STAGE2),
            frames(role::SHARED),
            frames(role::DOMAIN_TABLE),
            counted.ports,
            counted.grants_mapped,
            counted.vmids,
            counted.timers,
            counted.generation
        );
    }
    Ok(())
}
