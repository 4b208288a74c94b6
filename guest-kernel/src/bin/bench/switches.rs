//! vCPUs that take turns: by yielding, and by waking each other. What the other domain does is asked for by a word in its page.
use core::sync::atomic::{AtomicBool, Ordering};

use guest_kernel::event::Channel;
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, MappedGrant};
use guest_kernel::{hypercall, measure, println, smp};
use pv_abi::Errno;

use super::{Bench, Peer};

/// Words of the page: what the other domain is to do, what it does, and the machine's counter when it last woke (its low
/// half).
const WANTED: usize = 0;
const DOES: usize = 1;
const WOKE: usize = 2;

/// It answers events.
const ANSWERS: u32 = 0;
/// It yields for ever.
const YIELDS: u32 = 1;
/// It uses floating point, and yields.
const YIELDS_FP: u32 = 2;
/// It polls, says when it woke, and answers.
const POLLS: u32 = 3;

/// Whether the page asks for something.
pub(super) fn wanted(page: &Frame) -> bool {
    page.words()[WANTED].load(Ordering::Acquire) != ANSWERS
}

/// Does it, as long as it is asked for.
pub(super) fn play(page: &Frame, channel: &Channel) -> Result<(), Errno> {
    let what = page.words()[WANTED].load(Ordering::Acquire);
    channel.mask();
    measure::allow_fp();
    let ahead = measure::machine_ahead();
    page.words()[DOES].store(what, Ordering::Release);
    while page.words()[WANTED].load(Ordering::Acquire) == what {
        if what == POLLS {
            let woke = measure::woken_at(channel.port())?.wrapping_add(ahead);
            page.words()[WOKE].store(low(woke), Ordering::Release);
            channel.take();
            channel.notify()?;
        } else {
            if what == YIELDS_FP {
                measure::use_fp();
            }
            hypercall::sched_yield()?;
        }
    }
    page.words()[DOES].store(ANSWERS, Ordering::Release);
    channel.unmask()
}

fn low(counter: u64) -> u32 {
    u32::try_from(counter & u64::from(u32::MAX)).unwrap_or(0)
}

/// Asks for something, and waits until it is done.
fn ask(page: &Frame, channel: &Channel, what: u32) -> Result<(), Errno> {
    page.words()[WANTED].store(what, Ordering::Release);
    while page.words()[DOES].load(Ordering::Acquire) != what {
        channel.notify()?;
        hypercall::sched_yield()?;
    }
    Ok(())
}

/// Everything on one CPU.
pub(super) fn all(bench: &Bench, peer: Peer) -> Result<(), Errno> {
    let Ok(mapped) = MappedGrant::map(peer.id, peer.page, Access::ReadWrite) else {
        return Err(Errno::Einval);
    };
    let page = mapped.frame().ok_or(Errno::Einval)?;
    let channel = Channel::fixed(peer.port)?;
    channel.mask();
    ask(page, &channel, YIELDS)?;
    bench.run("two_switches", measure::sched_yield);
    ask(page, &channel, YIELDS_FP)?;
    measure::allow_fp();
    bench.run("two_switches_fp", measure::sched_yield_fp);
    ask(page, &channel, ANSWERS)?;
    siblings(bench, "two_switches_same_domain", false);
    siblings(bench, "two_switches_same_domain_fp", true);
    mapped.unmap().map_err(|_| Errno::Einval)?;
    wake(bench, "wake_same_cpu", peer)
}

/// Two vCPUs of this domain.
fn siblings(bench: &Bench, name: &str, fp: bool) {
    static GO_ON: AtomicBool = AtomicBool::new(false);
    GO_ON.store(true, Ordering::SeqCst);
    let turns = move || {
        measure::allow_fp();
        while GO_ON.load(Ordering::SeqCst) {
            if fp {
                measure::use_fp();
            }
            let _ = hypercall::sched_yield();
        }
    };
    let Some(Ok(other)) = smp::cpu(1).map(|cpu| smp::start(cpu, turns)) else {
        return println!("bench {name} unsupported NoSibling");
    };
    if fp {
        bench.run(name, measure::sched_yield_fp);
    } else {
        bench.run(name, measure::sched_yield);
    }
    GO_ON.store(false, Ordering::SeqCst);
    other.join();
}

/// From the call that raises an event to the first instruction of who polls for it; this one polls for the answer meanwhile.
pub(super) fn wake(bench: &Bench, name: &str, peer: Peer) -> Result<(), Errno> {
    let Ok(mapped) = MappedGrant::map(peer.id, peer.page, Access::ReadWrite) else {
        return Err(Errno::Einval);
    };
    let page = mapped.frame().ok_or(Errno::Einval)?;
    let channel = Channel::fixed(peer.port)?;
    channel.mask();
    ask(page, &channel, POLLS)?;
    channel.notify()?;
    channel.wait()?;
    let ahead = measure::machine_ahead();
    bench.run(name, || {
        let sent = measure::event_send_at(channel.port())?.wrapping_add(ahead);
        channel.wait()?;
        let woke = page.words()[WOKE].load(Ordering::Acquire);
        Ok::<_, Errno>(u64::from(woke.wrapping_sub(low(sent))))
    });
    page.words()[WANTED].store(ANSWERS, Ordering::Release);
    channel.notify()?;
    while page.words()[DOES].load(Ordering::Acquire) != ANSWERS {
        hypercall::sched_yield()?;
    }
    channel.take();
    mapped.unmap().map_err(|_| Errno::Einval)
}
