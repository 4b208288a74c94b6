//! More than one vCPU: what one may say for another, and what each has for itself. Needs two.
extern crate alloc;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_kernel::event::{Channel, shared_page};
use guest_kernel::frame::Frame;
use guest_kernel::interrupt;
use guest_kernel::psci::{CpuOnError, Power, affinity};
use guest_kernel::smp::{self, Cpu};
use guest_kernel::{Guest, hypercall};
use pv_abi::event::{BindIpi, BindVcpu, BindVirq, PortArg, PortStatus, Virq};
use pv_abi::vcpu::{RegisterRunstate, RegisterVcpuInfo, VcpuOp};
use pv_abi::{DomId, Errno, PAGE_SIZE, Port};

use super::event::{close, status};
use super::psci::{INVALID_ADDRESS, cpu_on};
use super::raw::vcpu;
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap, guest: &Guest) {
    let Some(second) = smp::cpu(1) else { return };
    if interrupt::start(guest.tree.gic).is_err() {
        return tap.that("the interrupt controller starts", false);
    }
    tap.is("the second vCPU is off", second.power(), Power::Off);
    tap.is("it does not start at an odd address", cpu_on(affinity(1), 0x4000_0001), INVALID_ADDRESS);
    ports(tap);
    areas(tap);
    runs(tap, second);
}

fn ports(tap: &mut Tap) {
    let mut ipi = BindIpi { vcpu: 1, port: Port(0) };
    tap.is("bind_ipi to a vCPU that is off", hypercall::event_bind_ipi(&mut ipi), Ok(()));
    let state = status(ipi.port).map(|state| (state.0, state.1));
    tap.is("the state of an IPI", state, Ok((PortStatus::Ipi.number(), 1)));
    tap.is("an event to it", hypercall::event_send(ipi.port), Ok(()));
    let back = &mut BindVcpu { port: ipi.port, vcpu: 0 };
    tap.is("it cannot be moved", hypercall::event_bind_vcpu(back), Err(Errno::Einval));
    tap.is("the IPI closes", close(ipi.port), Ok(()));

    if let Ok(unbound) = Channel::unbound(DomId::SELF) {
        tap.is("bind_vcpu of an unbound port", unbound.deliver_to(Cpu::FIRST), Ok(()));
        let there = &mut BindVcpu { port: unbound.port(), vcpu: 1 };
        tap.is("bind_vcpu to one that is off", hypercall::event_bind_vcpu(there), Ok(()));
        tap.is("status says so", status(unbound.port()).map(|state| state.1), Ok(1));
    }

    for (what, number) in [("timer", Virq::Timer), ("debug", Virq::Debug)] {
        let mut virqs = [0, 1].map(|vcpu| BindVirq { virq: number.number(), vcpu, port: Port(0) });
        for virq in &mut virqs {
            let vcpu = virq.vcpu;
            tap.is(format_args!("{what}: vCPU {vcpu} has its own"), hypercall::event_bind_virq(virq), Ok(()));
        }
        let again = hypercall::event_bind_virq(&mut virqs[1].clone());
        tap.is(format_args!("{what}: bound once"), again, Err(Errno::Eexist));
        let states = virqs.each_ref().map(|virq| status(virq.port).map(|state| (state.0, state.1, state.2)));
        let expected = [0, 1].map(|vcpu| Ok((PortStatus::Virq.number(), vcpu, number.number())));
        tap.is(format_args!("{what}: their states"), states, expected);
        for virq in virqs {
            tap.is(format_args!("{what}: vCPU {}'s closes", virq.vcpu), close(virq.port), Ok(()));
        }
    }
}

fn areas(tap: &mut Tap) {
    // Leaked: the hypervisor writes to it from now on.
    let page: &'static Frame = Box::leak(Frame::boxed());
    let address = core::ptr::from_ref(page).expose_provenance();
    let info = u64::from(VcpuOp::RegisterVcpuInfo.number());
    let runstate = u64::from(VcpuOp::RegisterRunstateMemoryArea.number());
    let word = |index: usize| page.words().get(index).map(|word| word.load(Ordering::Acquire));
    let mut place = RegisterVcpuInfo { gfn: (address / PAGE_SIZE) as u64, offset: 64, rsvd: 0 };
    tap.is("register_vcpu_info for another", vcpu(info, 1, &mut place), Ok(0));
    tap.is("register_vcpu_info for another, once", vcpu(info, 1, &mut place), Err(Errno::Ebusy));
    // At 64: the upcall byte, then the selector at 72.
    tap.is("it has an upcall to take", word(16).map(|word| word & 0xff), Some(1));
    tap.is("with all words to look at", (word(18), word(19)), (Some(u32::MAX), Some(u32::MAX)));
    let ipi = &mut BindIpi { vcpu: 1, port: Port(0) };
    tap.is("a port that notifies it", hypercall::event_bind_ipi(ipi), Ok(()));
    let Ok(shared) = shared_page() else { return tap.that("the shared page", false) };
    shared.mask(ipi.port);
    for index in [16, 18, 19] {
        page.words()[index].store(0, Ordering::Release);
    }
    tap.is("an event to it, masked", (hypercall::event_send(ipi.port), word(16)), (Ok(()), Some(0)));
    let unmasked = hypercall::event_unmask(&mut PortArg { port: ipi.port });
    let selected = word(18 + ipi.port.0 as usize / 64 / 32).map(|bits| bits >> (ipi.port.0 / 64 % 32) & 1);
    tap.is(
        "unmasked by another vCPU, it tells its own",
        (unmasked, word(16), selected),
        (Ok(()), Some(1), Some(1)),
    );
    tap.is("the masked IPI closes", (shared.take(ipi.port), close(ipi.port)), (true, Ok(())));
    let mut area = RegisterRunstate { addr: address as u64 + 2048 };
    tap.is("a run-state area for another", vcpu(runstate, 1, &mut area), Ok(0));
    tap.is("says that it is offline", word(512), Some(3));
}

fn runs(tap: &mut Tap, second: Cpu) {
    let Ok(end) = Channel::unbound(DomId::SELF) else { return tap.that("a channel", false) };
    let Ok(other) = Channel::bind(DomId::SELF, end.port()) else { return tap.that("a channel's end", false) };
    let (where_it_ran, theirs) = {
        let place = Arc::new(AtomicU32::new(0));
        (place.clone(), place)
    };
    let started = smp::start(second, move || {
        theirs.store(smp::this().number(), Ordering::SeqCst);
        smp::wake(Cpu::FIRST);
        // Polls until the other end notifies.
        let _ = end.wait();
    });
    let Ok(started) = started else { return tap.that("the second vCPU starts", false) };
    interrupt::wait_until(|| where_it_ran.load(Ordering::SeqCst) != 0);
    tap.is("the second vCPU runs", where_it_ran.load(Ordering::SeqCst), 1);
    tap.is("it is on", second.power(), Power::On);
    tap.is("it cannot be started again", smp::switch_on(second), Err(CpuOnError::AlreadyOn));
    tap.is("its poll ends when the event comes", other.notify(), Ok(()));
    started.join();
    tap.is("it is off again", second.power(), Power::Off);
}
