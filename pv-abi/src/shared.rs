//! Pages shared between hypervisor and guest (`public/xen.h`, `public/arch-arm.h`). Both sides touch their words with atomics.
use crate::call::{abi_struct, layout};

/// 64-bit words in each of the pending and mask bitmaps.
pub const EVTCHN_WORDS: usize = 64;

abi_struct! {
    /// Time of a vCPU (`vcpu_time_info`); unused on ARM beyond its place.
    pub struct VcpuTimeInfo {
        /// Odd while an update is under way.
        pub version: u32,
        /// Unused.
        pub pad0: u32,
        /// Counter at the last update.
        pub tsc_timestamp: u64,
        /// Nanoseconds since boot.
        pub system_time: u64,
        /// Multiplier.
        pub tsc_to_system_mul: u32,
        /// Shift.
        pub tsc_shift: i8,
        /// Flags.
        pub flags: u8,
        /// Unused.
        pub pad1: [u8; 2],
    }
    /// Event state of one vCPU (`vcpu_info`).
    pub struct VcpuInfo {
        /// Non-zero: an upcall is due.
        pub evtchn_upcall_pending: u8,
        /// Unused on ARM: the interrupt's own mask serves.
        pub evtchn_upcall_mask: u8,
        /// Unused.
        pub pad: [u8; 6],
        /// Which words of the pending bitmap to look at.
        pub evtchn_pending_sel: u64,
        /// Time.
        pub time: VcpuTimeInfo,
    }
    /// The page at `XENMAPSPACE_shared_info` (`shared_info`).
    pub struct SharedInfo {
        /// Where vCPU 0's state is until it is registered elsewhere.
        pub vcpu_info: [VcpuInfo; 1],
        /// A bit a port: the event is pending.
        pub evtchn_pending: [u64; EVTCHN_WORDS],
        /// A bit a port: do not notify.
        pub evtchn_mask: [u64; EVTCHN_WORDS],
        /// Odd while the wall clock is being updated.
        pub wc_version: u32,
        /// Seconds of the Unix epoch at boot, low half.
        pub wc_sec: u32,
        /// Nanoseconds.
        pub wc_nsec: u32,
        /// Seconds, high half.
        pub wc_sec_hi: u32,
    }
}
layout!(VcpuTimeInfo, 32, {
    version: 0, pad0: 4, tsc_timestamp: 8, system_time: 16, tsc_to_system_mul: 24, tsc_shift: 28, flags: 29,
    pad1: 30,
});
layout!(VcpuInfo, 48, {
    evtchn_upcall_pending: 0, evtchn_upcall_mask: 1, pad: 2, evtchn_pending_sel: 8, time: 16,
});
layout!(SharedInfo, 1088, {
    vcpu_info: 0, evtchn_pending: 48, evtchn_mask: 560, wc_version: 1072, wc_sec: 1076, wc_nsec: 1080,
    wc_sec_hi: 1084,
});
