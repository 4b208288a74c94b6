//! `sched_op` (`public/sched.h`).
use crate::call::{abi_struct, layout, operations, sub_calls};
use crate::{DomId, GuestHandle};

sub_calls! {
    /// What `sched_op` does.
    SchedOp {
        /// Gives up the CPU for this turn.
        0 Yield yield("none") Constant ok [];
        /// Blocks until an event or interrupt is pending; unmasks upcalls.
        1 Block block("none") Constant ok [];
        /// Shuts the domain down ([`Shutdown`]).
        2 Shutdown shutdown("Shutdown") Linear ok [Efault];
        /// Blocks until one of some ports is pending ([`Poll`]).
        3 Poll poll("Poll") Linear ok [Efault, Einval];
        /// Shuts another domain down (privileged, [`RemoteShutdown`]).
        4 RemoteShutdown remote_shutdown("RemoteShutdown") Constant no [Eperm, Esrch, Efault];
        /// Latches a reason without shutting down.
        5 ShutdownCode shutdown_code("Shutdown") Constant ok [Efault];
        /// Sets, pets or cancels a watchdog ([`Watchdog`]).
        6 Watchdog watchdog("Watchdog") Constant ok [Efault, Einval, Enospc];
        /// Pins to a physical CPU (privileged).
        7 PinOverride pin_override("none") Constant no [Eperm];
    }
}

operations! {
    /// Why a domain stopped (`SHUTDOWN_*`).
    ShutdownReason {
        /// It ended normally.
        0 Poweroff;
        /// It is to be started again.
        1 Reboot;
        /// It is to be saved.
        2 Suspend;
        /// It crashed.
        3 Crash;
        /// Its watchdog expired.
        4 Watchdog;
        /// It is to be reset in place.
        5 SoftReset;
    }
}

/// Most ports one [`Poll`] may name.
pub const POLL_PORTS_MAX: u32 = 128;

abi_struct! {
    /// Argument of [`SchedOp::Shutdown`].
    pub struct Shutdown {
        /// A [`ShutdownReason`].
        pub reason: u32,
    }

    /// Argument of [`SchedOp::Poll`].
    pub struct Poll {
        /// Array of `Port`.
        pub ports: GuestHandle,
        /// Elements in `ports`, at most [`POLL_PORTS_MAX`].
        pub nr_ports: u32,
        /// Unused.
        pub pad: u32,
        /// Absolute system time in nanoseconds; 0 waits for ever.
        pub timeout: u64,
    }

    /// Argument of [`SchedOp::RemoteShutdown`].
    pub struct RemoteShutdown {
        /// The domain.
        pub domain: DomId,
        /// Unused.
        pub pad: u16,
        /// A [`ShutdownReason`].
        pub reason: u32,
    }

    /// Argument of [`SchedOp::Watchdog`].
    pub struct Watchdog {
        /// 0 makes a new one.
        pub id: u32,
        /// Seconds; 0 cancels it.
        pub timeout: u32,
    }
}
layout!(Shutdown, 4, { reason: 0 });
layout!(Poll, 24, { ports: 0, nr_ports: 8, pad: 12, timeout: 16 });
layout!(RemoteShutdown, 8, { domain: 0, pad: 2, reason: 4 });
layout!(Watchdog, 8, { id: 0, timeout: 4 });
