//! Emulated devices: which addresses of a guest are the distributor and the redistributors.
use hypervisor::addr::Ipa;
use hypervisor::console;
use hypervisor::vgic::{self, AccessSize, DistState, Handling, Serviced, VcpuNumber};
use hypervisor::vpl011;
use pv_abi::{PAGE_SHIFT, layout};
use tock_registers::LocalRegisterCopy;

use super::context::{ArchVcpu, Frame};
use super::gic::{self, HardwareLrs};
use super::percpu::PerCpu;
use super::regs::{self, ESR, HPFAR};
use super::trap::{FSC_LEVEL, FSC_TRANSLATION, Syndrome, skip};
use super::{passthrough, run};

/// What became of an access.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Done: the guest goes on behind it.
    Done,
    /// Not possible now: the guest makes it again.
    Again,
    /// There is no device at the address.
    Nothing,
}

/// What [`load_plain`] looks at in a syndrome, and what it is then: a load of a word without a sign, which no table of the guest's made, from a page that
/// stage 2 does not map.
const ASKED: u64 = field(ESR::ISV)
    | field(ESR::SAS)
    | field(ESR::SSE)
    | field(ESR::S1PTW)
    | field(ESR::WNR)
    | (field(ESR::FSC) & !FSC_LEVEL);
const PLAIN_LOAD: u64 = field(ESR::ISV) | 2 << ESR::SAS.shift | FSC_TRANSLATION;

const fn field(field: tock_registers::fields::Field<u64, ESR::Register>) -> u64 {
    field.mask << field.shift
}

/// Loads a register of the distributor that is plain ([`vgic::DistState::plain_word`]), such as the one that Linux polls. False, and nothing is done, for
/// every other access. Only what the C ABI may clobber is in the frame and goes back to the guest from there, so it must be one of these registers
/// (x0 to x18, x29, x30, or the zero register).
#[inline(always)]
pub fn load_plain(cpu: &'static PerCpu, frame: &mut Frame, syndrome: Syndrome) -> bool {
    let register = syndrome.read(ESR::SRT);
    if syndrome.get() & ASKED != PLAIN_LOAD || (19..29).contains(&register) || gic::is_v2() {
        return false;
    }
    let page = LocalRegisterCopy::<u64, HPFAR::Register>::new(regs::hpfar_el2::read()).read(HPFAR::FIPA);
    let offset = regs::far_el2::read() & 0xFFF;
    if page != layout::GICV3_GICD_BASE >> PAGE_SHIFT || !DistState::is_plain(offset) {
        return false;
    }
    let Some(arch) = cpu.loaded() else { return false };
    let value = arch.domain.state.lock().gic.plain_word(offset);
    cpu.counts.exits.add();
    frame.set(register, value);
    skip(syndrome);
    true
}

/// Serves an access to an emulated device.
pub fn access(
    cpu: &'static PerCpu,
    arch: &'static ArchVcpu,
    frame: &mut Frame,
    syndrome: LocalRegisterCopy<u64, ESR::Register>,
    ipa: Ipa,
) -> Access {
    let Some((device, offset)) = device(ipa.get()) else {
        return uart(cpu, arch, frame, syndrome, ipa.get());
    };
    let size = match syndrome.read(ESR::SAS) {
        0 => AccessSize::Byte,
        1 => AccessSize::Half,
        2 => AccessSize::Word,
        _ => AccessSize::Double,
    };
    let access = vgic::Access { frame: device, offset, size };
    let register = syndrome.read(ESR::SRT);
    if access.is_sgir() && syndrome.is_set(ESR::WNR) {
        send_sgi(cpu, arch, frame.get(register) as u32);
        return Access::Done;
    }
    let mut state = arch.domain.state.lock();
    if syndrome.is_set(ESR::WNR) {
        let value = frame.get(register) & mask(size);
        let done = arch.with_gic(|gic| {
            Some(gic.mmio_write(&mut state.gic, arch.domain.gic, &mut HardwareLrs, access, value))
        });
        passthrough::release(&mut state.gic);
        drop(state);
        let Some(done) = done else { return Access::Done };
        report(arch, device, offset, done.handling);
        run::kick_vcpus(cpu, arch, done.kick);
        after(cpu, arch, done.serviced);
    } else {
        let done = arch
            .with_gic(|gic| Some(gic.mmio_read(&mut state.gic, arch.domain.gic, &mut HardwareLrs, access)));
        passthrough::release(&mut state.gic);
        drop(state);
        let Some(done) = done else { return Access::Done };
        report(arch, device, offset, done.handling);
        frame.set(register, extend(done.value, size, syndrome));
        after(cpu, arch, done.serviced);
    }
    Access::Done
}

