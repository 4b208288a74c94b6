//! `event_channel_op` (`public/event_channel.h`).
use crate::call::{abi_struct, layout, operations, sub_calls};
use crate::{DomId, Port};

sub_calls! {
    /// What `event_channel_op` does.
    EventOp {
        /// Connects a new port to a remote unbound one ([`BindInterdomain`]).
        0 BindInterdomain bind_interdomain("BindInterdomain") Linear ok [Eperm, Esrch, Efault, Einval, Enospc];
        /// Binds a new port to a virtual interrupt ([`BindVirq`]).
        1 BindVirq bind_virq("BindVirq") Linear ok [Enoent, Efault, Eexist, Einval, Enospc];
        /// Binds a physical interrupt: not on ARM.
        2 BindPirq bind_pirq("BindPirq") Constant no [Efault, Eopnotsupp];
        /// Closes a port ([`PortArg`]); tries again when its other end changes meanwhile.
        3 Close close("PortArg") Restartable ok [Efault, Einval];
        /// Raises the event at the other end ([`PortArg`]), in O(1); at the port of a PV console it takes what is in the ring.
        4 Send send("PortArg") Restartable ok [Efault, Einval];
        /// Describes a port ([`Status`]).
        5 Status status("Status") Constant ok [Eperm, Esrch, Efault, Einval];
        /// Makes a port that a remote domain may bind to ([`AllocUnbound`]).
        6 AllocUnbound alloc_unbound("AllocUnbound") Linear ok [Eperm, Esrch, Efault, Enospc];
        /// Makes a port that notifies one's own vCPU ([`BindIpi`]).
        7 BindIpi bind_ipi("BindIpi") Linear ok [Enoent, Efault, Enospc];
        /// Chooses the vCPU that a port notifies ([`BindVcpu`]).
        8 BindVcpu bind_vcpu("BindVcpu") Constant ok [Enoent, Efault, Einval];
        /// Unmasks a port and notifies if it is pending ([`PortArg`]).
        9 Unmask unmask("PortArg") Constant ok [Efault, Einval];
        /// Closes all ports; refused while another reset is under way, and when a port was made behind it meanwhile.
        10 Reset reset("Reset") Restartable ok [Eperm, Esrch, Eagain, Efault, Ebusy];
        /// Gives a vCPU its control block; the first switches to the FIFO ABI ([`InitControl`]).
        11 InitControl init_control("InitControl") Linear ok [Enoent, Efault, Einval];
        /// Adds an array page ([`ExpandArray`]).
        12 ExpandArray expand_array("ExpandArray") Restartable ok [Efault, Einval, Enospc, Eopnotsupp];
        /// Chooses the queue of a port ([`SetPriority`]).
        13 SetPriority set_priority("SetPriority") Constant ok [Eacces, Efault, Einval, Enosys];
        /// Goes on with a reset that is under way: what an interrupted one leaves in the registers. -EBUSY when none is.
        14 ResetContinuation reset_cont("Reset") Restartable no [Eperm, Esrch, Efault, Ebusy];
    }
}

operations! {
    /// What a port is (`EVTCHNSTAT_*`).
    PortStatus {
        /// Not in use.
        0 Closed;
        /// Waits for a remote domain to bind.
        1 Unbound;
        /// Connected to another port.
        2 Interdomain;
        /// Bound to a physical interrupt.
        3 Pirq;
        /// Bound to a virtual interrupt.
        4 Virq;
        /// Notifies a vCPU of the same domain.
        5 Ipi;
    }
}

operations! {
    /// Virtual interrupts (`VIRQ_*`, `public/xen.h`).
    Virq {
        /// Timer (per vCPU).
        0 Timer;
        /// Debug request (per vCPU).
        1 Debug;
        /// Emergency console (control domain).
        2 Console;
        /// Exceptional domain event (control domain).
        3 DomExc;
        /// Trace buffer (control domain).
        4 Tbuf;
        /// Debugger (control domain).
        6 Debugger;
        /// Oprofile (per vCPU).
        7 Xenoprof;
        /// Console ring (control domain).
        8 ConRing;
        /// Physical CPU state (control domain).
        9 PcpuState;
        /// Memory event (control domain).
        10 MemEvent;
        /// Argo.
        11 Argo;
        /// Low memory (control domain).
        12 Enomem;
        /// Performance counters (per vCPU).
        13 Xenpmu;
    }
}

/// Virtual interrupt numbers are below this (`NR_VIRQS`).
pub const NR_VIRQS: u32 = 24;
/// Ports of the 2-level ABI (`EVTCHN_2L_NR_CHANNELS`).
pub const NR_CHANNELS_2L: u32 = 4096;

