//! How `sender` and `receiver` talk: one granted page with a ring each way; data pages are granted one by one, named in messages,
//! mapped, read, unmapped and acknowledged.
//!
//! Page: word 0 is the magic number, word 1 the version; then the ring down (sender to receiver) and the ring up.
use core::sync::atomic::{AtomicU32, Ordering};

use pv_abi::GrantRef;

use crate::frame::{Frame, WORDS};
use crate::ring::{Consumer, Message, Producer, RingError, SLOT_WORDS, words};

/// Slots of each ring.
pub const SLOTS: usize = 32;
/// Pages that the sender has under way at most: fewer than slots, so that the rings always have room for the last message.
pub const PAGES: usize = 16;
/// `"PVST"`.
const MAGIC: u32 = u32::from_le_bytes(*b"PVST");
const VERSION: u32 = 1;
const DOWN: usize = 16;
const UP: usize = DOWN + words(SLOTS);

const _: () = assert!(UP + words(SLOTS) <= WORDS && PAGES < SLOTS);

/// From the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Down {
    /// The next bytes are the first `length` of the page behind `reference`.
    Page {
        /// Granted to the receiver, for reading.
        reference: GrantRef,
        /// Bytes, 1 to 4096.
        length: u32,
    },
    /// There are no more.
    End {
        /// Bytes in all.
        bytes: u64,
    },
}

/// From the receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Up {
    /// The page was read and is not mapped any more.
    Done {
        /// As in [`Down::Page`].
        reference: GrantRef,
    },
    /// All was received.
    Digest {
        /// SHA-256 of the bytes.
        sha256: [u8; 32],
    },
}

/// The low and the high 32 bits.
fn halves(value: u64) -> [u32; 2] {
    [value & u64::from(u32::MAX), value >> 32].map(|half| u32::try_from(half).unwrap_or(u32::MAX))
}

impl Message for Down {
    fn encode(&self) -> [u32; SLOT_WORDS] {
        let mut words = [0; SLOT_WORDS];
        match self {
            Self::Page { reference, length } => (words[0], words[1], words[2]) = (1, reference.0, *length),
            Self::End { bytes } => {
                let [low, high] = halves(*bytes);
                (words[0], words[1], words[2]) = (2, low, high);
            }
        }
        words
    }

    fn decode(words: [u32; SLOT_WORDS]) -> Option<Self> {
        match words {
            [1, reference, length @ 1..=4096, ..] => {
                Some(Self::Page { reference: GrantRef(reference), length })
            }
            [2, low, high, ..] => Some(Self::End { bytes: u64::from(low) | u64::from(high) << 32 }),
            _ => None,
        }
    }
}

impl Message for Up {
    fn encode(&self) -> [u32; SLOT_WORDS] {
        let mut words = [0; SLOT_WORDS];
        match self {
            Self::Done { reference } => (words[0], words[1]) = (1, reference.0),
            Self::Digest { sha256 } => {
                words[0] = 2;
                for (word, bytes) in words[1..].iter_mut().zip(sha256.chunks_exact(4)) {
                    *word = bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
                }
            }
        }
        words
    }

    fn decode(words: [u32; SLOT_WORDS]) -> Option<Self> {
        match words {
            [1, reference, ..] => Some(Self::Done { reference: GrantRef(reference) }),
            [2, digest @ ..] => {
                let mut sha256 = [0; 32];
                for (bytes, word) in sha256.chunks_exact_mut(4).zip(digest) {
                    bytes.copy_from_slice(&word.to_be_bytes());
                }
                Some(Self::Digest { sha256 })
            }
            _ => None,
        }
    }
}

/// Prepares a zeroed page and returns the sender's ends of its rings. The page is complete when this returns, so grant it then.
///
/// # Errors
/// None that a page can cause.
pub fn sender_ends(page: &Frame) -> Result<(Producer<'_, Down>, Consumer<'_, Up>), RingError> {
    let (down, up) = rings(page);
    page.words()[1].store(VERSION, Ordering::Relaxed);
    page.words()[0].store(MAGIC, Ordering::Release);
    Ok((Producer::new(down, SLOTS)?, Consumer::new(up, SLOTS)?))
}

/// The receiver's ends of the rings of a page that a sender prepared.
///
/// # Errors
/// [`RingError::BadShape`] if the page is not such a page.
pub fn receiver_ends(page: &Frame) -> Result<(Consumer<'_, Down>, Producer<'_, Up>), RingError> {
    let header = [page.words()[0].load(Ordering::Acquire), page.words()[1].load(Ordering::Relaxed)];
    if header != [MAGIC, VERSION] {
        return Err(RingError::BadShape);
    }
    let (down, up) = rings(page);
    Ok((Consumer::new(down, SLOTS)?, Producer::new(up, SLOTS)?))
}

fn rings(page: &Frame) -> (&[AtomicU32], &[AtomicU32]) {
    (&page.words()[DOWN..UP], &page.words()[UP..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_ring() {
        let page = Frame::boxed();
        let (mut down, mut up) = sender_ends(&page).unwrap();
        let (mut from_sender, mut to_sender) = receiver_ends(&page).unwrap();
        let sent = [Down::Page { reference: GrantRef(9), length: 4096 }, Down::End { bytes: 0x12_3456_789a }];
        for message in &sent {
            down.push(message).unwrap();
        }
        assert_eq!(sent.map(Some), [from_sender.pop().unwrap(), from_sender.pop().unwrap()]);
        let digest = Up::Digest { sha256: core::array::from_fn(|index| u8::try_from(index * 7).unwrap()) };
        to_sender.push(&digest).unwrap();
        assert_eq!(up.pop().unwrap(), Some(digest));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Down::decode([1, 9, 4097, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Down::decode([1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Up::decode([3; SLOT_WORDS]), None);
        assert!(receiver_ends(&Frame::zeroed()).is_err());
    }
}
