//! A ring of fixed-size messages in shared memory, for one producer and one consumer that do not trust each other.
//!
//! Words: producer's index, consumer's index, then a power-of-two number of slots. Both indices run freely and wrap at 2^32.
//!
//! 1. Each side keeps its own index privately and only publishes it: the peer cannot change where one reads or writes.
//! 2. Slot numbers are masked, and the distance of the indices is checked: a peer that lies is [`RingError::Broken`].
//! 3. A message is published by a release store after its words, and read after an acquire load.
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering, fence};

/// Words in a slot.
pub const SLOT_WORDS: usize = 12;
/// Words before the slots.
const INDEX_WORDS: usize = 2;

/// Words that a ring of `slots` takes.
pub const fn words(slots: usize) -> usize {
    INDEX_WORDS + slots * SLOT_WORDS
}

/// What a ring carries.
pub trait Message: Sized {
    /// As words.
    fn encode(&self) -> [u32; SLOT_WORDS];
    /// From words that a peer wrote; `None` if they mean nothing.
    fn decode(words: [u32; SLOT_WORDS]) -> Option<Self>;
}

/// Why a ring cannot be used as asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// No slot is free: the consumer is behind.
    Full,
    /// The peer's index or message makes no sense.
    Broken,
    /// The memory does not hold a ring: too short, or the number of slots is no power of two.
    BadShape,
}

struct Shape<'a> {
    produced: &'a AtomicU32,
    consumed: &'a AtomicU32,
    slots: &'a [AtomicU32],
    count: u32,
}

impl<'a> Shape<'a> {
    fn over(memory: &'a [AtomicU32], slots: usize) -> Result<Self, RingError> {
        let count = u32::try_from(slots).map_err(|_| RingError::BadShape)?;
        match memory {
            [produced, consumed, rest @ ..]
                if slots.is_power_of_two() && rest.len() >= slots * SLOT_WORDS =>
            {
                Ok(Self { produced, consumed, slots: &rest[..slots * SLOT_WORDS], count })
            }
            _ => Err(RingError::BadShape),
        }
    }

    fn slot(&self, index: u32) -> &'a [AtomicU32] {
        let first = (index & (self.count - 1)) as usize * SLOT_WORDS;
        &self.slots[first..first + SLOT_WORDS]
    }
}

/// The writing side.
pub struct Producer<'a, M> {
    ring: Shape<'a>,
    next: u32,
    message: PhantomData<M>,
}

impl<'a, M: Message> Producer<'a, M> {
    /// Over zeroed memory of at least [`words`]`(slots)` words.
    ///
    /// # Errors
    /// [`RingError::BadShape`].
    pub fn new(memory: &'a [AtomicU32], slots: usize) -> Result<Self, RingError> {
        Ok(Self { ring: Shape::over(memory, slots)?, next: 0, message: PhantomData })
    }

    /// Slots that are free now.
    ///
    /// # Errors
    /// [`RingError::Broken`] if the consumer claims more than was produced.
    pub fn room(&self) -> Result<u32, RingError> {
        let used = self.next.wrapping_sub(self.ring.consumed.load(Ordering::Acquire));
        self.ring.count.checked_sub(used).ok_or(RingError::Broken)
    }

    /// Publishes a message.
    ///
    /// # Errors
    /// [`RingError::Full`], [`RingError::Broken`].
    pub fn push(&mut self, message: &M) -> Result<(), RingError> {
        if self.room()? == 0 {
            return Err(RingError::Full);
        }
        for (word, value) in self.ring.slot(self.next).iter().zip(message.encode()) {
            word.store(value, Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
        self.ring.produced.store(self.next, Ordering::Release);
        Ok(())
    }
}

/// The reading side.
pub struct Consumer<'a, M> {
    ring: Shape<'a>,
    next: u32,
    message: PhantomData<M>,
}

impl<'a, M: Message> Consumer<'a, M> {
    /// Over the memory of a [`Producer`] with as many slots.
    ///
    /// # Errors
    /// [`RingError::BadShape`].
    pub fn new(memory: &'a [AtomicU32], slots: usize) -> Result<Self, RingError> {
        Ok(Self { ring: Shape::over(memory, slots)?, next: 0, message: PhantomData })
    }

