//! Three and four vCPUs: events that go to one of them and to no other, ports that move between them, what each has for itself, and vCPUs that wake
//! each other. Needs four.
extern crate alloc;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use guest_kernel::event::{Channel, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::psci::{CpuOnError, Power};
use guest_kernel::shared_info::SharedPage;
use guest_kernel::smp::{self, Cpu};
use guest_kernel::{Guest, hypercall, interrupt, time};
use pv_abi::event::{BindIpi, BindVcpu, BindVirq, NR_VIRQS, PortArg, PortStatus, Virq};
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo, VcpuOp};
use pv_abi::{DomId, Errno, PAGE_SIZE, Port};

use super::event::{close, status};
use super::raw::vcpu;
use super::tap::Tap;

/// The vCPUs whose areas are looked at; they stay off until the end.
const TARGETS: [u32; 2] = [2, 3];
/// Words of a `vcpu_info`'s place in the page, and where the selector is.
const WORDS: usize = 16;
const SELECTOR: usize = 2;

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    let Some(fourth) = smp::cpu(3) else { return };
    if interrupt::start(guest.tree.gic).is_err() {
        return tap.that("the interrupt controller starts", false);
    }
    // Leaked: the hypervisor writes to it from now on.
    let areas = Areas(Box::leak(Frame::boxed()));
    let Ok(shared) = shared_page() else { return tap.that("the shared page", false) };
    for number in TARGETS {
        tap.is(format_args!("register_vcpu_info for vCPU {number}"), areas.register(number), Ok(0));
    }
    ipis(tap, &areas, shared);
    moves(tap, &areas, shared);
    virqs(tap);
    runs(tap, &areas, fourth);
}

