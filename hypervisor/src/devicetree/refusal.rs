//! Why a domain that the tree asks for is not built: one line for the log.
use core::fmt;

use pv_abi::DomId;

use super::error::TreeError;

/// Why a domain is not built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the text of each is its documentation")]
pub enum Refusal {
    Tree(TreeError),
    MemoryMissing,
    MemoryIsZero,
    MemoryTooLarge,
    MaxMemoryOutOfRange,
    CpusMissing,
    CpusIsZero,
    TooManyVcpus,
    KernelMissing,
    ModuleMalformed,
    UnknownPaging,
    FrameCountTooLarge,
    PortsOutOfRange,
    TooManyChannels,
    ChannelMalformed,
    ChannelPortOutOfRange,
    ChannelPortTwice,
    ChannelPeerMissing,
    ChannelNotMutual,
    TooManyDomains,
    SecondControl,
    UnknownAction,
    WeightOutOfRange,
    UnknownScheduler,
}

impl From<TreeError> for Refusal {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tree(error) => return error.fmt(f),
            Self::MemoryMissing => "memory property missing",
            Self::MemoryIsZero => "memory is 0",
            Self::MemoryTooLarge => "more memory than a guest's address space holds",
            Self::MaxMemoryOutOfRange => "pavo,max-memory is less than memory, or too much",
            Self::CpusMissing => "cpus property missing",
            Self::CpusIsZero => "cpus is 0",
            Self::TooManyVcpus => "more than 8 vCPUs",
            Self::KernelMissing => "kernel module missing",
            Self::ModuleMalformed => "reg of a module missing or malformed",
            Self::UnknownPaging => "pavo,paging is neither nested nor pv",
            Self::FrameCountTooLarge => "max_grant_frames or max_maptrack_frames too large",
            Self::PortsOutOfRange => "pavo,max-ports is not between 2 and 131072",
            Self::TooManyChannels => "too many channels",
            Self::ChannelMalformed => "xen,evtchn of a channel missing or malformed",
            Self::ChannelPortOutOfRange => "port of a channel out of range",
            Self::ChannelPortTwice => "two channels with one port",
            Self::ChannelPeerMissing => "channel whose other end is not in the tree",
            Self::ChannelNotMutual => "channel whose other end does not name it back",
            Self::TooManyDomains => "no domain id left",
            Self::SecondControl => "there is a control domain already",
            Self::UnknownAction => "pavo,on-reboot or pavo,on-crash is neither destroy, restart nor preserve",
            Self::WeightOutOfRange => "pavo,weight is not between 1 and 65535",
            Self::UnknownScheduler => "pavo,scheduler is neither fair nor partition",
        })
    }
}

/// A domain that is not built, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainRefusal<'a> {
    /// The number that it keeps; none when there is none left.
    pub id: Option<DomId>,
    /// Its name, as far as it could be read.
    pub name: &'a str,
    /// The reason, one line.
    pub reason: Refusal,
}