    /// Takes the next message, if there is one. Its words are copied before they are judged.
    ///
    /// # Errors
    /// [`RingError::Broken`].
    pub fn pop(&mut self) -> Result<Option<M>, RingError> {
        let waiting = self.ring.produced.load(Ordering::Acquire).wrapping_sub(self.next);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.ring.count {
            return Err(RingError::Broken);
        }
        let mut words = [0; SLOT_WORDS];
        for (value, word) in words.iter_mut().zip(self.ring.slot(self.next)) {
            *value = word.load(Ordering::Relaxed);
        }
        // The words are read before the slot is given back.
        fence(Ordering::Acquire);
        self.next = self.next.wrapping_add(1);
        self.ring.consumed.store(self.next, Ordering::Release);
        M::decode(words).map(Some).ok_or(RingError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u32);
    impl Message for Number {
        fn encode(&self) -> [u32; SLOT_WORDS] {
            [self.0; SLOT_WORDS]
        }
        fn decode(words: [u32; SLOT_WORDS]) -> Option<Self> {
            words.iter().all(|word| *word == words[0]).then_some(Self(words[0]))
        }
    }

    fn memory(slots: usize) -> Vec<AtomicU32> {
        (0..words(slots)).map(|_| AtomicU32::new(0)).collect()
    }

    #[test]
    fn messages_arrive_in_order_and_a_full_ring_says_so() {
        let memory = memory(4);
        let mut producer = Producer::<Number>::new(&memory, 4).unwrap();
        let mut consumer = Consumer::<Number>::new(&memory, 4).unwrap();
        for round in 0..10 {
            for number in 0..4 {
                producer.push(&Number(round * 4 + number)).unwrap();
            }
            assert_eq!(producer.push(&Number(99)), Err(RingError::Full));
            for number in 0..4 {
                assert_eq!(consumer.pop(), Ok(Some(Number(round * 4 + number))));
            }
            assert_eq!(consumer.pop(), Ok(None));
        }
    }

    #[test]
    fn a_lying_index_is_found_out() {
        let memory = memory(4);
        let mut producer = Producer::<Number>::new(&memory, 4).unwrap();
        let mut consumer = Consumer::<Number>::new(&memory, 4).unwrap();
        memory[0].store(5, Ordering::Relaxed);
        assert_eq!(consumer.pop(), Err(RingError::Broken));
        memory[1].store(1, Ordering::Relaxed);
        assert_eq!(producer.push(&Number(1)), Err(RingError::Broken));
    }

    #[test]
    fn indices_wrap() {
        let memory = memory(2);
        let start = u32::MAX - 1;
        memory[0].store(start, Ordering::Relaxed);
        memory[1].store(start, Ordering::Relaxed);
        let mut producer = Producer::<Number> { next: start, ..Producer::new(&memory, 2).unwrap() };
        let mut consumer = Consumer::<Number> { next: start, ..Consumer::new(&memory, 2).unwrap() };
        for number in 0..6 {
            producer.push(&Number(number)).unwrap();
            assert_eq!(consumer.pop(), Ok(Some(Number(number))));
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let memory = memory(4);
        assert_eq!(Producer::<Number>::new(&memory, 3).err(), Some(RingError::BadShape));
        assert_eq!(Consumer::<Number>::new(&memory, 8).err(), Some(RingError::BadShape));
        assert_eq!(Consumer::<Number>::new(&memory[..1], 0).err(), Some(RingError::BadShape));
    }

    #[test]
    fn another_thread_sees_whole_messages() {
        let memory = memory(8);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut producer = Producer::<Number>::new(&memory, 8).unwrap();
                for number in 0..10_000 {
                    while producer.push(&Number(number)).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut consumer = Consumer::<Number>::new(&memory, 8).unwrap();
            for number in 0..10_000 {
                loop {
                    if let Some(got) = consumer.pop().unwrap() {
                        assert_eq!(got, Number(number));
                        break;
                    }
                    std::thread::yield_now();
                }
            }
        });
    }
}
