//! The Raspberry Pi's mailbox to its firmware (`brcm,bcm2835-mbox`), property channel: one question at a time, polled.
//! Facts from the firmware's documentation ("Mailbox property interface").
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, WriteOnly};
use tock_registers::{register_bitfields, register_structs};

/// What the device tree calls it.
pub const COMPATIBLE: &[&str] = &["brcm,bcm2835-mbox"];

register_bitfields! { u32,
    /// Status of either direction.
    STATUS [
        /// Nothing can be written.
        FULL OFFSET(31) NUMBITS(1) [],
        /// Nothing is there to read.
        EMPTY OFFSET(30) NUMBITS(1) []
    ]
}

register_structs! {
    #[allow(missing_docs, reason = "fields have the hardware's names")]
    /// Mailbox 0 is read, mailbox 1 written.
    pub Mailbox {
        (0x00 => read: ReadOnly<u32>),
        (0x04 => _others),
        (0x18 => read_status: ReadOnly<u32, STATUS::Register>),
        (0x1c => _config),
        (0x20 => write: WriteOnly<u32>),
        (0x24 => _others1),
        (0x38 => write_status: ReadOnly<u32, STATUS::Register>),
        (0x3c => @END),
    }
}

/// A question for the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// The board's revision code.
    Revision,
    /// Hz of the PL011's clock.
    UartClock,
    /// Hz of the core, from which the mini-UART's rate comes.
    CoreClock,
}

/// A message as the firmware reads and answers it: one tag with room for two words.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Message([u32; 16]);

const PROPERTY_CHANNEL: u32 = 8;
const ANSWERED: u32 = 0x8000_0000;
/// How the firmware's processor sees memory without its own caches in between; it reaches the first GiB.
const UNCACHED_ALIAS: u32 = 0xc000_0000;
const REACH: u64 = 1 << 30;
/// Register reads until it is given up: the firmware answers within a millisecond, and a read takes 100 ns or more.
const PATIENCE: u32 = 1_000_000;

impl Message {
    /// An empty message.
    pub const EMPTY: Self = Self([0; 16]);

    /// A question.
    pub const fn new(question: Question) -> Self {
        let (tag, argument) = match question {
            Question::Revision => (0x0001_0002, 0),
            Question::UartClock => (0x0003_0002, 2),
            Question::CoreClock => (0x0003_0002, 4),
        };
        Self([64, 0, tag, 8, 0, argument, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// What was answered; none when the firmware did not know.
    pub fn answer(&self) -> Option<u32> {
        let [_, code, tag, _, answered, first, second, ..] = self.0;
        if code != ANSWERED || answered & ANSWERED == 0 {
            return None;
        }
        // A clock's rate follows the clock's number.
        Some(if tag == 0x0003_0002 { second } else { first })
    }
}

impl Mailbox {
    /// Sends the message at a physical address and waits until it is answered. The message must have been cleaned to memory; it must be
    /// invalidated in the caches before it is read.
    #[must_use]
    pub fn ask(&self, message: u64) -> bool {
        let Some(address) =
            u32::try_from(message).ok().filter(|_| message < REACH && message.is_multiple_of(16))
        else {
            return false;
        };
        let letter = address | UNCACHED_ALIAS | PROPERTY_CHANNEL;
        let mut patience = 0..PATIENCE;
        if patience.all(|_| self.write_status.is_set(STATUS::FULL)) {
            return false;
        }
        self.write.set(letter);
        for _ in patience {
            if !self.read_status.is_set(STATUS::EMPTY) && self.read.get() == letter {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_not_answered_says_nothing() {
        assert_eq!(Message::new(Question::Revision).answer(), None);
        assert_eq!(Message::EMPTY.answer(), None);
    }

    #[test]
    fn answers_stand_where_the_property_interface_puts_them() {
        let mut message = Message::new(Question::Revision);
        message.0[1] = 0x8000_0000;
        message.0[4] = 0x8000_0004;
        message.0[5] = 0x00b0_3115;
        assert_eq!(message.answer(), Some(0x00b0_3115));
        let mut message = Message::new(Question::UartClock);
        message.0[1] = 0x8000_0000;
        message.0[4] = 0x8000_0008;
        message.0[6] = 48_000_000;
        assert_eq!(message.answer(), Some(48_000_000));
    }
}
