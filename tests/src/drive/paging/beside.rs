//! What a guest does about its page tables beside calls, and what stage 2 makes of their roles.
use hypervisor::addr::{Ipa, Mfn};
use hypervisor::fake::{GuestAccess, GuestFault};
use hypervisor::frame::Role as Found;
use hypervisor::hardware::{CpuId, Hardware};
use hypervisor::pagetable::control::{Controls, Register};
use hypervisor::pagetable::{Half, start};
use hypervisor::stage2::{Entry as TableEntry, Kind, walk};
use hypervisor::vcpu::Run as RunState;

use super::super::Run;
use super::super::act::{Numbers, address};
use super::{INDICES, PIN};
use crate::spec::paging::entry::permits;
use crate::spec::paging::{Access, Role, Root, SHOWN};

impl Run {
    /// The guest uses an address: by its own tables, stage 2, and what the TLB remembers of both.
    pub(super) fn guest_accesses(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let va = self.address_by(id, vcpu, n);
        let (how, access) = n.one(&[
            (Access::Read, GuestAccess::Read),
            (Access::Write, GuestAccess::Write),
            (Access::Execute, GuestAccess::Execute),
            (Access::ExecuteUser, GuestAccess::ExecuteUser),
        ]);
        let paging = self.spec.of(id).paging.as_ref().expect("it has them");
        let Some(root) = paging.roots[vcpu as usize][usize::from(va >> 48 != 0)] else { return Ok(()) };
        let executes = matches!(how, Access::Execute | Access::ExecuteUser);
        if executes && paging.fixed.is_none() {
            // It is trusted with itself.
            return Ok(());
        }
        self.tell(|| format!("d{id}v{vcpu} {how:?} at {va:#x}"));
        let domain = self.world.domain(id);
        let base = u64::from(root.asid) << 48 | address(root.gfn);
        let hw = &self.world.machine.hw;
        hw.run_on(CpuId(vcpu as u8));
        let found = hw.guest_access(domain.vmid, domain.stage2_root, base, va, access);
        let found = found.map(|at| at.frame().get()).map_err(|fault| match fault {
            GuestFault::Stage1 => 1_u8,
            GuestFault::Stage2 => 2,
        });
        let wanted = self.spec.access(id, vcpu, va, how);
        let table = &self.world.machine.frames.table;
        let shown = |frame: u64| {
            Mfn::new(frame).and_then(|mfn| table.state(mfn)).is_some_and(|it| it.role == Found::Shared)
        };
        let found = found.map(|frame| if shown(frame) { SHOWN } else { frame });
        if found == wanted {
            Ok(())
        } else {
            Err(format!("{how:?} at {va:#x}: {found:x?}, specified {wanted:x?}"))
        }
    }

    /// The guest writes a control of its translation.
    pub(super) fn write_control(&mut self, id: u16, n: &mut Numbers<'_>) -> Result<(), String> {
        let which = usize::from(n.below(3));
        let fixed = self.fixed(id);
        let value =
            fixed.unwrap_or_default()[which] ^ (1 << n.below(64)) ^ (u64::from(n.below(2)) << n.below(64));
        let wanted = fixed.is_none_or(|fixed| permits(fixed, which, value));
        let register = [Register::Sctlr, Register::Tcr, Register::Mair][which];
        let domain = self.world.domain(id);
        if domain.permits(register, value) != wanted
            || domain.permits(Register::Base, value) != fixed.is_none()
        {
            return Err(format!("{register:?} may be {value:#x}: specified {wanted}"));
        }
        Ok(())
    }

    /// vCPU 1 goes off, or comes on.
    pub(super) fn switch(&mut self, id: u16, n: &mut Numbers<'_>) -> Result<(), String> {
        let domain = self.world.domain(id);
        let vcpu = domain.vcpu(1).expect("it exists");
        if self.spec.of(id).paging.as_ref().is_some_and(|paging| paging.on[1]) {
            if n.below(4) == 0 || self.spec.of(id).vcpus[1].blocked {
                return Ok(());
            }
            self.tell(|| format!("d{id}v1 goes off"));
            let hw = &self.world.machine.hw;
            hw.run_on(CpuId(1));
            hw.leave_roots();
            self.world.domain(id).vcpu(1).expect("it exists").run.set(RunState::Offline);
            self.spec.switch_off(id, 1);
            return Ok(());
        }
        // Until the trust has ended, one vCPU on keeps it from ending.
        if self.fixed(id).is_none() && n.below(8) != 0 {
            return Ok(());
        }
        let found = start(&self.world.machine, domain, &mut domain.state.lock(), vcpu);
        vcpu.run.set(RunState::Running);
        if let Some(bases) = found {
            let hw = &self.world.machine.hw;
            hw.run_on(CpuId(1));
            hw.set_base(Half::Lower, bases.lower);
            hw.set_base(Half::Upper, bases.upper);
        }
        self.tell(|| format!("d{id}v1 comes on"));
        let wanted = self.spec.switch_on(id, 1);
        let base = |root: Root| u64::from(root.asid) << 48 | address(root.gfn);
        let wanted = wanted.map(|[lower, upper]| (base(lower), base(upper), self.fixed(id)));
        let found = found.map(|bases| {
            let Controls { sctlr, tcr, mair } = bases.controls;
            (bases.lower, bases.upper, Some([sctlr, tcr, mair]))
        });
        if found == wanted {
            Ok(())
        } else {
            Err(format!("it starts with {found:x?}, specified {wanted:x?}"))
        }
    }

