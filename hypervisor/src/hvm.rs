//! `hvm_op`: parameters of a domain.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

/// A domain's HVM parameters. On ARM the hypervisor sets them; a guest reads them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Params {
    /// Guest frame of the xenstore page; 0 without one.
    pub store_pfn: u64,
    /// Port of xenstore; 0 without one.
    pub store_evtchn: u64,
    /// Guest frame of the console page; 0 without one.
    pub console_pfn: u64,
    /// Port of the console; 0 without one.
    pub console_evtchn: u64,
}

impl Params {
    /// No xenstore and no PV console.
    pub const fn new() -> Self {
        Self { store_pfn: 0, store_evtchn: 0, console_pfn: 0, console_evtchn: 0 }
    }
}