/// The FIFO ABI (`EVTCHN_FIFO_*`): a word of 32 bits for each port, in pages that the guest gives.
pub mod fifo {
    /// The event is pending.
    pub const PENDING: u32 = 1 << 31;
    /// It is put into no queue.
    pub const MASKED: u32 = 1 << 30;
    /// It is in a queue; set by the hypervisor, cleared by the guest together with the link.
    pub const LINKED: u32 = 1 << 29;
    /// It is being linked: the guest does not unmask it.
    pub const BUSY: u32 = 1 << 28;
    /// Bits of the port that comes next in the queue.
    pub const LINK_BITS: u8 = 17;
    /// The port that comes next in the queue; 0 at its end.
    pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
    /// Ports that there could be (`EVTCHN_FIFO_NR_CHANNELS`).
    pub const NR_CHANNELS: u32 = 1 << LINK_BITS;
    /// Words of an array page.
    pub const WORDS_PER_PAGE: u32 = 1024;
    /// Pages that an array can have.
    pub const MAX_PAGES: u32 = NR_CHANNELS / WORDS_PER_PAGE;
    /// Queues of a vCPU, by priority (`EVTCHN_FIFO_MAX_QUEUES`).
    pub const QUEUES: usize = 16;
    /// The priority that is served first.
    pub const PRIORITY_MAX: u32 = 0;
    /// That of a new port.
    pub const PRIORITY_DEFAULT: u32 = 7;
    /// The one that is served last.
    pub const PRIORITY_MIN: u32 = 15;
    /// The last offset at which a control block fits into its page.
    pub const CONTROL_BLOCK_LAST: usize = crate::PAGE_SIZE - size_of::<super::ControlBlock>();
}

abi_struct! {
    /// Argument of [`EventOp::AllocUnbound`].
    pub struct AllocUnbound {
        /// Where the port is made.
        pub dom: DomId,
        /// Who may bind to it.
        pub remote_dom: DomId,
        /// Out: the port.
        pub port: Port,
    }
    /// Argument of [`EventOp::BindInterdomain`].
    pub struct BindInterdomain {
        /// The other domain.
        pub remote_dom: DomId,
        /// Unused.
        pub pad: u16,
        /// Its unbound port.
        pub remote_port: Port,
        /// Out: the local port.
        pub local_port: Port,
    }
    /// Argument of [`EventOp::BindVirq`].
    pub struct BindVirq {
        /// A [`Virq`].
        pub virq: u32,
        /// The vCPU that is notified.
        pub vcpu: u32,
        /// Out: the port.
        pub port: Port,
    }
    /// Argument of [`EventOp::BindIpi`].
    pub struct BindIpi {
        /// The vCPU that is notified.
        pub vcpu: u32,
        /// Out: the port.
        pub port: Port,
    }
    /// Argument of [`EventOp::Close`], [`EventOp::Send`] and [`EventOp::Unmask`].
    pub struct PortArg {
        /// The local port.
        pub port: Port,
    }
    /// Argument of [`EventOp::Status`].
    pub struct Status {
        /// Whose port.
        pub dom: DomId,
        /// Unused.
        pub pad: u16,
        /// The port.
        pub port: Port,
        /// Out: a [`PortStatus`].
        pub status: u32,
        /// Out: the vCPU that is notified.
        pub vcpu: u32,
        /// Out: unbound and interdomain: the remote domain; virq: its number.
        pub peer: u32,
        /// Out: interdomain: the remote port.
        pub peer_port: Port,
    }
    /// Argument of [`EventOp::BindVcpu`].
    pub struct BindVcpu {
        /// The local port.
        pub port: Port,
        /// The vCPU.
        pub vcpu: u32,
    }
    /// Argument of [`EventOp::Reset`].
    pub struct Reset {
        /// The domain.
        pub dom: DomId,
    }
    /// Argument of [`EventOp::ExpandArray`].
    pub struct ExpandArray {
        /// Frame of the page.
        pub array_gfn: u64,
    }
    /// Argument of [`EventOp::SetPriority`].
    pub struct SetPriority {
        /// The local port.
        pub port: Port,
        /// Its priority, 0 to 15.
        pub priority: u32,
    }
    /// What a vCPU is told of its queues, in a page of the guest's (`struct evtchn_fifo_control_block`).
    pub struct ControlBlock {
        /// Queues that have something, by priority.
        pub ready: u32,
        /// Unused.
        pub rsvd: u32,
        /// The first port of each queue.
        pub head: [u32; 16],
    }
    /// Argument of [`EventOp::InitControl`].
    pub struct InitControl {
        /// Frame of the control block.
        pub control_gfn: u64,
        /// Offset in that frame, bytes.
        pub offset: u32,
        /// The vCPU.
        pub vcpu: u32,
        /// Out: width of a link.
        pub link_bits: u8,
        /// Unused.
        pub pad: [u8; 7],
    }
}
layout!(Reset, 2, { dom: 0 });
layout!(AllocUnbound, 8, { dom: 0, remote_dom: 2, port: 4 });
layout!(BindInterdomain, 12, { remote_dom: 0, pad: 2, remote_port: 4, local_port: 8 });
layout!(BindVirq, 12, { virq: 0, vcpu: 4, port: 8 });
layout!(BindIpi, 8, { vcpu: 0, port: 4 });
layout!(PortArg, 4, { port: 0 });
layout!(Status, 24, { dom: 0, pad: 2, port: 4, status: 8, vcpu: 12, peer: 16, peer_port: 20 });
layout!(BindVcpu, 8, { port: 0, vcpu: 4 });
layout!(ExpandArray, 8, { array_gfn: 0 });
layout!(SetPriority, 8, { port: 0, priority: 4 });
layout!(ControlBlock, 72, { ready: 0, rsvd: 4, head: 8 });
layout!(InitControl, 24, { control_gfn: 0, offset: 8, vcpu: 12, link_bits: 16, pad: 17 });
