//! The page that hypervisor and guest share for events: bitmaps of pending and masked ports, and the vCPU's selector
//! (`shared_info`, 2-level ABI).
//!
//! 1. The hypervisor sets a pending bit first, then the selector, then the upcall flag; the guest clears them in the opposite order.
//!    So no event is missed.
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use pv_abi::Port;
use pv_abi::shared::{EVTCHN_WORDS, SharedInfo, VcpuInfo};

/// What a vCPU is told of events (`vcpu_info`).
#[repr(C)]
pub struct Upcall {
    pending: AtomicU8,
    mask: AtomicU8,
    selector: AtomicU64,
    time: [AtomicU64; 4],
}

const _: () = {
    assert!(core::mem::offset_of!(Upcall, selector) == core::mem::offset_of!(VcpuInfo, evtchn_pending_sel));
    assert!(size_of::<Upcall>() == size_of::<VcpuInfo>());
};

impl Upcall {
    /// All zeros.
    pub const fn zeroed() -> Self {
        Self {
            pending: AtomicU8::new(0),
            mask: AtomicU8::new(0),
            selector: AtomicU64::new(0),
            time: [const { AtomicU64::new(0) }; 4],
        }
    }

    /// The interrupt was taken: looks at events come next.
    pub fn clear(&self) {
        self.pending.store(0, Ordering::SeqCst);
    }
}

/// The page.
#[repr(C, align(4096))]
pub struct SharedPage {
    /// Of vCPU 0, until it registers another.
    pub first: Upcall,
    pending: [AtomicU64; EVTCHN_WORDS],
    mask: [AtomicU64; EVTCHN_WORDS],
    wall_clock: [AtomicU32; 4],
}

const _: () = {
    assert!(core::mem::offset_of!(SharedPage, first) == core::mem::offset_of!(SharedInfo, vcpu_info));
    assert!(core::mem::offset_of!(SharedPage, pending) == core::mem::offset_of!(SharedInfo, evtchn_pending));
    assert!(core::mem::offset_of!(SharedPage, mask) == core::mem::offset_of!(SharedInfo, evtchn_mask));
    assert!(core::mem::offset_of!(SharedPage, wall_clock) == core::mem::offset_of!(SharedInfo, wc_version));
    assert!(size_of::<SharedPage>() == pv_abi::PAGE_SIZE);
};

impl SharedPage {
    /// All zeros.
    pub const fn zeroed() -> Self {
        Self {
            first: Upcall::zeroed(),
            pending: [const { AtomicU64::new(0) }; EVTCHN_WORDS],
            mask: [const { AtomicU64::new(0) }; EVTCHN_WORDS],
            wall_clock: [const { AtomicU32::new(0) }; 4],
        }
    }

    /// The wall clock: its version, and seconds and nanoseconds since 1970 when system time was 0.
    pub fn wall_clock(&self) -> (u32, u64, u32) {
        loop {
            let [version, seconds, nanoseconds, high] = &self.wall_clock;
            let before = version.load(Ordering::Acquire);
            let seconds =
                u64::from(seconds.load(Ordering::Relaxed)) | u64::from(high.load(Ordering::Relaxed)) << 32;
            let nanoseconds = nanoseconds.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
                return (before, seconds, nanoseconds);
            }
        }
    }

    /// Masks every port.
    pub fn mask_all(&self) {
        self.mask.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
    }

    /// Masks `port`; returns whether it was masked already.
    pub fn mask(&self, port: Port) -> bool {
        change(&self.mask, port, |word, bit| word.fetch_or(bit, Ordering::AcqRel))
    }

    /// Clears the mask of `port`. The hypervisor's `unmask` call is what also notifies if it is pending.
    pub fn clear_mask(&self, port: Port) {
        change(&self.mask, port, |word, bit| word.fetch_and(!bit, Ordering::AcqRel));
    }

    /// Takes the pending event of `port`, if there is one.
    pub fn take(&self, port: Port) -> bool {
        change(&self.pending, port, |word, bit| word.fetch_and(!bit, Ordering::AcqRel))
    }

    /// Whether an event is pending at `port`.
    pub fn is_pending(&self, port: Port) -> bool {
        change(&self.pending, port, |word, _| word.load(Ordering::Acquire))
    }

    /// Takes all pending events of unmasked ports that a vCPU was told of. Bounded by the ports there are.
    pub fn take_all(&self, upcall: &Upcall, mut handle: impl FnMut(Port)) {
        upcall.clear();
        let selected = upcall.selector.swap(0, Ordering::AcqRel);
        for (index, (pending, mask)) in (0u32..).zip(self.pending.iter().zip(&self.mask)) {
            if selected & (1 << index) == 0 {
                continue;
            }
            let mut due = pending.load(Ordering::Acquire) & !mask.load(Ordering::Acquire);
            while due != 0 {
                let bit = due.trailing_zeros();
                due &= due - 1;
                pending.fetch_and(!(1 << bit), Ordering::AcqRel);
                handle(Port(index * 64 + bit));
            }
        }
    }
}

/// The bit of `port` before `with` changed its word; no bit beyond the bitmap.
fn change(map: &[AtomicU64; EVTCHN_WORDS], port: Port, with: impl FnOnce(&AtomicU64, u64) -> u64) -> bool {
    let bit = 1u64 << (port.0 % 64);
    map.get(port.0 as usize / 64).is_some_and(|word| with(word, bit) & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the hypervisor does to send to an unmasked port.
    fn raise(page: &SharedPage, port: u32) {
        page.pending[port as usize / 64].fetch_or(1 << (port % 64), Ordering::SeqCst);
        page.first.selector.fetch_or(1 << (port / 64), Ordering::SeqCst);
        page.first.pending.store(1, Ordering::SeqCst);
    }

    #[test]
    fn pending_unmasked_ports_are_taken_once_in_order() {
        let page = SharedPage::zeroed();
        page.mask_all();
        for port in [0, 1, 63, 64, 4095] {
            page.clear_mask(Port(port));
            raise(&page, port);
        }
        let mut seen = Vec::new();
        page.take_all(&page.first, |port| seen.push(port.0));
        assert_eq!(seen, [0, 1, 63, 64, 4095]);
        seen.clear();
        page.take_all(&page.first, |port| seen.push(port.0));
        assert!(seen.is_empty());
        assert_eq!(page.first.pending.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_masked_port_stays_pending() {
        let page = SharedPage::zeroed();
        page.mask_all();
        raise(&page, 7);
        page.take_all(&page.first, |_| panic!("masked"));
        assert!(page.is_pending(Port(7)));
        assert!(page.take(Port(7)));
        assert!(!page.take(Port(7)));
    }

    #[test]
    fn ports_beyond_the_bitmap_are_never_pending() {
        let page = SharedPage::zeroed();
        assert!(!page.is_pending(Port(4096)));
        assert!(!page.take(Port(u32::MAX)));
        page.clear_mask(Port(4096));
    }
}
