//! Exits and waits of the CPUs over a while, and how long domains run.
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use guest_kernel::event::Channel;
use guest_kernel::{control, println, time};
use pv_abi::control::Counters;
use pv_abi::{DomId, Errno, Port};

fn counted() -> Result<Counters, String> {
    control::counters(DomId::XEN).map_err(|errno| format!("{errno:?}"))
}

/// Tells what came since then, a line for each CPU on which something did.
fn tell(before: &Counters, after: &Counters) {
    let each = |of: fn(&Counters) -> [u64; 8]| {
        of(after).into_iter().zip(of(before)).map(|(after, before)| after.wrapping_sub(before))
    };
    let exits = each(|counted| counted.exits).zip(each(|counted| counted.trapped_waits));
    let all = exits.zip(each(|counted| counted.idle_waits)).enumerate();
    for (cpu, ((exits, trapped), idle)) in all.filter(|(_, all)| *all != ((0, 0), 0)) {
        println!("control: CPU {cpu}: {exits} exits, {trapped} for WFI, {idle} idle waits");
    }
}

/// Sleeps.
pub(super) fn asleep(milliseconds: u64) -> Result<(), String> {
    let before = counted()?;
    super::sleep(milliseconds)?;
    tell(&before, &counted()?);
    println!("control: slept {milliseconds} ms");
    Ok(())
}

/// Sleeps, and tells how long each domain ran meanwhile.
pub(super) fn ran(milliseconds: u64) -> Result<(), String> {
    let times = || {
        let mut times = Vec::new();
        control::for_each_domain(|info| times.push((info.domain, info.cpu_time)))
            .map_err(|errno| format!("{errno:?}"))?;
        Ok::<_, String>((time::now(), times))
    };
    let exits = counted()?;
    let (began, before) = times()?;
    super::sleep(milliseconds)?;
    let (ended, after) = times()?;
    let of = ended.since_start().saturating_sub(began.since_start()).as_nanos();
    for ((domain, before), (_, after)) in before.iter().zip(&after) {
        println!("control: d{} ran {} of {of} ns", domain.0, after.saturating_sub(*before));
    }
    tell(&exits, &counted()?);
    Ok(())
}

/// Sends a domain's first port an event each millisecond, and waits for its answers. The first one is not counted.
pub(super) fn nudge(domain: DomId, times: u32) -> Result<(), String> {
    let refused = |errno: Errno| format!("{errno:?}");
    let channel = loop {
        match Channel::bind(domain, Port(1)) {
            Ok(channel) => break channel,
            // It has not made its port yet.
            Err(Errno::Einval) => super::sleep(1)?,
            Err(errno) => return Err(refused(errno)),
        }
    };
    // A new channel's end is pending.
    let _ = channel.take();
    let answered = || {
        channel.notify().map_err(refused)?;
        channel.wait().map_err(refused)?;
        super::sleep(1)
    };
    answered()?;
    let before = counted()?;
    for _ in 0..times {
        answered()?;
    }
    tell(&before, &counted()?);
    println!("control: {times} answers");
    Ok(())
}
