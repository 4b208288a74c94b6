//! System registers that aarch64-cpu lacks, and the values that EL2 puts into those it has. Names are the Arm ARM's.
#![expect(unsafe_code, reason = "one mrs or msr each")]

use aarch64_cpu::registers::{CNTHCTL_EL2, HCR_EL2, MDCR_EL2, SCTLR_EL2, TCR_EL2, VTCR_EL2};
use tock_registers::register_bitfields;

macro_rules! system_registers {
    ($($(#[$doc:meta])* $name:ident = $text:literal $(: $Fields:ident)?;)*) => {
        $(
            $(#[$doc])*
            #[allow(dead_code, reason = "some are only read, some only written")]
            pub mod $name {
                /// Reads the register.
                #[inline(always)]
                pub fn read() -> u64 {
                    let value: u64;
                    // SAFETY: reading this register has no effect on memory; EL2 may read it.
                    unsafe { core::arch::asm!(concat!("mrs {}, ", $text), out(reg) value, options(nomem, nostack, preserves_flags)) };
                    value
                }

                /// Writes the register.
                #[inline(always)]
                pub fn write(value: u64) {
                    // SAFETY: the register configures the guest or the interrupt interface, never EL2's own view of memory.
                    unsafe { core::arch::asm!(concat!("msr ", $text, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
                }
            }
        )*
    };
}

system_registers! {
    /// Debug control of the guest.
    mdscr_el1 = "mdscr_el1";
    /// Auxiliary control of EL2.
    actlr_el2 = "actlr_el2";
    /// Extended hypervisor configuration (`HCRX_EL2`, `FEAT_HCX`).
    hcrx_el2 = "s3_4_c1_c2_2";
    /// Fine-grained read traps (`HFGRTR_EL2`, `FEAT_FGT`).
    hfgrtr_el2 = "s3_4_c1_c1_4";
    /// Fine-grained write traps (`HFGWTR_EL2`).
    hfgwtr_el2 = "s3_4_c1_c1_5";
    /// Fine-grained instruction traps (`HFGITR_EL2`).
    hfgitr_el2 = "s3_4_c1_c1_6";
    /// Fine-grained debug read traps (`HDFGRTR_EL2`).
    hdfgrtr_el2 = "s3_4_c3_c1_4";
    /// Fine-grained debug write traps (`HDFGWTR_EL2`).
    hdfgwtr_el2 = "s3_4_c3_c1_5";
    /// Memory features 1.
    id_aa64mmfr1_el1 = "id_aa64mmfr1_el1";
    /// Memory features 0.
    id_aa64mmfr0_el1 = "id_aa64mmfr0_el1";
    /// Processor features 0.
    id_aa64pfr0_el1 = "id_aa64pfr0_el1";
    /// Deferred virtual SError syndrome (`VDISR_EL2`, `FEAT_RAS`).
    vdisr_el2 = "s3_4_c12_c1_1";
    /// Stage-2 control.
    vtcr_el2 = "vtcr_el2";
    /// Hypervisor configuration.
    hcr_el2 = "hcr_el2";
    /// IMPLEMENTATION DEFINED traps.
    hacr_el2 = "hacr_el2";
    /// Debug configuration.
    mdcr_el2 = "mdcr_el2";
    /// Timer access of EL1.
    cnthctl_el2 = "cnthctl_el2";
    /// Architectural feature traps.
    cptr_el2 = "cptr_el2";
    /// Traps of the IMPLEMENTATION DEFINED AArch32 space.
    hstr_el2 = "hstr_el2";
    /// What a guest reads as `MIDR_EL1`.
    vpidr_el2 = "vpidr_el2";
    /// What a guest reads as `MPIDR_EL1`.
    vmpidr_el2 = "vmpidr_el2";
    /// Stage-2 root and VMID.
    vttbr_el2 = "vttbr_el2";
    /// Counter offset of the guest.
    cntvoff_el2 = "cntvoff_el2";
    /// EL2's timer.
    cnthp_ctl_el2 = "cnthp_ctl_el2";
    /// EL2's timer.
    cnthp_cval_el2 = "cnthp_cval_el2";
    /// Pending exceptions.
    isr_el1 = "isr_el1";
    /// Empty list registers.
    ich_elrsr_el2 = "ich_elrsr_el2";
    /// Acknowledge, group 1.
    icc_iar1_el1 = "icc_iar1_el1";
    /// Priority drop, group 1.
    icc_eoir1_el1 = "icc_eoir1_el1";
    /// Deactivation.
    icc_dir_el1 = "icc_dir_el1";
    /// Software-generated interrupt, group 1.
    icc_sgi1r_el1 = "icc_sgi1r_el1";
    /// Priority mask.
    icc_pmr_el1 = "icc_pmr_el1";
    /// Binary point, group 1.
    icc_bpr1_el1 = "icc_bpr1_el1";
    /// Enable, group 1.
    icc_igrpen1_el1 = "icc_igrpen1_el1";
    /// CPU interface control.
    icc_ctlr_el1 = "icc_ctlr_el1";
    /// System register enable.
    icc_sre_el2 = "icc_sre_el2";
    /// System register enable of the guest.
    icc_sre_el1 = "icc_sre_el1";
    /// Virtual interface control.
    ich_hcr_el2 = "ich_hcr_el2";
    /// Virtual machine control.
    ich_vmcr_el2 = "ich_vmcr_el2";
    /// Virtual interface type.
    ich_vtr_el2 = "ich_vtr_el2";
    /// Active priorities, group 0.
    ich_ap0r0_el2 = "ich_ap0r0_el2";
    /// Active priorities, group 1.
    ich_ap1r0_el2 = "ich_ap1r0_el2";
    /// Active priorities, group 0, of 6 and more preemption bits.
    ich_ap0r1_el2 = "ich_ap0r1_el2";
    /// Active priorities, group 1, of 6 and more preemption bits.
    ich_ap1r1_el2 = "ich_ap1r1_el2";
    /// Active priorities, group 0, of 7 preemption bits.
    ich_ap0r2_el2 = "ich_ap0r2_el2";
    /// Active priorities, group 0, of 7 preemption bits.
    ich_ap0r3_el2 = "ich_ap0r3_el2";
    /// Active priorities, group 1, of 7 preemption bits.
    ich_ap1r2_el2 = "ich_ap1r2_el2";
    /// Active priorities, group 1, of 7 preemption bits.
    ich_ap1r3_el2 = "ich_ap1r3_el2";
    /// Exception syndrome.
    esr_el2 = "esr_el2";
    /// Exception return address.
    elr_el2 = "elr_el2";
    /// Saved state.
    spsr_el2 = "spsr_el2";
    /// Fault address.
    far_el2 = "far_el2";
    /// Faulting intermediate physical address.
    hpfar_el2 = "hpfar_el2";
    /// The CPU's block ([`super::percpu`]).
    tpidr_el2 = "tpidr_el2";
    /// Translation result.
    par_el1 = "par_el1";
    /// Main identity.
    midr_el1 = "midr_el1";
    /// Affinity.
    mpidr_el1 = "mpidr_el1";
    /// Physical counter.
    cntpct_el0 = "cntpct_el0";
    /// Its frequency.
    cntfrq_el0 = "cntfrq_el0";
    /// Control of EL1.
    sctlr_el1 = "sctlr_el1";
    /// Translation table 0.
    ttbr0_el1 = "ttbr0_el1";
    /// Translation table 1.
    ttbr1_el1 = "ttbr1_el1";
    /// Translation control.
    tcr_el1 = "tcr_el1";
    /// Memory attributes.
    mair_el1 = "mair_el1";
    /// Auxiliary memory attributes.
    amair_el1 = "amair_el1";
    /// Vectors.
    vbar_el1 = "vbar_el1";
    /// Context.
    contextidr_el1 = "contextidr_el1";
    /// Feature access.
    cpacr_el1 = "cpacr_el1";
    /// Syndrome.
    esr_el1 = "esr_el1";
    /// Fault address.
    far_el1 = "far_el1";
    /// Auxiliary syndrome 0.
    afsr0_el1 = "afsr0_el1";
    /// Auxiliary syndrome 1.
    afsr1_el1 = "afsr1_el1";
    /// Return address.
    elr_el1 = "elr_el1";
    /// Saved state.
    spsr_el1 = "spsr_el1";
    /// Stack of EL1.
    sp_el1 = "sp_el1";
    /// Stack of EL0.
    sp_el0 = "sp_el0";
    /// Thread pointer.
    tpidr_el0 = "tpidr_el0";
    /// Read-only thread pointer.
    tpidrro_el0 = "tpidrro_el0";
    /// Thread pointer of EL1.
    tpidr_el1 = "tpidr_el1";
    /// Cache selection.
    csselr_el1 = "csselr_el1";
    /// Timer access of EL0.
    cntkctl_el1 = "cntkctl_el1";
    /// Virtual timer control.
    cntv_ctl_el0 = "cntv_ctl_el0";
    /// Physical timer control of EL1.
    cntp_ctl_el0 = "cntp_ctl_el0";
    /// Virtual timer deadline.
    cntv_cval_el0 = "cntv_cval_el0";
}

register_bitfields! { u64,
    /// Architectural feature traps (Arm ARM D19.2.34, E2H = 0).
    pub CPTR_EL2 [
        /// RES1.
        RES1_13 OFFSET(13) NUMBITS(1) [],
        /// Trap CPACR_EL1.
        TCPAC OFFSET(31) NUMBITS(1) [],
        /// Trap the activity monitors.
        TAM OFFSET(30) NUMBITS(1) [],
        /// Trap trace registers.
        TTA OFFSET(20) NUMBITS(1) [],
        /// RES1, or trap SME.
        TSM OFFSET(12) NUMBITS(1) [],
        /// Trap floating point and Advanced SIMD.
        TFP OFFSET(10) NUMBITS(1) [],
        /// RES1.
        RES1_9 OFFSET(9) NUMBITS(1) [],
        /// RES1, or trap SVE.
        TZ OFFSET(8) NUMBITS(1) [],
        /// RES1.
        RES1_LOW OFFSET(0) NUMBITS(8) []
    ],
    /// Syndrome (Arm ARM D19.2.41).
    pub ESR [
        /// Exception class.
        EC OFFSET(26) NUMBITS(6) [],
        /// 32-bit instruction.
        IL OFFSET(25) NUMBITS(1) [],
        /// Data abort: the syndrome is valid.
        ISV OFFSET(24) NUMBITS(1) [],
        /// Data abort: binary logarithm of the access size.
        SAS OFFSET(22) NUMBITS(2) [],
        /// Data abort: sign-extend.
        SSE OFFSET(21) NUMBITS(1) [],
        /// Data abort: register.
        SRT OFFSET(16) NUMBITS(5) [],
        /// Data abort: 64-bit register.
        SF OFFSET(15) NUMBITS(1) [],
        /// Abort: the fault address register is not valid.
        FNV OFFSET(10) NUMBITS(1) [],
        /// Abort: external.
        EA OFFSET(9) NUMBITS(1) [],
        /// Data abort: cache maintenance.
        CM OFFSET(8) NUMBITS(1) [],
        /// Abort: on a walk of stage 1.
        S1PTW OFFSET(7) NUMBITS(1) [],
        /// Data abort: write.
        WNR OFFSET(6) NUMBITS(1) [],
        /// Abort: fault status.
        FSC OFFSET(0) NUMBITS(6) [],
        /// HVC, SMC, SVC, BRK: immediate.
        IMM16 OFFSET(0) NUMBITS(16) [],
        /// WFI or WFE: which.
        TI OFFSET(0) NUMBITS(2) [],
        /// System register access: read.
        DIRECTION OFFSET(0) NUMBITS(1) [],
        /// System register access: register.
        RT OFFSET(5) NUMBITS(5) [],
        /// System register access: the register's name, as `encoding` makes it.
        SYSREG OFFSET(1) NUMBITS(21) []
    ],
    /// `PAR_EL1` after an address translation.
    pub PAR [
        /// Memory attributes, as in `MAIR_EL1`.
        ATTR OFFSET(56) NUMBITS(8) [],
        /// Stage 2 failed it.
        S OFFSET(9) NUMBITS(1) [],
        /// Address.
        PA OFFSET(12) NUMBITS(40) [],
        /// It failed.
        F OFFSET(0) NUMBITS(1) []
    ],
    /// `ID_AA64PFR0_EL1`.
    pub PFR0 [
        /// Speculation by branch targets of other contexts is contained.
        CSV2 OFFSET(56) NUMBITS(4) [],
        /// The RAS extension, with registers for deferred errors.
        RAS OFFSET(28) NUMBITS(4) []
    ],
    /// `HPFAR_EL2`.
    pub HPFAR [
        /// Bits 51:12 of the address.
        FIPA OFFSET(4) NUMBITS(40) []
    ],
    /// `VTTBR_EL2`.
    pub VTTBR [
        /// Address space.
        VMID OFFSET(48) NUMBITS(16) []
    ],
    /// Timer control.
    pub CNT_CTL [
        /// Condition met.
        ISTATUS OFFSET(2) NUMBITS(1) [],
        /// Interrupt masked.
        IMASK OFFSET(1) NUMBITS(1) [],
        /// Enabled.
        ENABLE OFFSET(0) NUMBITS(1) []
    ],
    /// `ICH_HCR_EL2`.
    pub ICH_HCR [
        /// No-pending interrupt.
        NPIE OFFSET(3) NUMBITS(1) [],
        /// Underflow interrupt.
        UIE OFFSET(1) NUMBITS(1) [],
        /// Virtual interface on.
        EN OFFSET(0) NUMBITS(1) []
    ],
    /// `ICH_VMCR_EL2`.
    pub ICH_VMCR [
        /// Priority mask.
        VPMR OFFSET(24) NUMBITS(8) [],
        /// Binary point, group 0.
        VBPR0 OFFSET(21) NUMBITS(3) [],
        /// Binary point, group 1.
        VBPR1 OFFSET(18) NUMBITS(3) [],
        /// Group 1 on.
        VENG1 OFFSET(1) NUMBITS(1) []
    ],
    /// `ICC_CTLR_EL1`.
    pub ICC_CTLR [
        /// EOI only drops the priority.
        EOIMODE OFFSET(1) NUMBITS(1) []
    ],
    /// `ICC_SRE_EL2`.
    pub ICC_SRE [
        /// Lower level may use the registers.
        ENABLE OFFSET(3) NUMBITS(1) [],
        /// No IRQ bypass.
        DIB OFFSET(2) NUMBITS(1) [],
        /// No FIQ bypass.
        DFB OFFSET(1) NUMBITS(1) [],
        /// System registers on.
        SRE OFFSET(0) NUMBITS(1) []
    ],
    /// `ICC_SGI1R_EL1`.
    pub ICC_SGI1R [
        /// Affinity 3.
        AFF3 OFFSET(48) NUMBITS(8) [],
        /// Affinity 2.
        AFF2 OFFSET(32) NUMBITS(8) [],
        /// Interrupt.
        INTID OFFSET(24) NUMBITS(4) [],
        /// Affinity 1.
        AFF1 OFFSET(16) NUMBITS(8) [],
        /// Targets by affinity 0.
        TARGETS OFFSET(0) NUMBITS(16) []
    ],
    /// What of `SCTLR_EL1` an exception looks at.
    pub SCTLR1 [
        /// SSBS on entry.
        DSSBS OFFSET(44) NUMBITS(1) [],
        /// PAN stays as it is on entry.
        SPAN OFFSET(23) NUMBITS(1) []
    ],
    /// Saved process state.
    pub SPSR [
        /// Condition flags.
        NZCV OFFSET(28) NUMBITS(4) [],
        /// Data-independent timing.
        DIT OFFSET(24) NUMBITS(1) [],
        /// Privileged access never.
        PAN OFFSET(22) NUMBITS(1) [],
        /// Speculative store bypass safe.
        SSBS OFFSET(12) NUMBITS(1) [],
        /// Exceptions masked: debug, SError, IRQ, FIQ.
        DAIF OFFSET(6) NUMBITS(4) [],
        /// IRQ masked.
        I OFFSET(7) NUMBITS(1) [],
        /// AArch32.
        NRW OFFSET(4) NUMBITS(1) [],
        /// Level and stack.
        M OFFSET(0) NUMBITS(4) [EL0t = 0, EL1t = 4, EL1h = 5]
    ]
}

/// `MAIR_EL2`: attribute 0 Normal write-back, 1 Device-nGnRE.
pub const MAIR: u64 = 0x04FF;
/// Attribute index of normal memory.
pub const MAIR_NORMAL: u64 = 0;
/// Attribute index of devices.
pub const MAIR_DEVICE: u64 = 1;

/// Bits that are RES1 in `SCTLR_EL2` (Arm ARM D19.2.121).
const SCTLR_RES1: u64 = 0x30C5_0830;
/// `SCTLR_EL2` while the MMU is off.
pub const SCTLR_OFF: u64 = SCTLR_RES1;
/// `SCTLR_EL2` in operation: MMU and caches on, writable pages never execute, stack alignment checked.
pub const SCTLR: u64 = SCTLR_RES1
    | SCTLR_EL2::M::Enable.value
    | SCTLR_EL2::C::Cacheable.value
    | SCTLR_EL2::I::Cacheable.value
    | SCTLR_EL2::WXN::Enable.value
    | SCTLR_EL2::SA::Enable.value;

/// `TCR_EL2` without the physical address size: 39-bit addresses, 4 KiB pages, inner-shareable write-back walks. Bits 31 and 23
/// are RES1.
pub const TCR: u64 = TCR_EL2::T0SZ.val(25).value
    | TCR_EL2::IRGN0.val(1).value
    | TCR_EL2::ORGN0.val(1).value
    | TCR_EL2::SH0.val(3).value
    | 0x8080_0000;

/// `VTCR_EL2` without physical size and VMID size: 40-bit addresses, walks from level 1 (two tables side by side), 4 KiB
/// pages, inner-shareable write-back walks.
pub const VTCR: u64 = VTCR_EL2::T0SZ.val(24).value
    | VTCR_EL2::SL0.val(1).value
    | VTCR_EL2::IRGN0.val(1).value
    | VTCR_EL2::ORGN0.val(1).value
    | VTCR_EL2::SH0.val(3).value
    | VTCR_EL2::RES1.val(1).value;

/// `HCR_EL2` while a guest runs. Interrupts and SErrors come to EL2; traps: WFI, SMC, set/way maintenance, auxiliary control,
/// identification registers, IMPLEMENTATION DEFINED registers, error records, limited ordering regions. Pointer
/// authentication (API, APK) stays trapped: it is hidden.
pub const HCR_GUEST: u64 = HCR_EL2::VM::SET.value
    | HCR_EL2::SWIO::SET.value
    | HCR_EL2::PTW::SET.value
    | HCR_EL2::FMO::SET.value
    | HCR_EL2::IMO::SET.value
    | HCR_EL2::AMO::SET.value
    | HCR_EL2::FB::SET.value
    | HCR_EL2::BSU.val(1).value
    | HCR_EL2::TWI::SET.value
    | HCR_EL2::TID3::SET.value
    | HCR_EL2::TSC::SET.value
    | HCR_EL2::TIDCP::SET.value
    | HCR_EL2::TACR::SET.value
    | HCR_EL2::TSW::SET.value
    | HCR_EL2::TLOR::SET.value
    | HCR_EL2::TERR::SET.value
    | HCR_EL2::RW::SET.value;

/// `HCR_EL2.TWI`: a guest's WFI traps.
pub const HCR_TWI: u64 = HCR_EL2::TWI::SET.value;

/// [`HCR_GUEST`] for a vCPU of a domain with paravirtual page tables: writes to EL1's translation controls trap too (`TVM`).
pub const HCR_PAGING: u64 = HCR_GUEST | HCR_EL2::TVM::SET.value;

/// `MDCR_EL2` while a guest runs: every debug, trace, profiling and performance-monitor register traps.
pub const MDCR_GUEST: u64 = MDCR_EL2::TDRA::SET.value
    | MDCR_EL2::TDOSA::SET.value
    | MDCR_EL2::TDA::SET.value
    | MDCR_EL2::TPM::SET.value
    | MDCR_EL2::TPMCR::SET.value
    | MDCR_EL2::TPMS::SET.value
    | MDCR_EL2::TTRF::SET.value;

/// The physical size field of `VTCR_EL2`.
pub fn vtcr_ps(parange: u64) -> u64 {
    VTCR_EL2::PS.val(parange).value
}

/// `MDCR_EL2` for guests; the number of event counters (HPMN) stays what reset made it, as 0 may be undefined.
pub fn mdcr_guest(reset: u64) -> u64 {
    MDCR_GUEST | MDCR_EL2::HPMN.mask & reset
}

/// `CPTR_EL2`: SVE, SME, trace and activity monitors trap; floating point does not.
pub const CPTR_GUEST: u64 = CPTR_EL2::TAM::SET.value
    | CPTR_EL2::TTA::SET.value
    | CPTR_EL2::RES1_13::SET.value
    | CPTR_EL2::TSM::SET.value
    | CPTR_EL2::RES1_9::SET.value
    | CPTR_EL2::TZ::SET.value
    | CPTR_EL2::RES1_LOW.val(0xFF).value;
/// The bit of `CPTR_EL2` that traps floating point.
pub const CPTR_TFP: u64 = CPTR_EL2::TFP::SET.value;

/// `CNTHCTL_EL2`: guests read the counter; their physical timer traps.
pub const CNTHCTL: u64 = CNTHCTL_EL2::EL1PCTEN::SET.value;

/// `SCTLR_EL1` at a vCPU's start: RES1 bits, MMU and caches off (Xen's `SCTLR_GUEST_INIT`).
pub const SCTLR_EL1_RESET: u64 = 0x00C5_0078;
/// `SPSR_EL2` at a vCPU's start: EL1h, everything masked.
pub const SPSR_RESET: u64 = 0x3C5;
/// `SPSR.I`: interrupts are masked.
pub const SPSR_I: u64 = 1 << 7;
