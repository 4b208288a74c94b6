//! Streams its ramdisk to `receiver` page by page and checks the digest that comes back.
//! Command line: `peer=` the receiver's id, `port=` the static event channel, `ref=` where the receiver looks for the ring.
#![no_std]
#![no_main]
extern crate alloc;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use guest_kernel::event::{Channel, Wake};
use guest_kernel::frame::Frame;
use guest_kernel::grant::{Access, Grant};
use guest_kernel::stream::{self, Down, PAGES, Up};
use guest_kernel::{Guest, Rate, hex, println, time};
use pv_abi::{DomId, PAGE_SIZE, Port};
use sha2::{Digest, Sha256};

guest_kernel::main!(main);

/// Longest silence of the receiver.
const PATIENCE: Duration = Duration::from_secs(30);

fn main(guest: &Guest) -> Result<(), &'static str> {
    let number = |key| guest.args().number(key).and_then(|value| u32::try_from(value).ok());
    let peer = number("peer").and_then(|id| u16::try_from(id).ok()).map(DomId).ok_or("peer= is missing")?;
    let port = number("port").map(Port).ok_or("port= is missing")?;
    let channel = Channel::fixed(port).map_err(|_| "no event channels")?;

    let ring = Frame::boxed();
    stream::sender_ends(&ring).map_err(|_| "the ring has a bad shape")?;
    let ring = Grant::new(ring, peer, Access::ReadWrite).map_err(|_| "the ring cannot be granted")?;
    if number("ref").is_some_and(|wanted| wanted != ring.reference().0) {
        return Err("the first free reference is not ref=");
    }
    let began = time::now();
    let sha256 = send_file(guest.ramdisk, peer, &ring, &channel)?;
    let bytes = guest.ramdisk.len();
    println!("sender: sha256 {} {bytes} bytes ({})", hex(&sha256), Rate::of(bytes, began.elapsed()));
    take_back(ring, &channel)
}

/// Sends `file` and returns its digest, which the receiver confirmed.
fn send_file(file: &[u8], peer: DomId, ring: &Grant, channel: &Channel) -> Result<[u8; 32], &'static str> {
    let (mut down, mut up) = stream::sender_ends(ring.frame()).map_err(|_| "the ring has a bad shape")?;
    let mut free: Vec<Box<Frame>> = (0..PAGES).map(|_| Frame::boxed()).collect();
    let mut lent: Vec<Grant> = Vec::with_capacity(PAGES);
    let mut pieces = file.chunks(PAGE_SIZE).peekable();
    let mut end = Some(Down::End { bytes: file.len() as u64 });
    let mut hash = Sha256::new();
    loop {
        while let Some(message) = up.pop().map_err(|_| "the receiver broke the ring")? {
            match message {
                Up::Done { reference } => {
                    let index = lent
                        .iter()
                        .position(|page| page.reference() == reference)
                        .ok_or("no such page is lent")?;
                    free.push(lent.swap_remove(index).end().map_err(|_| "the receiver still uses a page")?);
                }
                Up::Digest { sha256 } => {
                    let own: [u8; 32] = hash.finalize().into();
                    return if lent.is_empty() && own == sha256 {
                        Ok(own)
                    } else {
                        Err("the digests differ")
                    };
                }
            }
        }
        let mut news = false;
        while pieces.peek().is_some()
            && let Some(frame) = free.pop()
        {
            let piece = pieces.next().unwrap_or_default();
            hash.update(piece);
            let length = u32::try_from(frame.write(piece)).unwrap_or(0);
            let page = Grant::new(frame, peer, Access::ReadOnly).map_err(|_| "a page cannot be granted")?;
            down.push(&Down::Page { reference: page.reference(), length })
                .map_err(|_| "the receiver broke the ring")?;
            lent.push(page);
            news = true;
        }
        if pieces.peek().is_none()
            && let Some(message) = end.take()
        {
            down.push(&message).map_err(|_| "the receiver broke the ring")?;
            news = true;
        }
        if news {
            channel.notify().map_err(|_| "the receiver cannot be notified")?;
        }
        if channel.wait_for(PATIENCE) != Ok(Wake::Event) {
            return Err("the receiver is silent");
        }
    }
}

/// Ends the ring's grant, waiting until the receiver has let it go.
fn take_back(mut ring: Grant, channel: &Channel) -> Result<(), &'static str> {
    let began = time::now();
    while began.elapsed() < PATIENCE {
        match ring.end() {
            Ok(_) => return Ok(()),
            Err(still) => ring = still,
        }
        let _ = channel.wait_for(Duration::from_millis(10));
    }
    Err("the receiver keeps the ring")
}
