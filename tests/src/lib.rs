//! Whole-system tests: guests that make hypercalls of the shipping library on the fake machine.
//!
//! A [`Guest`] is a vCPU of a [`World`]. Its arguments lie in its own memory, at [`ARG`] unless a test says otherwise, and
//! after every call the machine must be in order.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::missing_errors_doc,
    reason = "panics are how tests fail"
)]

pub mod drive;
pub mod spec;
pub mod tiny;

use hypervisor::addr::{FrameAddr, Gfn, Mfn};
use hypervisor::evtchn::check_channels;
use hypervisor::fake::{RAM, World};
use hypervisor::hardware::Hardware;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::stage2::{Mapping, lookup};
use pv_abi::event::{AllocUnbound, BindInterdomain, EventOp, PortArg};
use pv_abi::grant::{EntryFlags, GrantEntry, GrantOp};
use pv_abi::{DomId, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Numbers of hypercalls, from `public/xen.h`.
pub mod number {
    #![allow(missing_docs, reason = "named as there")]
    pub const MMU_UPDATE: u64 = 1;
    pub const MEMORY_OP: u64 = 12;
    pub const MULTICALL: u64 = 13;
    pub const UPDATE_VA_MAPPING: u64 = 14;
    pub const XEN_VERSION: u64 = 17;
    pub const CONSOLE_IO: u64 = 18;
    pub const GRANT_TABLE_OP: u64 = 20;
    pub const VM_ASSIST: u64 = 21;
    pub const VCPU_OP: u64 = 24;
    pub const MMUEXT_OP: u64 = 26;
    pub const SCHED_OP: u64 = 29;
    pub const EVENT_CHANNEL_OP: u64 = 32;
    pub const HVM_OP: u64 = 34;
    pub const DOMCTL: u64 = 36;
}

/// Numbers of page-table operations, from `public/xen.h`, and ours from 0x8000 on.
pub mod mmuext {
    #![allow(missing_docs, reason = "named as there")]
    /// By level of the table, 0 first.
    pub const PIN: [u32; 4] = [3, 2, 1, 0];
    pub const UNPIN: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const CLEAR_PAGE: u32 = 16;
    pub const COPY_PAGE: u32 = 17;
    pub const PIN_KERNEL_TEXT: u32 = 0x8000;
    pub const PIN_USER_TEXT: u32 = 0x8001;
    pub const SEAL: u32 = 0x8002;
}

/// Where guests put their arguments: a page of RAM that nothing else uses.
pub const ARG: u64 = RAM + 0x1_0000;
/// An address that no guest has.
pub const NOWHERE: u64 = 0x1000;
/// Where bits lie in the shared-info page (`arch-arm.h`): a 48-byte `vcpu_info`, then the bitmaps.
pub const PENDING: usize = 48;
/// See [`PENDING`].
pub const MASK: usize = PENDING + 512;
/// `evtchn_pending_sel` in a `vcpu_info`.
pub const SELECTOR: usize = 8;

/// A vCPU that makes calls.
#[derive(Clone, Copy)]
pub struct Guest<'w> {
    /// The machine.
    pub world: &'w World,
    /// The domain.
    pub id: u16,
    /// The vCPU.
    pub vcpu: u32,
}

/// vCPU 0 of a domain.
pub fn guest(world: &World, id: u16) -> Guest<'_> {
    Guest { world, id, vcpu: 0 }
}