/// Where vCPUs are told of events: `vcpu_info` of number n at 64 * n.
struct Areas(&'static Frame);

impl Areas {
    fn register(&self, number: u32) -> Result<u64, Errno> {
        let gfn = (core::ptr::from_ref(self.0).expose_provenance() / PAGE_SIZE) as u64;
        let mut place = RegisterVcpuInfo { gfn, offset: number * 64, rsvd: 0 };
        vcpu(u64::from(VcpuOp::RegisterVcpuInfo.number()), u64::from(number), &mut place)
    }

    fn clear(&self) {
        for number in TARGETS {
            self.0.words()[number as usize * WORDS..][..4]
                .iter()
                .for_each(|word| word.store(0, Ordering::Release));
        }
    }

    /// Upcall byte and the selector's bit for a port, of each.
    fn told(&self, port: Port) -> [(u32, u32); 2] {
        TARGETS.map(|number| {
            let words = &self.0.words()[number as usize * WORDS..];
            let bit = port.0 / 64;
            let selector = words[SELECTOR + bit as usize / 32].load(Ordering::Acquire);
            (words[0].load(Ordering::Acquire) & 0xff, selector >> (bit % 32) & 1)
        })
    }
}

/// What [`Areas::told`] says when the vCPU with this index in [`TARGETS`] was told, and no other.
fn only(index: usize) -> [(u32, u32); 2] {
    core::array::from_fn(|each| if each == index { (1, 1) } else { (0, 0) })
}

fn ipis(tap: &mut Tap, areas: &Areas, shared: &SharedPage) {
    for (index, number) in TARGETS.into_iter().enumerate() {
        let mut ipi = BindIpi { vcpu: number, port: Port(0) };
        tap.is(format_args!("bind_ipi to vCPU {number}"), hypercall::event_bind_ipi(&mut ipi), Ok(()));
        let state = status(ipi.port).map(|state| (state.0, state.1));
        tap.is(
            format_args!("an IPI's state names vCPU {number}"),
            state,
            Ok((PortStatus::Ipi.number(), number)),
        );
        shared.clear_mask(ipi.port);
        areas.clear();
        tap.is(format_args!("an event to vCPU {number}"), hypercall::event_send(ipi.port), Ok(()));
        tap.is(format_args!("tells vCPU {number} and no other"), areas.told(ipi.port), only(index));
        areas.clear();
        tap.is(
            format_args!("another to vCPU {number} while it is pending"),
            hypercall::event_send(ipi.port),
            Ok(()),
        );
        tap.is(format_args!("tells nobody, neither vCPU {number}"), areas.told(ipi.port), [(0, 0); 2]);
        for to in 0..4 {
            let answer = hypercall::event_bind_vcpu(&mut BindVcpu { port: ipi.port, vcpu: to });
            tap.is(
                format_args!("an IPI of vCPU {number} cannot be moved to {to}"),
                answer,
                Err(Errno::Einval),
            );
        }
        shared.mask(ipi.port);
        tap.is(
            format_args!("an IPI of vCPU {number} closes"),
            (shared.take(ipi.port), close(ipi.port)),
            (true, Ok(())),
        );
    }
}

fn moves(tap: &mut Tap, areas: &Areas, shared: &SharedPage) {
    let Ok(end) = Channel::unbound(DomId::SELF) else { return tap.that("a channel", false) };
    let Ok(other) = Channel::bind(DomId::SELF, end.port()) else { return tap.that("a channel's end", false) };
    let port = end.port();
    let bind = |vcpu| hypercall::event_bind_vcpu(&mut BindVcpu { port, vcpu });
    shared.clear_mask(port);
    for (step, index) in (1..).zip([0, 1, 0]) {
        let number = TARGETS[index];
        tap.is(format_args!("bind_vcpu to vCPU {number}, step {step}"), bind(number), Ok(()));
        tap.is(format_args!("status says so of step {step}"), status(port).map(|state| state.1), Ok(number));
        shared.take(port);
        areas.clear();
        tap.is(format_args!("an event through the channel after step {step}"), other.notify(), Ok(()));
        tap.is(format_args!("tells vCPU {number} after step {step}"), areas.told(port), only(index));
    }
    tap.is("bind_vcpu of a pending port", bind(TARGETS[1]), Ok(()));
    tap.is("what is pending stays where it was", areas.told(port), only(0));
    areas.clear();
    tap.is("an event while it is pending", other.notify(), Ok(()));
    tap.is("tells neither", areas.told(port), [(0, 0); 2]);
    shared.mask(port);
    let unmasked = hypercall::event_unmask(&mut PortArg { port });
    tap.is("unmasked by another, it tells the new one", (unmasked, areas.told(port)), (Ok(()), only(1)));
    shared.mask(port);
    shared.take(port);
    areas.clear();
    tap.is("a masked event", (other.notify(), areas.told(port)), (Ok(()), [(0, 0); 2]));
    tap.is("unmasked after it was moved", bind(TARGETS[0]), Ok(()));
    let unmasked = hypercall::event_unmask(&mut PortArg { port });
    tap.is("it tells the one it was moved to", (unmasked, areas.told(port)), (Ok(()), only(0)));
    shared.mask(port);
    shared.take(port);
    tap.is("bind_vcpu to one that does not exist", bind(smp::count()), Err(Errno::Enoent));
    tap.is("changes nothing", status(port).map(|state| state.1), Ok(TARGETS[0]));
}

fn virqs(tap: &mut Tap) {
    let bind = |virq: u32, vcpu| {
        let mut argument = BindVirq { virq, vcpu, port: Port(0) };
        hypercall::event_bind_virq(&mut argument).map(|()| argument.port)
    };
    for virq in [Virq::Timer, Virq::Debug, Virq::Xenoprof, Virq::Xenpmu].map(Virq::number) {
        let ports: Vec<_> = (0..4).filter_map(|vcpu| bind(virq, vcpu).ok()).collect();
        tap.is(format_args!("each of four has its own VIRQ {virq}"), ports.len(), 4);
        for (vcpu, port) in (0..).zip(ports) {
            let state = status(port).map(|state| (state.0, state.1, state.2));
            tap.is(
                format_args!("the state of VIRQ {virq} of vCPU {vcpu}"),
                state,
                Ok((PortStatus::Virq.number(), vcpu, virq)),
            );
            tap.is(
                format_args!("VIRQ {virq} of vCPU {vcpu} is bound once"),
                bind(virq, vcpu),
                Err(Errno::Eexist),
            );
            let moved = hypercall::event_bind_vcpu(&mut BindVcpu { port, vcpu: (vcpu + 1) % 4 });
            tap.is(format_args!("VIRQ {virq} of vCPU {vcpu} cannot be moved"), moved, Err(Errno::Einval));
            tap.is(format_args!("VIRQ {virq} of vCPU {vcpu} closes"), close(port), Ok(()));
        }
    }
    let own = [Virq::Timer, Virq::Debug, Virq::Xenoprof, Virq::Xenpmu].map(Virq::number);
    for virq in (0..NR_VIRQS).filter(|virq| !own.contains(virq)) {
        let Ok(port) = bind(virq, 0) else {
            tap.that(format_args!("VIRQ {virq}, the domain's, is bound on vCPU 0"), false);
            continue;
        };
        let again = bind(virq, 0);
        tap.is(format_args!("VIRQ {virq}, the domain's, is bound once"), again, Err(Errno::Eexist));
        for vcpu in [2, 0] {
            let moved = hypercall::event_bind_vcpu(&mut BindVcpu { port, vcpu });
            let state = status(port).map(|state| (state.0, state.1, state.2));
            tap.is(
                format_args!("VIRQ {virq}, the domain's, is moved to vCPU {vcpu}"),
                (moved, state),
                (Ok(()), Ok((PortStatus::Virq.number(), vcpu, virq))),
            );
        }
        tap.is(format_args!("VIRQ {virq}, the domain's, closes"), close(port), Ok(()));
        for vcpu in 1..4 {
            let answer = bind(virq, vcpu);
            tap.is(
                format_args!("VIRQ {virq} is the domain's, and not vCPU {vcpu}'s to bind"),
                answer,
                Err(Errno::Einval),
            );
        }
    }
}

/// A channel of the domain with itself: who waits, and who notifies.
fn channel() -> Option<(Arc<Channel>, Arc<Channel>)> {
    let end = Channel::unbound(DomId::SELF).ok()?;
    let other = Channel::bind(DomId::SELF, end.port()).ok()?;
    // Binding itself raises an event at the end that binds, which only notifies.
    Some((Arc::new(end), Arc::new(other)))
}

/// Waits until `holds`; what never does is told after half a minute, which a machine with more CPUs than the host has may need.
fn soon(mut holds: impl FnMut() -> bool) -> bool {
    let began = time::now();
    loop {
        if holds() {
            return true;
        }
        if began.elapsed() > Duration::from_secs(30) {
            return false;
        }
        let _ = hypercall::sched_yield();
    }
}

/// An event goes from vCPU 0 to 3, 2, 1 and back, each blocked in a poll until the one before notifies.
fn runs(tap: &mut Tap, areas: &Areas, fourth: Cpu) {
    let channels: Option<Vec<_>> = (0..5).map(|_| channel()).collect();
    let Some(channels) = channels else { return tap.that("channels", false) };
    // What vCPU 3 polls besides, and what nobody sends to.
    let [(home, to_home), (first, to_first), (second, to_second), (third, to_third), (quiet, _)] =
        &channels[..]
    else {
        return;
    };
    // At 2048: a run-state area begins with the state.
    let mut area = RegisterRunstate { addr: core::ptr::from_ref(areas.0).expose_provenance() as u64 + 2048 };
    let runstate = u64::from(VcpuOp::RegisterRunstateMemoryArea.number());
    tap.is("a run-state area for the fourth", vcpu(runstate, 3, &mut area), Ok(0));
    let state = || areas.0.words()[512].load(Ordering::Acquire);
    tap.is("says that it is offline", state(), 3);

    let order = Arc::new([const { AtomicU32::new(0) }; 4]);
    let turn = Arc::new(AtomicU32::new(1));
    let mut started = Vec::new();
    let hops = [(3, third, Some(quiet), to_second), (2, second, None, to_first), (1, first, None, to_home)];
    for (number, end, besides, next) in hops {
        let Some(cpu) = smp::cpu(number) else { return };
        let (end, next, besides) = (end.clone(), next.clone(), besides.cloned());
        let (order, turn) = (order.clone(), turn.clone());
        let work = move || {
            match besides {
                // Several ports at once.
                Some(quiet) => {
                    while !end.take() {
                        let _ = hypercall::poll(&[quiet.port(), end.port()], 0);
                    }
                }
                None => drop(end.wait()),
            }
            order[smp::this().index()].store(turn.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            let _ = next.notify();
        };
        match smp::start(cpu, work) {
            Ok(job) => started.push(job),
            Err(why) => tap.is(format_args!("vCPU {number} starts"), Some(why), None),
        }
    }
    tap.that("the fourth is blocked, as its area says", soon(|| state() == 2));
    for number in 1..4 {
        let Some(cpu) = smp::cpu(number) else { return };
        tap.is(format_args!("vCPU {number} is on"), cpu.power(), Power::On);
        let again = smp::switch_on(cpu);
        tap.is(format_args!("and vCPU {number} cannot be started again"), again, Err(CpuOnError::AlreadyOn));
    }
    tap.is("an event for the fourth", to_third.notify(), Ok(()));
    tap.is("goes round all of them", home.wait(), Ok(()));
    started.into_iter().for_each(smp::Started::join);
    let seen = [1, 2, 3].map(|number: usize| order[number].load(Ordering::SeqCst));
    tap.is("each woken by the one before", seen, [3, 2, 1]);
    tap.is("the fourth is off again", fourth.power(), Power::Off);
    tap.that("as its area says", soon(|| state() == 3));
    let _ = to_home;
}
