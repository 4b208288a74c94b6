//! Steps of vCPUs: registering areas, blocking, polling.
use pv_abi::GuestHandle;
use pv_abi::sched::Poll;
use pv_abi::vcpu::RegisterVcpuInfo;
use zerocopy::IntoBytes;

use super::numbers::Numbers;
use super::{LIST, Run, address, code};
use crate::{ARG, number};

impl Run {
    pub(super) fn vcpu_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        match kind {
            0xE8..0xEC => {
                let (number, gfn) = (n.vcpu(), n.gfn());
                let offset = n.one(&[24, 32, 4048, 64, 4049, 4056, 4, 4096, 1024, u32::MAX]);
                // Two vCPUs at one place would be the guest's own confusion.
                let offset = match (number, offset) {
                    (1, 4048) => 4000,
                    (1, offset @ ..4000) => offset + 200,
                    _ => offset,
                };
                // Rarely: once done it stays.
                let queues = self.spec.ram_at(id, gfn).is_some_and(|frame| self.spec.holds_queues(frame));
                if n.below(3) != 0 || queues {
                    return Ok(());
                }
                self.tell(|| {
                    format!("d{id}v{vcpu} register_vcpu_info of {number} at {gfn:#x} + {offset:#x}")
                });
                let wanted = code(&self.spec.register_info(id, number, gfn, offset));
                let arg = RegisterVcpuInfo { gfn, offset, rsvd: 0 };
                self.guest(id, vcpu).write(ARG, arg.as_bytes());
                let args = [10, u64::from(number), ARG, 0, 0];
                let result = self.call(id, vcpu, number::VCPU_OP, args)?;
                if result == wanted {
                    Ok(())
                } else {
                    Err(format!("vcpu_info: {result}, specified {wanted}"))
                }
            }
            0xEC..0xF0 => self.runstate_step(who, n),
            0xF0..0xF6 => {
                self.tell(|| format!("d{id}v{vcpu} block"));
                self.spec.block(id, vcpu);
                match self.call(id, vcpu, number::SCHED_OP, [1, 0, 0, 0, 0])? {
                    0 => Ok(()),
                    result => Err(format!("block: {result}, specified 0")),
                }
            }
            _ => {
                let ports = [n.port(), n.port()];
                let ports = &ports[..usize::from(n.below(3))];
                self.tell(|| format!("d{id}v{vcpu} poll {ports:?}"));
                for (index, port) in (0..).zip(ports) {
                    self.guest(id, vcpu).write(LIST + index * 4, &port.to_le_bytes());
                }
                let wanted = code(&self.spec.poll(id, vcpu, ports));
                let nr_ports = u32::try_from(ports.len()).expect("few");
                let arg = Poll { ports: GuestHandle(LIST), nr_ports, pad: 0, timeout: 0 };
                let (result, _) = self.with(who, number::SCHED_OP, 3, arg)?;
                if result == wanted { Ok(()) } else { Err(format!("poll: {result}, specified {wanted}")) }
            }
        }
    }

    fn runstate_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (number, gfn, offset) = (n.below(2), n.ram(), n.one(&[2048_u64, 3000, 4072]));
        // 48 bytes, away from the words of a `vcpu_info`: what does not fit is in the next page.
        let pages = if offset > 4048 { 2 } else { 1 };
        let frames: Option<Vec<u64>> = (0..pages).map(|page| self.spec.ram_at(id, gfn + page)).collect();
        let queues = |frames: &Vec<u64>| frames.iter().any(|frame| self.spec.holds_queues(*frame));
        if frames.as_ref().is_some_and(queues) {
            return Ok(());
        }
        let address = if frames.is_some() { address(gfn) + offset } else { 0 };
        self.tell(|| format!("d{id}v{vcpu} register_runstate of {number} at {address:#x}"));
        self.spec.register_runstate(id, u32::from(number), frames.unwrap_or_default());
        self.guest(id, vcpu).write(ARG, &address.to_le_bytes());
        match self.call(id, vcpu, number::VCPU_OP, [5, u64::from(number), ARG, 0, 0])? {
            0 => Ok(()),
            result => Err(format!("runstate: {result}, specified 0")),
        }
    }
}
