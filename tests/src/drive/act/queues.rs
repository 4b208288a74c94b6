//! Steps of event channels by FIFO queues: the calls, and a guest that takes its events as the interface tells it to, or does not.
use hypervisor::addr::{FrameAddr, Mfn};
use hypervisor::hardware::Hardware;
use hypervisor::vcpu::Vcpu;
use pv_abi::Port;
use pv_abi::event::{EventOp, ExpandArray, InitControl, PortArg, SetPriority};

use super::numbers::Numbers;
use super::{Run, address, code};
use crate::spec::fifo::{BUSY, LINK, LINKED, MASKED, PENDING};
use crate::spec::{Port as Kind, Vcpu as Wanted};

/// Pages that are used for little else.
pub(in crate::drive) const POOL: [u64; 6] = [0x4_0408, 0x4_0409, 0x4_040A, 0x4_040B, 0x4_040C, 0x4_040D];
/// Where the first port of the first queue is, in a control block.
const HEADS: u16 = 8;

/// What a vCPU remembers of its queues.
#[derive(Default)]
pub(in crate::drive) struct Reader {
    /// Queues that have something.
    ready: u32,
    /// The next port of each, if it is known.
    heads: [u32; 16],
}

impl Run {
    pub(super) fn queue_step(
        &mut self,
        who: (u16, u32),
        kind: u8,
        n: &mut Numbers<'_>,
    ) -> Result<(), String> {
        let (id, vcpu) = who;
        let fifo = self.spec.of(id).fifo.as_ref();
        // What it lacks for events to come it gets soon; afterwards, rarely.
        let (blocks, pages, traffic) = match fifo {
            None => (0x18, 0x1C, false),
            Some(fifo) if fifo.array.is_empty() => (0x20, 0x80, false),
            Some(fifo) if fifo.controls.len() < 2 => (0x20, 0x24, true),
            Some(_) => (0x04, 0x08, true),
        };
        match kind {
            _ if kind < blocks => self.init_control(who, n),
            _ if kind < pages => self.expand_array(who, n),
            0xF0.. => {
                let (port, priority) = (n.port(), n.one(&[0, 7, 7, 7, 8, 15, 15, 16, 3, u32::MAX]));
                self.tell(|| format!("d{id}v{vcpu} priority of {port}: {priority}"));
                let wanted = self.spec.set_priority(id, port, priority);
                let arg = SetPriority { port: Port(port), priority };
                self.event(who, EventOp::SetPriority, arg, code(&wanted)).map(drop)
            }
            0x24..0x5C if traffic => {
                let most = n.one(&[1, 1, 2, 3, 64]);
                self.take_queued(id, vcpu, most)
            }
            0x5C..0x80 if traffic => self.mask(who, n.port(), n.next() < 0x40),
            0x80..0x82 if traffic => {
                self.scribble(id, n);
                Ok(())
            }
            _ => {
                let sends = |(kind, _): &(Kind, u32)| matches!(kind, Kind::Channel { .. } | Kind::Ipi);
                let mut ports = self.spec.of(id).ports.iter().filter(|(_, port)| sends(port));
                let count = ports.clone().count();
                if count < 2 {
                    return self.event_step(who, 0x28, n);
                }
                let Some((&port, _)) = ports.nth(usize::from(n.next()) % count) else { return Ok(()) };
                if kind < 0xA0 {
                    return self.race(who, port, n);
                }
                self.tell(|| format!("d{id}v{vcpu} send {port}"));
                let wanted = self.spec.send(id, port);
                self.event(who, EventOp::Send, PortArg { port: Port(port) }, code(&wanted)).map(drop)
            }
        }?;
        self.promised(id)
    }

    /// What a guest's words say is what it was promised.
    pub(in crate::drive) fn promised(&self, id: u16) -> Result<(), String> {
        let takes = |vcpu: &u32| self.readers.get(&(id, *vcpu)).is_some_and(|reader| reader.ready != 0);
        let asleep: Vec<u32> = (0..2).filter(|vcpu| !takes(vcpu)).collect();
        self.spec.check_queues(id, &asleep)
    }