/// Serves an access to the emulated UART, if the domain has one and that is where it is. A byte that the machine's console has no room for is
/// written again: the FIFO is always empty for the guest, and it waits as long as that takes.
#[inline(never)]
fn uart(
    cpu: &'static PerCpu,
    arch: &'static ArchVcpu,
    frame: &mut Frame,
    syndrome: LocalRegisterCopy<u64, ESR::Register>,
    ipa: u64,
) -> Access {
    let Some(offset) = ipa.checked_sub(layout::PL011_BASE).filter(|offset| *offset < layout::PL011_SIZE)
    else {
        return Access::Nothing;
    };
    let mut state = arch.domain.state.lock();
    let Some(mut device) = state.uart else { return Access::Nothing };
    let register = syndrome.read(ESR::SRT);
    if syndrome.is_set(ESR::WNR) {
        let sent = device.write(offset, frame.get(register) as u32);
        // Its lock's rank is higher.
        if let (Some(byte), Some(machine)) = (sent, cpu.machine.get())
            && console::write_text(&machine.hw, arch.domain, &[byte]) == 0
        {
            return Access::Again;
        }
    } else {
        let Some(machine) = cpu.machine.get() else { return Access::Nothing };
        frame.set(register, device.read(offset, &machine.keyboard, arch.domain.id).map_or(0, u64::from));
    }
    state.uart = Some(device);
    let kick = state.gic.set_spi_line(vpl011::SPI, device.line(), arch.domain.gic);
    drop(state);
    if !kick.is_empty() {
        // Its own vCPU among them: the scheduler's way looks at the mailbox.
        run::kick_vcpus(cpu, arch, kick);
        cpu.reschedule.set(true);
    }
    Access::Done
}

/// A write to `GICD_SGIR`. It takes no lock: the senders are atomics, and the raise is that of any private interrupt.
#[inline(never)]
fn send_sgi(cpu: &'static PerCpu, arch: &'static ArchVcpu, value: u32) {
    let Some(sender) = VcpuNumber::new(arch.vcpu.number as usize) else { return };
    let sgi = vgic::decode_sgir(value, sender, arch.domain.gic.len());
    for target in sgi.targets.iter().filter_map(|target| arch.domain.gic.get(target.get())) {
        target.note_sender(sgi.intid, sender);
    }
    run::send_sgi(cpu, arch, sgi.intid, sgi.targets);
}

fn device(ipa: u64) -> Option<(vgic::Frame, u64)> {
    let within = |base: u64, size: u64| ipa.checked_sub(base).filter(|offset| *offset < size);
    if gic::is_v2() {
        return within(layout::GICV2_GICD_BASE, layout::GICV2_GICD_SIZE)
            .map(|offset| (vgic::Frame::DistributorV2, offset));
    }
    if let Some(offset) = within(layout::GICV3_GICD_BASE, layout::GICV3_GICD_SIZE) {
        return Some((vgic::Frame::Distributor, offset));
    }
    within(layout::GICV3_GICR_BASE, layout::GICV3_GICR_SIZE)
        .map(|offset| (vgic::Frame::Redistributor, offset))
}

const fn mask(size: AccessSize) -> u64 {
    match size {
        AccessSize::Byte => 0xFF,
        AccessSize::Half => 0xFFFF,
        AccessSize::Word => 0xFFFF_FFFF,
        AccessSize::Double => u64::MAX,
    }
}

/// A loaded value as the instruction puts it into its register.
fn extend(value: u64, size: AccessSize, syndrome: LocalRegisterCopy<u64, ESR::Register>) -> u64 {
    let value = value & mask(size);
    if !syndrome.is_set(ESR::SSE) {
        return value;
    }
    let sign = mask(size) & !(mask(size) >> 1);
    let extended = if value & sign == 0 { value } else { value | !mask(size) };
    if syndrome.is_set(ESR::SF) { extended } else { extended & 0xFFFF_FFFF }
}

fn after(cpu: &'static PerCpu, arch: &'static ArchVcpu, serviced: Option<Serviced>) {
    if let Some(serviced) = serviced {
        run::serviced(cpu, arch, &serviced);
    }
}

#[inline(always)]
fn report(arch: &ArchVcpu, device: vgic::Frame, offset: u64, handling: Handling) {
    match handling {
        Handling::Handled => {}
        Handling::Unhandled => {
            let distributor = matches!(device, vgic::Frame::Distributor | vgic::Frame::DistributorV2);
            if gic::worth_a_line() {
                defmt::info!(
                    "d{=u16}: GIC (distributor: {=bool}) {=u64:#x}: read as zero, write ignored",
                    arch.domain.id.0,
                    distributor,
                    offset
                );
            }
        }
    }
}
