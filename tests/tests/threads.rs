//! Four vCPUs of two domains on four threads: locks are taken in one order, and what two of them do to one channel or grant leaves both
//! ends in agreement.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use core::cell::Cell;

use hypervisor::addr::Ipa;
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{FakeHardware, RAM, Random};
use hypervisor::hardware::CpuId;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};
use pavo_tests::{guest, number, two};
use pv_abi::event::{AllocUnbound, BindInterdomain, EventOp, PortArg};
use pv_abi::grant::{CopyPtr, EntryFlags, GrantCopy, GrantOp, MapGrantRef, UnmapGrantRef};
use pv_abi::{DomId, GrantHandle, GrantRef, Port};
use zerocopy::IntoBytes;

const STEPS: u32 = 500;

/// One vCPU's part: calls with its arguments in a page of its own.
fn run(machine: &Machine<FakeHardware>, id: u16, vcpu: u32) {
    let domain = machine.domain(DomId(id)).unwrap();
    let reschedule = Cell::new(false);
    let current =
        Current { domain, vcpu: domain.vcpu(vcpu).unwrap(), cpu: CpuId(vcpu as u8), reschedule: &reschedule };
    let arg = RAM + 0x1_0000 + u64::from(vcpu) * 0x1000;
    let call = |number: u64, cmd: u32, bytes: &[u8]| {
        let at = Ipa::new(arg).unwrap();
        machine.hw.guest_write(domain.vmid, domain.stage2_root, at, bytes).unwrap();
        // What has to be tried again because the other side was quicker is tried a few times.
        for _ in 0..10 {
            if let Outcome::Done(_) = hypercall(machine, &current, number, [u64::from(cmd), arg, 1, 0, 0]) {
                break;
            }
        }
    };
    let event = |op: EventOp, bytes: &[u8]| call(number::EVENT_CHANNEL_OP, op.number(), bytes);
    let grant = |op: GrantOp, bytes: &[u8]| call(number::GRANT_TABLE_OP, op.number(), bytes);
    let mut random = Random::new(u64::from(id) * 1000 + u64::from(vcpu) + 1);
    for _ in 0..STEPS {
        let port = Port(1 + random.below(6) as u32);
        let other = DomId(1 + random.below(2) as u16);
        let place = 0x5000_0000 + random.below(4) * 0x1000;
        match random.below(9) {
            0 => event(
                EventOp::AllocUnbound,
                AllocUnbound { dom: DomId::SELF, remote_dom: other, port: Port(0) }.as_bytes(),
            ),
            1 | 2 => event(
                EventOp::BindInterdomain,
                BindInterdomain { remote_dom: other, pad: 0, remote_port: port, local_port: Port(0) }
                    .as_bytes(),
            ),
            3 => event(EventOp::Send, PortArg { port }.as_bytes()),
            4 | 5 => event(EventOp::Close, PortArg { port }.as_bytes()),
            6 => {
                let gref = GrantRef(8 + random.below(2) as u32);
                let op =
                    MapGrantRef { host_addr: place, flags: 2, gref, dom: other, ..MapGrantRef::default() };
                grant(GrantOp::MapGrantRef, op.as_bytes());
            }
            7 => {
                let handle = GrantHandle(random.below(4) as u32);
                let op = UnmapGrantRef { host_addr: place, handle, ..UnmapGrantRef::default() };
                grant(GrantOp::UnmapGrantRef, op.as_bytes());
            }
            _ => {
                let side = |domid, gref| CopyPtr { ref_or_gfn: gref, domid, offset: 0, pad: 0 };
                let (source, dest) = (side(other, 8), side(other, 9));
                let op = GrantCopy { source, dest, len: 64, flags: 3, status: 0, pad: 0 };
                grant(GrantOp::Copy, op.as_bytes());
            }
        }
    }
}

#[test]
fn four_vcpus_at_once_end_in_order() {
    let world = two();
    for id in 1..=2 {
        // Each lets the other use one page, and itself another.
        guest(&world, id).grants(8, 3 - id, (RAM + 0x3_0000) >> 12, EntryFlags::empty());
        guest(&world, id).grants(9, id, (RAM + 0x3_1000) >> 12, EntryFlags::empty());
    }
    let machine = &world.machine;
    std::thread::scope(|threads| {
        for id in 1..=2 {
            for vcpu in 0..2 {
                threads.spawn(move || run(machine, id, vcpu));
            }
        }
    });
    check_channels(machine).unwrap();
    world.check();
}
