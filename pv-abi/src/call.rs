//! The hypercall table: the only place where a call's number stands. It drives the guest stubs, the dispatcher (an exhaustive
//! match), the tests and the ABI reference. Numbers are those of Xen's `public/xen.h`.

use crate::console::ConsoleOp;
use crate::errno::Errno;
use crate::event::EventOp;
use crate::grant::{GrantOp, GrantStatus};
use crate::hvm::HvmOp;
use crate::memory::MemoryOp;
use crate::multicall::MULTICALL;
use crate::paging::{BATCH, ExtOp, MMU_UPDATE, UPDATE_VA_MAPPING};
use crate::sched::SchedOp;
use crate::vcpu::{AssistOp, VcpuOp};
use crate::version::VersionOp;

/// The immediate of the `hvc` instruction that makes a hypercall (`XEN_HYPERCALL_TAG`).
pub const HYPERCALL_TAG: u16 = 0xEA1;

/// How a call's cost grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// Bounded by a constant.
    Constant,
    /// Grows with an argument, bounded by a limit.
    Linear,
    /// Grows with an argument; works in pieces and restarts by executing the `hvc` again.
    Restartable,
}

/// One row of the table, for the reference and the tests.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Number in x16.
    pub number: u16,
    /// Xen's name.
    pub name: &'static str,
    /// Names of the register arguments, x0 first.
    pub args: &'static [&'static str],
    /// How the cost of the dearest sub-call grows.
    pub cost: Cost,
    /// What it does.
    pub doc: &'static str,
    /// Its sub-calls, by the `cmd` argument; for a call without one, itself as number 0.
    pub operations: &'static [Operation],
    /// What another `cmd` can be answered, and a call whose structure cannot be read; nothing for a call without one.
    pub otherwise: &'static [Errno],
}

/// Whose a call or sub-call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Xen has it on ARM64.
    Xen,
    /// Xen's number and name, which it has on x86 only; what it means on ARM64 is said here.
    Meaning,
    /// Nobody else's.
    Pavo,
}

impl Row {
    /// Whose the call is.
    pub const fn origin(&self) -> Origin {
        match self.number {
            1 | 14 | 26 => Origin::Meaning,
            _ => Origin::Xen,
        }
    }
}

impl Operation {
    /// Whether it is given the address of something that it reads or writes.
    pub fn takes_handle(&self) -> bool {
        // "any": it is not looked at; "null": it must be.
        let not = ["none", "null", "any", "the assistance itself", "address", "two frames"];
        !not.contains(&self.argument) && !self.argument.starts_with("frame")
    }

    /// Whose the sub-call is, in a call of that origin: our own are numbered from 0x8000.
    pub const fn origin(&self, call: Origin) -> Origin {
        if self.number >= 0x8000 { Origin::Pavo } else { call }
    }
}

/// One sub-call, for the reference and the tests.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Number in the `cmd` argument.
    pub number: u32,
    /// Xen's name, without the prefix of its call.
    pub name: &'static str,
    /// What the structure behind its handle is, or `none`.
    pub argument: &'static str,
    /// How the cost grows.
    pub cost: Cost,
    /// Whether there is a way to succeed.
    pub succeeds: bool,
    /// Every errno that a guest can get.
    pub errors: &'static [Errno],
    /// Every status of an element of a batch, for grants.
    pub statuses: &'static [GrantStatus],
    /// What it does.
    pub doc: &'static str,
}

macro_rules! hypercalls {
    (@first $first:expr $(, $rest:expr)?) => { $first };
    ($(#[doc = $doc:literal] $number:literal $Variant:ident $name:ident($($arg:ident),*) $cost:ident $($operations:expr, $otherwise:expr)?;)*) => {
        /// A hypercall that Pavo implements, by number.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u16)]
        pub enum Hypercall { $(#[doc = $doc] $Variant = $number,)* }

        impl Hypercall {
            /// Every hypercall, in order of numbers.
            pub const ALL: &'static [Self] = &[$(Self::$Variant,)*];

            /// Decodes x16; all other numbers are refused with `-ENOSYS`, as Xen refuses what it does not have.
            #[inline(always)]
            pub const fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$Variant),)* _ => None }
            }

            /// The number in x16.
            pub const fn number(self) -> u16 {
                match self { $(Self::$Variant => $number,)* }
            }
        }

        /// Every row, in order of numbers.
        pub const TABLE: &[Row] = &[$(Row {
            number: $number, name: stringify!($name), args: &[$(stringify!($arg)),*], cost: Cost::$cost, doc: $doc,
            operations: hypercalls!(@first $($operations,)? &[]), otherwise: hypercalls!(@first $($otherwise,)? &[]),
        },)*];
    };
}

