//! Steps of event channels.
use hypervisor::addr::FrameAddr;
use hypervisor::hardware::Hardware;
use pv_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EventOp, PortArg, Reset, Status,
};
use pv_abi::{DomId, Errno, Port};

use super::numbers::Numbers;
use super::{Run, code};
use crate::spec::SELF;

impl Run {
    pub(super) fn event_step(
        &mut self,
        who: (u16, u32),
        kind: u8,
        n: &mut Numbers<'_>,
    ) -> Result<(), String> {
        let (id, vcpu) = who;
        match kind {
            0..0x10 => {
                let (dom, remote) = (n.one(&[SELF, SELF, SELF, SELF, id, 1, 2, 3]), n.dom());
                self.tell(|| format!("d{id}v{vcpu} alloc_unbound in {dom} for {remote}"));
                let wanted = self.spec.alloc_unbound(id, dom, remote);
                let arg = AllocUnbound { dom: DomId(dom), remote_dom: DomId(remote), port: Port(0) };
                let out = self.event(who, EventOp::AllocUnbound, arg, code(&wanted))?;
                port_is(out.port, wanted)
            }
            0x10..0x24 => {
                let (remote, remote_port) = (n.dom(), n.port());
                self.tell(|| format!("d{id}v{vcpu} bind_interdomain to {remote}:{remote_port}"));
                let wanted = self.spec.bind_interdomain(id, remote, remote_port);
                let remote_port = Port(remote_port);
                let arg =
                    BindInterdomain { remote_dom: DomId(remote), pad: 0, remote_port, local_port: Port(0) };
                let out = self.event(who, EventOp::BindInterdomain, arg, code(&wanted))?;
                port_is(out.local_port, wanted)
            }
            0x24..0x28 => {
                let (virq, to) = (u32::from(n.below(26)), n.vcpu());
                self.tell(|| format!("d{id}v{vcpu} bind_virq {virq} to vCPU {to}"));
                let wanted = self.spec.bind_virq(id, virq, to);
                let arg = BindVirq { virq, vcpu: to, port: Port(0) };
                let out = self.event(who, EventOp::BindVirq, arg, code(&wanted))?;
                port_is(out.port, wanted)
            }
            0x28..0x2C => {
                let to = n.vcpu();
                self.tell(|| format!("d{id}v{vcpu} bind_ipi to vCPU {to}"));
                let wanted = self.spec.bind_ipi(id, to);
                let out =
                    self.event(who, EventOp::BindIpi, BindIpi { vcpu: to, port: Port(0) }, code(&wanted))?;
                port_is(out.port, wanted)
            }
            0x2C..0x38 => {
                let port = n.port();
                self.tell(|| format!("d{id}v{vcpu} close {port}"));
                let wanted = self.spec.close(id, port);
                self.event(who, EventOp::Close, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
            0x38..0x48 => {
                let port = n.port();
                self.tell(|| format!("d{id}v{vcpu} send {port}"));
                let wanted = self.spec.send(id, port);
                self.event(who, EventOp::Send, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
            0x48..0x4C => {
                let port = n.port();
                self.tell(|| format!("d{id}v{vcpu} unmask {port}"));
                let wanted = self.spec.unmask(id, port);
                self.event(who, EventOp::Unmask, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
            0x4C..0x52 => {
                let (port, to) = (n.port(), n.vcpu());
                self.tell(|| format!("d{id}v{vcpu} bind_vcpu {port} to vCPU {to}"));
                let wanted = self.spec.bind_vcpu(id, port, to);
                let arg = BindVcpu { port: Port(port), vcpu: to };
                self.event(who, EventOp::BindVcpu, arg, code(&wanted)).map(drop)
            }
            0x52..0x56 => self.status_step(who, n),
            0x56 => {
                let dom = n.one(&[SELF, id, 1, 2, 3]);
                self.tell(|| format!("d{id}v{vcpu} reset {dom}"));
                let wanted = self.spec.reset(id, dom);
                self.event(who, EventOp::Reset, Reset { dom: DomId(dom) }, code(&wanted)).map(drop)
            }
            0x57..0x5B => {
                let (port, masks) = (u32::from(n.below(12)), n.next() < 0xC0);
                self.tell(|| format!("d{id} {} {port}", if masks { "masks" } else { "clears the mask of" }));
                let masked = &mut self.spec.of_mut(id).masked;
                if masks {
                    masked.insert(port)
                } else {
                    masked.remove(&port)
                };
                // Without a call nobody is told: who clears a mask looks at the pending bit himself.
                let offset = crate::MASK;
                let word = self.spec.of(id).masked.iter().filter(|port| **port < 64);
                let word = word.fold(0_u64, |word, port| word | 1 << port);
                self.guest(id, vcpu).set_info(offset, &word.to_le_bytes());
                Ok(())
            }
            _ if self.spec.of(id).fifo.is_some() => self.take_queued(id, vcpu, 64),
            _ => {
                self.tell(|| format!("d{id}v{vcpu} takes its upcall"));
                self.take(id, vcpu);
                Ok(())
            }
        }
    }

    fn status_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (dom, port) = (n.one(&[SELF, SELF, id, 1, 2, 3]), n.port());
        self.tell(|| format!("d{id}v{vcpu} status of {dom}:{port}"));
        let wanted = self.spec.status(id, dom, port);
        let arg = Status { dom: DomId(dom), port: Port(port), peer: 0x5A5A_5A5A, ..Status::default() };
        let out = self.event(who, EventOp::Status, arg, code(&wanted))?;
        let Ok(wanted) = wanted else { return Ok(()) };
        let agrees = out.status == wanted.status
            && out.vcpu == wanted.vcpu
            && wanted.dom.is_none_or(|dom| out.peer & 0xFFFF == u32::from(dom))
            && wanted.virq.is_none_or(|virq| out.peer == virq)
            && wanted.port.is_none_or(|port| out.peer_port.0 == port);
        if agrees { Ok(()) } else { Err(format!("status: {out:x?}, specified {wanted:x?}")) }
    }

    /// A guest's handler: upcall byte, selector, then the unmasked ports of those words.
    fn take(&mut self, id: u16, vcpu: u32) {
        let guest = self.guest(id, vcpu);
        if let Some(at) = self.world.domain(id).vcpu(vcpu).and_then(hypervisor::vcpu::Vcpu::info_at) {
            let (selector, _) = self.words(at);
            let hw = &self.world.machine.hw;
            let byte = |offset: usize| FrameAddr::new(at.frame(), at.offset() + offset).expect("in the page");
            hw.write(byte(0), &[0]);
            hw.write(byte(crate::SELECTOR), &[0; 8]);
            for word in (0..64).filter(|word| selector >> word & 1 == 1) {
                let left =
                    guest.info_word(crate::PENDING + word * 8) & guest.info_word(crate::MASK + word * 8);
                guest.set_info(crate::PENDING + word * 8, &left.to_le_bytes());
            }
            self.spec.take(id, vcpu);
        }
    }
}

fn port_is(found: Port, wanted: Result<u32, Errno>) -> Result<(), String> {
    match wanted {
        Ok(wanted) if wanted != found.0 => Err(format!("port {}, specified {wanted}", found.0)),
        _ => Ok(()),
    }
}
