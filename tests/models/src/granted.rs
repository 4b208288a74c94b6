//! A page that a domain with checked page tables grants and takes back while a CPU writes to it for the domain that has it mapped.
use hypervisor::addr::{FrameAddr, Ipa};
use hypervisor::devicetree::Paging;
use hypervisor::fake::{FakeHardware, RAM, World};
use hypervisor::hardware::Hardware;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};
use hypervisor::stage2;
use pv_abi::{DomId, Errno};

use crate::protocols::{both, built, current};

/// Where the arguments of calls are; the granted page, as the granter and as the other one has it; where the granter has its grant table.
const ARGUMENTS: u64 = RAM + 0x1_0000;
const PAGE: u64 = RAM + 0x3_0000;
const MAPPED: u64 = RAM + 0x4_0000;
const TABLE: u64 = RAM + 0x5_0000;

/// `__HYPERVISOR_*` and commands of `public/xen.h`, `memory.h`, `grant_table.h`, `version.h`.
const MEMORY_OP: u64 = 12;
const ADD_TO_PHYSMAP: u64 = 7;
const XEN_VERSION: u64 = 17;
const EXTRAVERSION: u64 = 1;
const GRANT_TABLE_OP: u64 = 20;
const MAP: u64 = 0;
const UNMAP: u64 = 1;
const MMUEXT_OP: u64 = 26;
/// Ours: text of EL0.
const PIN_TEXT: u64 = 0x8001;

/// Calls with a structure of these 64-bit words.
fn call(
    machine: &'static Machine<FakeHardware>,
    current: &Current<'static>,
    number: u64,
    cmd: u64,
    words: &[u64],
) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (domain, at) = (current.domain, Ipa::new(ARGUMENTS).unwrap());
    machine.hw.guest_write(domain.vmid, domain.stage2_root, at, &bytes).unwrap();
    let args = match number {
        MMUEXT_OP => [ARGUMENTS, 1, 0, u64::from(DomId::SELF.0), 0],
        _ => [cmd, ARGUMENTS, 1, 0, 0],
    };
    assert_eq!(hypercall(machine, current, number, args), Outcome::Done(0));
}

/// The other domain's second vCPU gives the page back and the granter makes it text, while its first vCPU lets the hypervisor write there.
pub fn granted() {
    let machine = built(|| Box::leak(Box::new(World::with_paging(2, Paging::Pv).machine)));
    let (granter, writer) = (current(machine, 1, 0), current(machine, 2, 1));
    let sibling = Current { vcpu: writer.domain.vcpu(1).unwrap(), ..current(machine, 2, 0) };
    let page =
        stage2::lookup(&machine.hw, granter.domain.stage2_root, Ipa::new(PAGE).unwrap().frame()).unwrap().mfn;
    model_core::begin();
    // The table at a place of its own, an entry for the other domain, and its mapping.
    call(machine, &granter, MEMORY_OP, ADD_TO_PHYSMAP, &[u64::from(DomId::SELF.0) | 1 << 32, 0, TABLE >> 12]);
    let entry = [1 | 2 << 16 | (PAGE >> 12) << 32];
    let (domain, at) = (granter.domain, Ipa::new(TABLE + 8 * 8).unwrap());
    machine
        .hw
        .guest_write(domain.vmid, domain.stage2_root, at, &entry.map(u64::to_le_bytes).concat())
        .unwrap();
    call(machine, &sibling, GRANT_TABLE_OP, MAP, &[MAPPED, 2 | 8 << 32, 1, 0, 0]);
    let mut answer = [0; 8];
    let (domain, at) = (sibling.domain, Ipa::new(ARGUMENTS + 16).unwrap());
    machine.hw.guest_read(domain.vmid, domain.stage2_root, at, &mut answer).unwrap();
    let answer = u64::from_le_bytes(answer);
    assert_eq!(answer >> 16 & 0xFFFF, 0, "it is mapped");
    let handle = answer >> 32;
    let writes = move || {
        let told = hypercall(machine, &writer, XEN_VERSION, [EXTRAVERSION, MAPPED, 0, 0, 0]);
        assert!(
            matches!(told, Outcome::Done(answer) if answer == 0 || answer == -i64::from(Errno::Efault.value())),
            "{told:?}"
        );
    };
    let becomes = move || {
        call(machine, &sibling, GRANT_TABLE_OP, UNMAP, &[MAPPED, 0, handle]);
        machine.hw.write(FrameAddr::start(page), &[0; 4096]);
        call(machine, &granter, MMUEXT_OP, 0, &[PIN_TEXT, PAGE >> 12, 0]);
        machine.hw.frame_bytes(page)
    };
    machine.hw.watch_writes();
    // The writer first: the others are found from where it and they meet.
    let (checked, ()) = both(becomes, writes);
    assert!(machine.hw.frame_bytes(page) == checked, "text is written");
}
