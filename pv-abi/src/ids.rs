//! Names of things that cross the interface: domains, ports, grants, guest pointers.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Derives what every ABI structure needs: plain bytes in, plain bytes out.
macro_rules! id {
    ($(#[$doc:meta])* $Name:ident($Raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $Name(pub $Raw);
    };
}

id! {
    /// A domain's number (`domid_t`, `xen.h`). Guests count from 1; 0 is the control domain's.
    DomId(u16)
}
id! {
    /// An event channel's end in one domain (`evtchn_port_t`). Port 0 is never used.
    Port(u32)
}
id! {
    /// An index into a domain's grant table (`grant_ref_t`).
    GrantRef(u32)
}
id! {
    /// Names a mapping made with `GNTTABOP_map_grant_ref` (`grant_handle_t`).
    GrantHandle(u32)
}
id! {
    /// A guest virtual address in an argument or structure: untrusted until translated (`XEN_GUEST_HANDLE`).
    GuestHandle(u64)
}

impl DomId {
    /// The caller itself (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7FF0);
    /// Owner of device memory (`DOMID_IO`).
    pub const IO: Self = Self(0x7FF1);
    /// The hypervisor as an owner (`DOMID_XEN`).
    pub const XEN: Self = Self(0x7FF2);
    /// Never names a domain (`DOMID_INVALID`).
    pub const INVALID: Self = Self(0x7FF4);
    /// The first number that is no ordinary domain (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: Self = Self(0x7FF0);
}

impl GuestHandle {
    /// The null handle.
    pub const NULL: Self = Self(0);

    /// Whether this is the null handle.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl GrantHandle {
    /// Never names a mapping (`~0`).
    pub const INVALID: Self = Self(u32::MAX);
}