hypercalls! {
    #[doc = "Changes entries of the caller's page tables, in domains with paravirtual ones."]
    1 MmuUpdate mmu_update(requests, count, done, domain) Restartable MMU_UPDATE, &[];
    #[doc = "Changes the memory of a domain: places shared frames, grows and shrinks it."]
    12 MemoryOp memory_op(cmd, arg) Restartable MemoryOp::TABLE, &[Errno::Enosys];
    #[doc = "Makes several calls in one."]
    13 Multicall multicall(calls, count) Restartable MULTICALL, &[];
    #[doc = "Changes the mapping of one address, in domains with paravirtual page tables."]
    14 UpdateVaMapping update_va_mapping(va, entry, flags) Constant UPDATE_VA_MAPPING, &[];
    #[doc = "Tells versions, features and build facts."]
    17 XenVersion xen_version(cmd, arg) Constant VersionOp::TABLE, &[Errno::Enosys];
    #[doc = "Writes to and reads from the hypervisor's console."]
    18 ConsoleIo console_io(cmd, count, buffer) Restartable ConsoleOp::TABLE, &[Errno::Enosys];
    #[doc = "Shares pages with other domains: maps, unmaps and copies."]
    20 GrantTableOp grant_table_op(cmd, args, count) Restartable GrantOp::TABLE, &[Errno::Enosys];
    #[doc = "Turns an assistance for the domain on or off: the update mark of run states is the one there is."]
    21 VmAssist vm_assist(cmd, assist) Constant AssistOp::TABLE, &[Errno::Einval, Errno::Enosys];
    #[doc = "Registers a vCPU's shared areas."]
    24 VcpuOp vcpu_op(cmd, vcpu, arg) Constant VcpuOp::TABLE, &[Errno::Enoent, Errno::Einval];
    #[doc = "Pins and unpins page tables and text, takes roots, flushes, in domains with paravirtual page tables."]
    26 MmuExtOp mmuext_op(operations, count, done, domain) Restartable ExtOp::TABLE, BATCH;
    #[doc = "Yields, blocks, waits for events, shuts the domain down."]
    29 SchedOp sched_op(cmd, arg) Constant SchedOp::TABLE, &[Errno::Enosys];
    #[doc = "Binds, signals and closes event channels."]
    32 EventChannelOp event_channel_op(cmd, arg) Restartable EventOp::TABLE, &[Errno::Enosys];
    #[doc = "Reads and writes a domain's parameters."]
    34 HvmOp hvm_op(cmd, arg) Constant HvmOp::TABLE, &[Errno::Enosys];
}

/// Numbers ascend and no call has more than five arguments.
const _: () = {
    let mut rows = TABLE;
    let mut last = 0;
    while let [row, rest @ ..] = rows {
        assert!(row.number > last, "hypercall numbers ascend");
        assert!(row.args.len() <= 5, "a hypercall has at most five arguments");
        last = row.number;
        rows = rest;
    }
};

/// Declares the sub-calls of a hypercall as an enum decoded from the `cmd` argument.
macro_rules! operations {
    ($(#[$outer:meta])* $Name:ident { $($(#[doc = $doc:literal])+ $number:literal $Variant:ident;)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum $Name { $($(#[doc = $doc])+ $Variant = $number,)* }

        impl $Name {
            /// Every operation, ascending.
            pub const ALL: &'static [Self] = &[$(Self::$Variant,)*];

            /// Decodes the `cmd` argument.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$Variant),)* _ => None }
            }

            /// The number in the `cmd` argument.
            pub const fn number(self) -> u32 {
                match self { $(Self::$Variant => $number,)* }
            }
        }
    };
}
pub(crate) use operations;

/// Declares the sub-calls of a hypercall: [`operations`], and a table of rows: number, name, argument, cost, whether it ever
/// succeeds (`ok` or `no`), every errno, and for batches of grants every status.
macro_rules! sub_calls {
    ($(#[$outer:meta])* $Name:ident { $($(#[doc = $doc:literal])+ $number:literal $Variant:ident $name:ident($argument:literal)
        $cost:ident $succeeds:ident [$($error:ident),*] $({$($status:ident),*})?;)* }) => {
        $crate::call::operations! {
            $(#[$outer])*
            $Name { $($(#[doc = $doc])+ $number $Variant;)* }
        }

        impl $Name {
            /// Every operation with its answers.
            pub const TABLE: &'static [$crate::call::Operation] = &[$($crate::call::Operation {
                number: $number,
                name: stringify!($name),
                argument: $argument,
                cost: $crate::call::Cost::$cost,
                succeeds: $crate::call::succeeds!($succeeds),
                errors: &[$($crate::Errno::$error),*],
                statuses: &[$($($crate::grant::GrantStatus::$status),*)?],
                doc: concat!($($doc),+),
            },)*];
        }
    };
}
pub(crate) use sub_calls;

/// `ok` or `no`.
macro_rules! succeeds {
    (ok) => {
        true
    };
    (no) => {
        false
    };
}
pub(crate) use succeeds;

/// Asserts a structure's size and the offset of each of its fields; one that is left out does not compile. `cargo xtask check` compares the
/// numbers with those of Xen's headers (`xen-4.20-layouts.toml`).
macro_rules! layout {
    ($Type:ident, $size:literal, { $($field:ident: $offset:literal),* $(,)? }) => {
        const _: () = {
            const fn _every_field(it: &$Type) {
                let $Type { $($field: _),* } = it;
            }
            assert!(core::mem::size_of::<$Type>() == $size);
            $(assert!(core::mem::offset_of!($Type, $field) == $offset);)*
        };
    };
}
pub(crate) use layout;

/// Declares plain-data structures that cross the interface.
macro_rules! abi_struct {
    ($($(#[$outer:meta])* pub struct $Name:ident { $($(#[$inner:meta])* pub $field:ident: $Ty:ty,)* })*) => {
        $(
            $(#[$outer])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
            #[repr(C)]
            pub struct $Name { $($(#[$inner])* pub $field: $Ty,)* }

            impl Default for $Name {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }
        )*
    };
}
pub(crate) use abi_struct;