    /// An entry is written past the caches, and the page pinned at once (XSA-402).
    pub(super) fn by_an_alias(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (level, index) = (n.below(4), n.one(&INDICES));
        let gfn = self.page(id, n, |role| role.is_none());
        let value = self.new_entry(id, level, n);
        if !self.fill(id, gfn, &[0; 4096]) {
            return Ok(());
        }
        self.tell(|| {
            format!("d{id}v{vcpu} {value:#x} past the caches to {gfn:#x} + {index}, pin at {level}")
        });
        let frame = self.spec.ram_at(id, gfn).ok_or("no data")?;
        if !self.spec.write(id, gfn, 8 * index, value) {
            return Ok(());
        }
        let domain = self.world.domain(id);
        let at = Ipa::new(address(gfn) + 8 * index as u64).ok_or("no address")?;
        let hw = &self.world.machine.hw;
        hw.guest_write_uncached(domain.vmid, domain.stage2_root, at, &value.to_le_bytes())
            .map_err(|fault| format!("{fault:?}"))?;
        let cmd = PIN[usize::from(level)];
        let changed = self.change(who, cmd, gfn, false, |spec, seen| spec.pin_table(id, gfn, level, seen));
        // Caches forget by themselves, some time or other.
        if self.spec.role(id, frame).is_none() {
            self.world.machine.hw.clean_to_memory(Mfn::new(frame).ok_or("no frame")?);
        }
        changed
    }

    /// Stage 2 lets a guest do with its RAM what the roles say; the trust, how far a change is, and what tables hold agree.
    pub(in crate::drive) fn roles(&self, id: u16) -> Result<(), String> {
        let Some(paging) = &self.spec.of(id).paging else { return Ok(()) };
        let domain = self.world.domain(id);
        let installed = domain.paging().is_some_and(hypervisor::pagetable::Shared::is_installed);
        if installed != paging.fixed.is_some() {
            return Err(format!("installed: {installed}"));
        }
        for (frame, role) in paging.roles.iter() {
            self.holds(*frame)?;
            if let Role::Between { held, .. } = role {
                let progress =
                    Mfn::new(*frame).map(|mfn| self.world.machine.frames.table.progress(mfn) & 0xFFFF);
                if progress != u32::try_from(*held).ok() {
                    return Err(format!("change of {frame:#x}: at {progress:?}, specified {held}"));
                }
            }
        }
        let mut wrong = Ok(());
        let _state = domain.state.lock();
        walk(&self.world.machine.hw, domain.stage2_root, |entry| {
            let TableEntry::Leaf { gfn, order, mapping, .. } = entry else { return true };
            for frame in mapping.mfn.get()..mapping.mfn.get() + (1 << order) {
                let agrees = match (mapping.kind, paging.roles.get(&frame)) {
                    // While it is trusted it may execute what it likes.
                    (Kind::Ram, None) => !installed,
                    (Kind::Data, None)
                    | (Kind::Table, Some(Role::Table(_) | Role::Between { .. }))
                    | (Kind::Text, Some(Role::KernelText | Role::UserText))
                    | (Kind::Shared | Kind::GrantWritable | Kind::GrantReadOnly | Kind::Device, _) => true,
                    (Kind::Ram | Kind::Data | Kind::Table | Kind::Text, _) => false,
                };
                if !agrees {
                    let role = paging.roles.get(&frame);
                    wrong = Err(format!(
                        "guest frame {:#x} is {:?}, specified {role:?}",
                        gfn.get(),
                        mapping.kind
                    ));
                }
            }
            wrong.is_ok()
        });
        wrong
    }
}
