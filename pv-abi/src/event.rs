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
        /// Closes a port ([`PortArg`]).
        3 Close close("PortArg") Constant ok [Efault, Einval];
        /// Raises the event at the other end ([`PortArg`]).
        4 Send send("PortArg") Constant ok [Efault, Einval];
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
        /// Closes all ports.
        10 Reset reset("Reset") Restartable ok [Eperm, Esrch, Efault];
        /// Switches to the FIFO ABI.
        11 InitControl init_control("InitControl") Linear ok [Enoent, Efault, Einval];
        /// Adds an array page (FIFO ABI).
        12 ExpandArray expand_array("ExpandArray") Linear ok [Efault, Einval, Enospc, Eopnotsupp];
        /// Sets a priority (FIFO ABI).
        13 SetPriority set_priority("SetPriority") Constant ok [Efault, Einval, Enosys];
        /// A reset that goes on, in Xen: no guest's to call.
        14 ResetContinuation reset_cont("Reset") Constant no [Eperm, Esrch, Efault, Ebusy];
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
layout!(AllocUnbound, 8, { dom: 0, remote_dom: 2, port: 4 });
layout!(BindInterdomain, 12, { remote_dom: 0, remote_port: 4, local_port: 8 });
layout!(BindVirq, 12, { virq: 0, vcpu: 4, port: 8 });
layout!(BindIpi, 8, { vcpu: 0, port: 4 });
layout!(PortArg, 4, { port: 0 });
layout!(Status, 24, { dom: 0, port: 4, status: 8, vcpu: 12, peer: 16, peer_port: 20 });
layout!(BindVcpu, 8, { port: 0, vcpu: 4 });
layout!(InitControl, 24, { control_gfn: 0, offset: 8, vcpu: 12, link_bits: 16 });
