//! A port as one word, so that a sender reads it at once and without a lock.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use pv_abi::{DomId, Port};

/// What a port is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// Not in use.
    Free,
    /// Waits for this domain to bind.
    Unbound(DomId),
    /// Connected to a port of a domain.
    Interdomain(DomId, Port),
    /// Bound to a virtual interrupt.
    Virq(u16),
    /// Notifies its own domain.
    Ipi,
}

/// A port: what it is connected to and the vCPU it notifies.
///
/// Bits: kind 2:0, vCPU 15:8 and 23:16, domain or virq 39:24, remote port 63:40. All zero is a free port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortWord {
    /// What it is connected to.
    pub kind: PortKind,
    /// Number of the vCPU in the port's domain that is notified.
    pub vcpu: u16,
}

const FREE: u64 = 0;
const UNBOUND: u64 = 1;
const INTERDOMAIN: u64 = 2;
const VIRQ: u64 = 3;
const IPI: u64 = 4;
const KIND_MASK: u64 = 7;
const VCPU_SHIFT: u32 = 8;
const PEER_SHIFT: u32 = 24;
const PORT_SHIFT: u32 = 40;

impl PortWord {
    /// A port that is not in use.
    pub const FREE: Self = Self { kind: PortKind::Free, vcpu: 0 };

    /// The word as stored.
    #[inline]
    pub fn pack(self) -> u64 {
        let (kind, peer, port) = match self.kind {
            PortKind::Free => (FREE, 0, 0),
            PortKind::Unbound(dom) => (UNBOUND, dom.0, 0),
            PortKind::Interdomain(dom, port) => (INTERDOMAIN, dom.0, port.0),
            PortKind::Virq(virq) => (VIRQ, virq, 0),
            PortKind::Ipi => (IPI, 0, 0),
        };
        kind | u64::from(self.vcpu) << VCPU_SHIFT | u64::from(peer) << PEER_SHIFT | u64::from(port) << PORT_SHIFT
    }

    /// Decodes a stored word.
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "fields of the word are cut out")]
        let (vcpu, peer, port) =
            ((word >> VCPU_SHIFT) as u16, (word >> PEER_SHIFT) as u16, Port((word >> PORT_SHIFT) as u32));
        let kind = match word & KIND_MASK {
            UNBOUND => PortKind::Unbound(DomId(peer)),
            INTERDOMAIN => PortKind::Interdomain(DomId(peer), port),
            VIRQ => PortKind::Virq(peer),
            IPI => PortKind::Ipi,
            _ => PortKind::Free,
        };
        Self { kind, vcpu }
    }
}
