//! The contract between Pavo and its guests: Xen's ARM64 ABI (interface 4.20) as Rust types.
//!
//! Numbers, structures and limits are those of Xen's public headers (`xen/include/public`); each module names its
//! header. The size of every structure and the offset of every field are asserted
//! beside it, and compared with Xen's headers by a check. A guest issues a hypercall with `hvc #0xEA1`, the number in
//! x16 and up to five arguments in x0-x4; x0 returns the result, negative for an [`Errno`]. Pointers in arguments and
//! structures are guest virtual addresses ([`GuestHandle`]).
//!
//! Versions: [`REVISION`] says what they are; CHANGELOG.md has a section ABI.
//!
//! Invariants
//! 1. No structure has implicit padding (`zerocopy::IntoBytes` refuses it): copying one out leaks nothing.
//! 2. Every number appears once, in [`call`] and in the operation tables of each module.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod call;
pub mod console;
pub mod control;
pub mod errno;
pub mod event;
pub mod grant;
pub mod hvm;
pub mod ids;
pub mod layout;
pub mod memory;
pub mod multicall;
pub mod paging;
pub mod sched;
pub mod shared;
pub mod vcpu;
pub mod version;

pub use call::{HYPERCALL_TAG, Hypercall};
pub use errno::Errno;
pub use ids::{DomId, GrantHandle, GrantRef, GuestHandle, Port};

/// Revision of what is Pavo's own here: what [`paging`] means on ARM64, the operations from 0x8000 on in [`paging`] and [`control`], and what
/// [`hvm`] and [`console`] promise without a control domain. It grows when a guest that was written for one revision would notice. All else is
/// versioned by Xen's interface, [`version::XEN_VERSION`], and by its [`control::DOMCTL_VERSION`] and [`control::SYSCTL_VERSION`].
pub const REVISION: u32 = 1;

/// Bytes in a page, for guests and hypervisor alike.
pub const PAGE_SIZE: usize = 4096;
/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