impl Guest<'_> {
    /// Its id.
    pub fn dom(&self) -> DomId {
        DomId(self.id)
    }

    /// Makes a call once, without executing it again.
    pub fn once(&self, number: u64, args: [u64; 5]) -> Outcome {
        let outcome = hypercall(&self.world.machine, &self.world.current(self.id, self.vcpu), number, args);
        check_channels(&self.world.machine).unwrap();
        outcome
    }

    /// Makes a call to its end, and looks at the machine after each run but the last, of which it tells how many there were.
    pub fn by_runs(&self, number: u64, args: [u64; 5], mut between: impl FnMut(u32)) -> (i64, u32) {
        let mut args = args;
        for interruptions in 0..10_000 {
            match self.once(number, args) {
                Outcome::Done(result) => return (result, interruptions),
                Outcome::Restart(left) => args = left,
            }
            between(interruptions);
        }
        panic!("call {number} with {args:x?} never ends");
    }

    /// Makes a call to its end; the machine is checked after it.
    pub fn call(&self, number: u64, args: [u64; 5]) -> i64 {
        let (result, _) = self.by_runs(number, args, |_| {});
        self.world.check();
        result
    }

    /// Makes a call to its end. The machine is not checked: for calls that are made by the thousand, in a [`Settled`] world.
    pub fn quick(&self, number: u64, args: [u64; 5]) -> i64 {
        let mut args = args;
        for _ in 0..1000 {
            let current = self.world.current(self.id, self.vcpu);
            match hypercall(&self.world.machine, &current, number, args) {
                Outcome::Done(result) => return result,
                Outcome::Restart(left) => args = left,
            }
        }
        panic!("the call never ends");
    }

    /// [`Self::with`] without checks.
    pub fn quick_with<T: IntoBytes + FromBytes + Immutable + Copy>(
        &self,
        number: u64,
        cmd: u32,
        arg: T,
    ) -> (i64, T) {
        self.write(ARG, arg.as_bytes());
        let result = self.quick(number, [u64::from(cmd), ARG, 1, 0, 0]);
        (result, self.read(ARG))
    }

    /// [`Self::event`] without checks.
    pub fn quick_event<T: IntoBytes + FromBytes + Immutable + Copy>(&self, op: EventOp, arg: T) -> (i64, T) {
        self.quick_with(number::EVENT_CHANNEL_OP, op.number(), arg)
    }

    /// [`Self::grant`] without checks.
    pub fn quick_grant<T: IntoBytes + FromBytes + Immutable + Copy>(&self, op: GrantOp, arg: T) -> (i64, T) {
        self.quick_with(number::GRANT_TABLE_OP, op.number(), arg)
    }

    /// Makes a call whose second argument points to a structure; returns the result and the structure after the call.
    pub fn with<T: IntoBytes + FromBytes + Immutable + Copy>(
        &self,
        number: u64,
        cmd: u32,
        arg: T,
    ) -> (i64, T) {
        self.write(ARG, arg.as_bytes());
        let result = self.call(number, [u64::from(cmd), ARG, 1, 0, 0]);
        (result, self.read(ARG))
    }

    /// [`Self::with`] of an event-channel operation.
    pub fn event<T: IntoBytes + FromBytes + Immutable + Copy>(&self, op: EventOp, arg: T) -> (i64, T) {
        self.with(number::EVENT_CHANNEL_OP, op.number(), arg)
    }

    /// [`Self::with`] of a grant operation on one element.
    pub fn grant<T: IntoBytes + FromBytes + Immutable + Copy>(&self, op: GrantOp, arg: T) -> (i64, T) {
        self.with(number::GRANT_TABLE_OP, op.number(), arg)
    }

    /// Writes its memory.
    pub fn write(&self, ipa: u64, bytes: &[u8]) {
        self.world.guest_write(self.id, ipa, bytes);
    }

    /// Reads its memory.
    pub fn read<T: FromBytes + IntoBytes>(&self, ipa: u64) -> T {
        let mut value = T::new_zeroed();
        let at = self.place(ipa);
        self.world.machine.hw.read(at, value.as_mut_bytes());
        value
    }

    /// What is at an address of its memory.
    pub fn place(&self, ipa: u64) -> FrameAddr {
        let mapping = self.mapping(ipa >> 12).unwrap();
        FrameAddr::new(mapping.mfn, usize::try_from(ipa & 0xFFF).unwrap()).unwrap()
    }

    /// What is at a guest frame.
    pub fn mapping(&self, gfn: u64) -> Option<Mapping> {
        let root = self.world.domain(self.id).stage2_root;
        lookup(&self.world.machine.hw, root, Gfn::new(gfn).unwrap())
    }

    /// References to the frame at an address.
    pub fn count(&self, ipa: u64) -> u32 {
        self.world.machine.frames.table.state(self.place(ipa).frame()).unwrap().count
    }

    fn shared_info(&self) -> Mfn {
        self.world.domain(self.id).shared_info
    }

    /// A 64-bit word of the shared-info page.
    pub fn info_word(&self, offset: usize) -> u64 {
        self.world.machine.hw.load_u64(FrameAddr::new(self.shared_info(), offset).unwrap())
    }

    /// Writes bytes of the shared-info page, as the guest does through its mapping of it.
    pub fn set_info(&self, offset: usize, bytes: &[u8]) {
        self.world.machine.hw.write(FrameAddr::new(self.shared_info(), offset).unwrap(), bytes);
    }

    /// Whether a port is pending.
    pub fn is_pending(&self, port: Port) -> bool {
        let word = usize::try_from(port.0 / 64).unwrap();
        self.info_word(PENDING + word * 8) >> (port.0 % 64) & 1 == 1
    }

    /// Masks a port.
    pub fn mask(&self, port: Port) {
        let offset = MASK + usize::try_from(port.0 / 64).unwrap() * 8;
        let word = self.info_word(offset) | 1 << (port.0 % 64);
        self.set_info(offset, &word.to_le_bytes());
    }

    /// Takes its events as an upcall handler does: upcall byte, selector and pending words are cleared.
    pub fn take_events(&self) {
        self.set_info(0, &[0; 16]);
        self.set_info(PENDING, &[0; 512]);
    }

    /// Makes a port that `remote` may bind to.
    pub fn unbound(&self, remote: u16) -> Port {
        let arg = AllocUnbound { dom: DomId::SELF, remote_dom: DomId(remote), port: Port(0) };
        let (result, arg) = self.event(EventOp::AllocUnbound, arg);
        assert_eq!(result, 0);
        arg.port
    }

    /// Binds to a port of `remote`.
    pub fn bind(&self, remote: u16, remote_port: Port) -> Port {
        let arg = BindInterdomain { remote_dom: DomId(remote), pad: 0, remote_port, local_port: Port(0) };
        let (result, arg) = self.event(EventOp::BindInterdomain, arg);
        assert_eq!(result, 0);
        arg.local_port
    }

    /// Sends an event.
    pub fn send(&self, port: Port) -> i64 {
        self.event(EventOp::Send, PortArg { port }).0
    }

    /// Closes a port.
    pub fn close(&self, port: Port) -> i64 {
        self.event(EventOp::Close, PortArg { port }).0
    }

    /// Where entry `gref` of its grant table is.
    fn entry(&self, gref: u32) -> FrameAddr {
        let frame = self.world.domain(self.id).state.lock().grants.frame(gref / 512).unwrap();
        FrameAddr::new(frame, usize::try_from(gref % 512).unwrap() * 8).unwrap()
    }

    /// Grants one of its frames.
    pub fn grants(&self, gref: u32, to: u16, gfn: u64, flags: EntryFlags) {
        let entry = GrantEntry {
            flags: (EntryFlags::PERMIT_ACCESS | flags).bits(),
            domid: DomId(to),
            frame: u32::try_from(gfn).unwrap(),
        };
        self.world.machine.hw.write(self.entry(gref), entry.as_bytes());
    }

    /// Flags of an entry of its grant table.
    pub fn entry_flags(&self, gref: u32) -> EntryFlags {
        let header = self.world.machine.hw.load_u32(self.entry(gref)).to_le_bytes();
        EntryFlags::from_bits_retain(u16::from_le_bytes([header[0], header[1]]))
    }
}

/// A machine that is checked when the test is over.
pub struct Settled(World);

impl Settled {
    /// With so many domains.
    pub fn new(domains: u16) -> Self {
        Self(World::new(domains))
    }
}

impl core::ops::Deref for Settled {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.check();
            check_channels(&self.0.machine).unwrap();
        }
    }
}

/// Two guests on one machine.
pub fn two() -> World {
    World::new(2)
}