    /// A page for queues. Mostly the guest clears it before. None where a `vcpu_info` or run-state area is: whoever has both in one place confuses
    /// himself, and nobody else.
    fn page_for_queues(&mut self, id: u16, n: &mut Numbers<'_>) -> Option<u64> {
        let held = |gfn: &u64| self.spec.own(id, *gfn).is_none_or(|frame| self.spec.holds_queues(frame));
        let gfn = match n.next() {
            byte @ 0..0xD8 => {
                let pages = POOL.iter().cycle().skip(usize::from(byte)).take(POOL.len());
                pages.copied().find(|gfn| !held(gfn)).unwrap_or(POOL[0])
            }
            byte @ 0xD8..0xE8 => POOL[usize::from(byte) % POOL.len()],
            _ => n.gfn(),
        };
        let clears = n.next() < 0xE8;
        let Some(frame) = self.spec.ram_at(id, gfn) else { return Some(gfn) };
        if clears || !self.spec.bytes.contains_key(&frame) {
            self.fill(id, gfn, &[0; 4096]);
        }
        let has_area = self.spec.of(id).vcpus.iter().flat_map(Wanted::areas).any(|area| area == frame);
        (self.spec.bytes.contains_key(&frame) && !has_area).then_some(gfn)
    }

    fn init_control(&mut self, (id, vcpu): (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (of, offset) = (n.vcpu(), n.one(&[0, 8, 80, 4024, 2048, 1024, 512, 96, 4, 4032, 4096, u32::MAX]));
        let Some(gfn) = self.page_for_queues(id, n) else { return Ok(()) };
        self.tell(|| format!("d{id}v{vcpu} init_control of vCPU {of} at {gfn:#x} + {offset:#x}"));
        let wanted = self.spec.init_control(id, of, gfn, offset);
        let arg = InitControl { control_gfn: gfn, offset, vcpu: of, link_bits: 0, pad: [0; 7] };
        let out = self.event((id, vcpu), EventOp::InitControl, arg, code(&wanted))?;
        if wanted.is_ok() {
            self.readers.insert((id, of), Reader::default());
            if out.link_bits != 17 {
                return Err(format!("init_control: links of {} bits, specified 17", out.link_bits));
            }
        }
        Ok(())
    }

    fn expand_array(&mut self, (id, vcpu): (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        // One page has all ports that there can be here.
        let more = n.next() >= 0xC0;
        let has_one = self.spec.of(id).fifo.as_ref().is_some_and(|fifo| !fifo.array.is_empty());
        let page = if has_one && !more { None } else { self.page_for_queues(id, n) };
        let Some(gfn) = page else { return Ok(()) };
        self.tell(|| format!("d{id}v{vcpu} expand_array by {gfn:#x}"));
        let wanted = self.spec.expand_array(id, gfn);
        let arg = ExpandArray { array_gfn: gfn };
        self.event((id, vcpu), EventOp::ExpandArray, arg, code(&wanted)).map(drop)
    }

    /// A guest changes one of its words, by an exclusive; what was there.
    fn guest_changes(&mut self, at: (u64, u16), change: impl Fn(u32) -> u32) -> u32 {
        let hw = &self.world.machine.hw;
        let place = Mfn::new(at.0).and_then(|mfn| FrameAddr::new(mfn, usize::from(at.1))).expect("a place");
        let found = hw.load_u32(place);
        hw.compare_exchange_u32(place, found, change(found)).expect("nobody else is there");
        self.spec.change_half(at, change);
        found
    }

    /// A guest's handler: the upcall byte, then so many ports out of the queues of the vCPU, the most urgent first. What is left it takes up the next time.
    pub(super) fn take_queued(&mut self, id: u16, vcpu: u32, most: u32) -> Result<(), String> {
        self.tell(|| format!("d{id}v{vcpu} takes {most} from its queues"));
        if let Some(at) = self.world.domain(id).vcpu(vcpu).and_then(Vcpu::info_at) {
            self.world.machine.hw.write(at, &[0]);
            self.spec.of_mut(id).vcpus[vcpu as usize].upcall = false;
        }
        let fifo = self.spec.of(id).fifo.as_ref();
        let Some(control) = fifo.and_then(|fifo| fifo.controls.get(&vcpu)).copied() else { return Ok(()) };
        let mut reader = self.readers.remove(&(id, vcpu)).unwrap_or_default();
        reader.ready |= self.guest_changes(control, |_| 0);
        for _ in 0..most {
            // A hostile word may have set more.
            let queue = (reader.ready & 0xFFFF).trailing_zeros();
            let Some(head) = reader.heads.get_mut(queue as usize) else {
                reader.ready = 0;
                break;
            };
            let block = (control.0, control.1 + HEADS + 4 * u16::try_from(queue).expect("small"));
            let port = if *head == 0 { self.spec.half(block) & LINK } else { *head };
            let Some(word) = self.spec.word_of(id, port).filter(|_| port != 0) else {
                // Somebody wrote there what is no port.
                (*head, reader.ready) = (0, reader.ready & !(1 << queue));
                self.spec.guest_took(id, vcpu, None)?;
                continue;
            };
            let before = self.guest_changes(word, |word| word & !(LINKED | LINK));
            *head = before & LINK;
            if *head == 0 {
                reader.ready &= !(1 << queue);
            }
            let handled = before & (PENDING | MASKED) == PENDING;
            if handled {
                self.guest_changes(word, |word| word & !PENDING);
            }
            let promised = self.spec.guest_took(id, vcpu, Some((port, handled)))?;
            self.taken += u64::from(promised && handled);
            reader.ready |= self.guest_changes(control, |_| 0);
        }
        if reader.ready == 0 {
            self.spec.guest_took(id, vcpu, None)?;
        }
        self.readers.insert((id, vcpu), reader);
        Ok(())
    }

    /// A guest masks a port, or unmasks it: by itself while it is not pending, else by the call.
    fn mask(&mut self, who: (u16, u32), port: u32, masks: bool) -> Result<(), String> {
        let (id, vcpu) = who;
        let Some(at) = self.spec.word_of(id, port) else { return Ok(()) };
        self.tell(|| format!("d{id}v{vcpu} {} {port} in its array", if masks { "masks" } else { "unmasks" }));
        if masks {
            self.guest_changes(at, |word| word | MASKED);
        } else if self.spec.half(at) & PENDING == 0 {
            self.guest_changes(at, |word| word & !(MASKED | BUSY));
        } else {
            let wanted = self.spec.unmask(id, port);
            return self.event(who, EventOp::Unmask, PortArg { port: Port(port) }, code(&wanted)).map(drop);
        }
        self.spec.guest_masks(id, port, masks);
        Ok(())
    }

    /// A send, while the guest that gets it masks and unmasks the event before that one, as often as it may or more.
    fn race(&mut self, who: (u16, u32), port: u32, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let times = n.one(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 4, 40]);
        let to = match self.spec.of(id).ports.get(&port) {
            Some((Kind::Channel { dom, port }, _)) => (*dom, *port),
            _ => (id, port),
        };
        self.tell(|| format!("d{id}v{vcpu} send {port}, the word before it is changed {times} times"));
        let before = self.spec.behind(to.0, to.1);
        let place = before.and_then(|(_, at)| FrameAddr::new(Mfn::new(at.0)?, usize::from(at.1)));
        self.world.machine.hw.flip(place.map(|place| (place, MASKED, times)));
        self.spec.hopeless = times == 40;
        let wanted = self.spec.send(id, port);
        self.spec.hopeless = false;
        let arg = PortArg { port: Port(port) };
        self.event(who, EventOp::Send, arg, code(&wanted))?;
        let left = self.world.machine.hw.flip(None);
        if let Some((tail, at)) = before {
            let changes = times - left;
            if changes % 2 == 1 {
                self.spec.change_half(at, |word| word ^ MASKED);
            }
            // What is pending only the call unmasks.
            if changes > 1 && self.spec.half(at) & PENDING != 0 {
                self.spec.misses(to.0);
            } else if changes % 2 == 1 {
                let masks = self.spec.half(at) & MASKED != 0;
                self.spec.guest_masks(to.0, tail, masks);
            }
        }
        self.promised(to.0)
    }

    /// A guest writes anything into its words.
    fn scribble(&mut self, id: u16, n: &mut Numbers<'_>) {
        let (port, flags, link, which) = (n.port(), n.next(), n.port(), n.below(4));
        let value = u32::from(flags) << 24 | link & LINK;
        let Some(fifo) = &self.spec.of(id).fifo else { return };
        let block = fifo.controls.get(&u32::from(flags & 1)).copied();
        let at = match (which, block) {
            (0, Some(block)) => Some(block),
            (1, Some((frame, offset))) => Some((frame, offset + HEADS + 4 * u16::from(flags >> 4))),
            _ => fifo.word_at(port),
        };
        let Some(at) = at else { return };
        self.tell(|| format!("d{id} scribbles {value:#x} at {:#x} + {:#x}", address(at.0), at.1));
        self.guest_changes(at, |_| value);
        self.spec.overwritten(at.0);
    }
}
