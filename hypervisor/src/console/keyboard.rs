//! What is typed on the machine's console: it belongs to one domain at a time, and three times Ctrl-A, as in Xen, gives it to the next one.
//!
//! How a domain gets its keys: through the ring of its PV console, if it has one ([`super::ring`]); else by `console_io` read or its emulated UART,
//! and `VIRQ_CONSOLE` is raised, if it bound that.
//!
//! Invariants
//! 1. No domain sees another's keys, nor those of an earlier life: what was not read is forgotten when the keyboard goes on, or the domain ends.
//! 2. [`KEYS`] are kept for who reads late; more are lost.
//! 3. The lock (rank 45) is held for a moment, and nothing is taken under it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]
use core::cell::Cell;

use heapless::Deque;
use pv_abi::DomId;

use super::ring;
use crate::evtchn;
use crate::hardware::{CpuId, Hardware};
use crate::lock::{Lock, rank};
use crate::log::Event;
use crate::machine::{Current, Machine};
use crate::sched;
use crate::vcpu::{Place, Vcpu, VcpuIndex};
use crate::vpl011;

/// Keys that are kept.
pub const KEYS: usize = 128;
/// Ctrl-A.
const ESCAPE: u8 = 1;
/// So many in a row give the keyboard on.
const TIMES: u8 = 3;

/// Nobody's vCPU: an interrupt of the machine is no domain's call.
static NOBODY: Vcpu =
    Vcpu::new(DomId::XEN, 0, VcpuIndex(u16::MAX), Place { pool: 0, allowed: 0, home: CpuId(0) });

/// Who has the keyboard, and what they have not read yet.
#[derive(Debug, Default)]
pub struct Keyboard(Lock<State, { rank::KEYBOARD }>);

#[derive(Debug, Default)]
struct State {
    /// `None` until the first key.
    owner: Option<DomId>,
    keys: Deque<u8, KEYS>,
    /// Escapes in a row that came last.
    escapes: u8,
}

impl Keyboard {
    /// Takes a key of a domain's.
    #[inline(never)]
    pub fn take(&self, domain: DomId) -> Option<u8> {
        let mut state = self.0.lock();
        if state.owner == Some(domain) { state.keys.pop_front() } else { None }
    }

    /// Whether keys wait for a domain.
    #[inline(never)]
    pub fn waits(&self, domain: DomId) -> bool {
        let state = self.0.lock();
        state.owner == Some(domain) && !state.keys.is_empty()
    }

    /// Forgets the keys of a domain that has ended.
    pub(crate) fn forget(&self, domain: DomId) {
        while self.take(domain).is_some() {}
    }
}

impl State {
    /// One more key; true when it gives the keyboard on.
    fn add(&mut self, key: u8) -> bool {
        if key == ESCAPE {
            self.escapes = self.escapes.wrapping_add(1);
            return self.escapes == TIMES;
        }
        // Fewer than three are meant for the guest.
        for _ in 0..core::mem::take(&mut self.escapes) {
            let _ = self.keys.push_back(ESCAPE);
        }
        let _ = self.keys.push_back(key);
        false
    }

    /// Gives the keyboard to the next domain that runs, round and round.
    #[inline(never)]
    fn go_on<H: Hardware>(&mut self, machine: &Machine<H>) {
        let running =
            || machine.domains.iter().filter(|domain| domain.life.is_running()).map(|domain| domain.id);
        let next = running().find(|id| self.owner.is_none_or(|owner| *id > owner));
        self.owner = next.or_else(|| running().next());
        self.keys.clear();
        self.escapes = 0;
        if let Some(owner) = self.owner {
            machine.hw.log(Event::Keyboard(owner));
        }
    }
}

/// Keys came in. At most a turn a key, each linear in the domains where it gives the keyboard on.
pub fn typed<H: Hardware>(machine: &Machine<H>, cpu: CpuId, reschedule: &Cell<bool>, keys: &[u8]) {
    let mut state = machine.keyboard.0.lock();
    for key in keys {
        let has = state.owner.and_then(|id| machine.domain(id));
        if !has.is_some_and(|domain| domain.life.is_running()) {
            state.go_on(machine);
        }
        if state.add(*key) {
            state.go_on(machine);
        }
    }
    let owner = state.owner;
    drop(state);
    if let Some(domain) = owner.and_then(|id| machine.domain(id)).filter(|_| !keys.is_empty()) {
        tell(machine, &Current { domain, vcpu: &NOBODY, cpu, reschedule });
    }
}

/// Tells a domain of keys that wait for it.
fn tell<H: Hardware>(machine: &Machine<H>, current: &Current<'_>) {
    let domain = current.domain;
    let state = &mut *domain.state.lock();
    if let Some(page) = state.params.console {
        if ring::give(machine, domain, page) {
            evtchn::notify(machine, current, state.params.console_port());
        }
        return;
    }
    if !machine.keyboard.waits(domain.id) {
        return;
    }
    if let Some(uart) = &mut state.uart {
        uart.receives(true);
        let line = uart.line();
        for number in state.gic.set_spi_line(vpl011::SPI, line, domain.gic).iter() {
            if let Some(vcpu) = domain.vcpus.get(number.get()) {
                sched::wake_for_device(machine, current.cpu, vcpu);
            }
        }
    }
    evtchn::raise_console(machine, current, &state.ports);
}
