//! Addresses and frame numbers as distinct types.
//!
//! Invariants
//! 1. A value of one type never becomes another by arithmetic: conversions stand only where the fact is known (stage 2
//!    knows which [`Mfn`] a [`Gfn`] is; the frame table knows which `Mfn`s exist).
//! 2. [`Ipa`] and [`Pa`] fit 52 bits; a frame number is an address shifted by 12.
use pv_abi::{PAGE_SHIFT, PAGE_SIZE};

/// Physical and intermediate addresses have at most this many bits (Arm ARM D8.1, without `FEAT_LPA2` beyond 52).
const ADDRESS_BITS: u32 = 52;
const ADDRESS_LIMIT: u64 = 1 << ADDRESS_BITS;
const OFFSET_MASK: u64 = 0xFFF;

macro_rules! address {
    ($(#[$doc:meta])* $Name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
        #[repr(transparent)]
        pub struct $Name(u64);

        impl $Name {
            /// The number.
            #[inline(always)]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Bytes from the start of the page.
            #[inline(always)]
            pub const fn page_offset(self) -> usize {
                (self.0 & OFFSET_MASK) as usize
            }

            /// The address `bytes` further, if it does not wrap.
            #[inline(always)]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Self::new(value),
                    None => None,
                }
            }
        }
    };
}

macro_rules! frame_number {
    ($(#[$doc:meta])* $Name:ident, $Address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
        #[repr(transparent)]
        pub struct $Name(u64);

        impl $Name {
            /// The frame with this number; `None` beyond the addresses that exist.
            #[inline(always)]
            pub const fn new(number: u64) -> Option<Self> {
                if number < ADDRESS_LIMIT >> PAGE_SHIFT { Some(Self(number)) } else { None }
            }

            /// The number.
            #[inline(always)]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Where the frame starts.
            #[inline(always)]
            pub const fn base(self) -> $Address {
                $Address(self.0 << PAGE_SHIFT)
            }

            /// The frame `count` further, if it exists.
            #[inline(always)]
            pub const fn checked_add(self, count: u64) -> Option<Self> {
                match self.0.checked_add(count) {
                    Some(number) => Self::new(number),
                    None => None,
                }
            }

            /// Whether the number is a multiple of `2^order`.
            #[inline(always)]
            pub const fn is_aligned(self, order: u32) -> bool {
                self.0.trailing_zeros() >= order
            }
        }

        impl $Address {
            /// The address, if it is one.
            #[inline(always)]
            pub const fn new(value: u64) -> Option<Self> {
                if value < ADDRESS_LIMIT { Some(Self(value)) } else { None }
            }

            /// The frame that holds this address.
            #[inline(always)]
            pub const fn frame(self) -> $Name {
                $Name(self.0 >> PAGE_SHIFT)
            }
        }
    };
}

address! {
    /// An address in a guest's physical space, stage 2's input.
    Ipa
}
address! {
    /// An address of the machine.
    Pa
}
frame_number! {
    /// A frame of a guest's physical space.
    Gfn, Ipa
}
frame_number! {
    /// A frame of the machine.
    Mfn, Pa
}

/// An address in a guest's virtual space: whatever the guest said, until translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct GuestVa(u64);

impl GuestVa {
    /// Takes what the guest said.
    #[inline(always)]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes from here to the end of the page, 1 to 4096.
    #[inline(always)]
    pub const fn left_in_page(self) -> usize {
        let offset = (self.0 & OFFSET_MASK) as usize;
        PAGE_SIZE.wrapping_sub(offset)
    }

    /// The address `bytes` further, if it does not wrap.
    #[inline(always)]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }
}

/// A place in a machine frame: the only way guest memory is named above the hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameAddr(Pa);

impl FrameAddr {
    /// The place `offset` bytes into `frame`; `None` past its end.
    #[inline(always)]
    pub const fn new(frame: Mfn, offset: usize) -> Option<Self> {
        if offset < PAGE_SIZE { Some(Self(Pa(frame.base().0 | offset as u64))) } else { None }
    }

    /// The start of a frame.
    #[inline(always)]
    pub const fn start(frame: Mfn) -> Self {
        Self(frame.base())
    }

    /// The frame.
    #[inline(always)]
    pub const fn frame(self) -> Mfn {
        self.0.frame()
    }

    /// Bytes from the start of the frame.
    #[inline(always)]
    pub const fn offset(self) -> usize {
        self.0.page_offset()
    }

    /// The machine address.
    #[inline(always)]
    pub const fn pa(self) -> Pa {
        self.0
    }

    /// Bytes from here to the end of the frame, 1 to 4096.
    #[inline(always)]
    pub const fn left(self) -> usize {
        PAGE_SIZE.wrapping_sub(self.offset())
    }

    /// The place a `PA` names.
    #[inline(always)]
    pub const fn from_pa(pa: Pa) -> Self {
        Self(pa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_beyond_52_bits_do_not_exist() {
        assert_eq!(Ipa::new(1 << 52), None);
        assert_eq!(Mfn::new(1 << 40), None);
        assert_eq!(Ipa::new((1 << 52) - 1).unwrap().checked_add(1), None);
        assert_eq!(Gfn::new((1 << 40) - 1).unwrap().checked_add(1), None);
    }

    #[test]
    fn a_place_never_leaves_its_frame() {
        let frame = Mfn::new(5).unwrap();
        assert_eq!(FrameAddr::new(frame, 4096), None);
        let last = FrameAddr::new(frame, 4095).unwrap();
        assert_eq!((last.frame(), last.offset(), last.left()), (frame, 4095, 1));
    }

    #[test]
    fn a_guest_address_wraps_to_nothing() {
        assert_eq!(GuestVa::new(u64::MAX).checked_add(1), None);
        assert_eq!(GuestVa::new(0x1000).left_in_page(), 4096);
        assert_eq!(GuestVa::new(0x1FFF).left_in_page(), 1);
    }
}
