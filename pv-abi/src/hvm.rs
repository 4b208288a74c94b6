//! `hvm_op` (`public/hvm/hvm_op.h`, `public/hvm/params.h`).
use crate::DomId;
use crate::call::{abi_struct, layout, operations, sub_calls};

sub_calls! {
    /// What `hvm_op` does on ARM.
    HvmOp {
        /// Sets a parameter ([`HvmParamArg`]).
        0 SetParam set_param("HvmParamArg") Constant no [Eperm, Esrch, Efault, Einval];
        /// Reads a parameter ([`HvmParamArg`]).
        1 GetParam get_param("HvmParamArg") Constant ok [Eperm, Esrch, Efault, Einval];
        /// Asks for attention of whoever watches the domain: nobody does. Its handle is null.
        24 GuestRequestVmEvent guest_request_vm_event("null") Constant ok [Einval];
    }
}

operations! {
    /// Parameters that exist on ARM (`HVM_PARAM_*`).
    HvmParam {
        /// How events are delivered.
        0 CallbackIrq;
        /// Guest frame of the xenstore page.
        1 StorePfn;
        /// Port of xenstore.
        2 StoreEvtchn;
        /// Guest frame of the console page.
        17 ConsolePfn;
        /// Port of the console.
        18 ConsoleEvtchn;
    }
}

/// Parameter numbers are below this (`HVM_NR_PARAMS`).
pub const NR_PARAMS: u32 = 39;

abi_struct! {
    /// Argument of both operations.
    pub struct HvmParamArg {
        /// Whose parameter.
        pub domid: DomId,
        /// Unused.
        pub pad: u16,
        /// An [`HvmParam`].
        pub index: u32,
        /// In or out.
        pub value: u64,
    }
}
layout!(HvmParamArg, 16, { domid: 0, pad: 2, index: 4, value: 8 });
