//! Receives what `sender` streams, page by page, and sends the digest back.
//! Command line: `peer=` the sender's id, `port=` the static event channel, `ref=` the grant of the ring.
#![no_std]
#![no_main]
use core::time::Duration;

use guest_kernel::event::{Channel, Wake};
use guest_kernel::grant::{Access, GrantError, MappedGrant};
use guest_kernel::stream::{self, Down, Up};
use guest_kernel::{Guest, Rate, hex, println, time};
use pv_abi::grant::GrantStatus;
use pv_abi::{DomId, GrantRef, PAGE_SIZE, Port};
use sha2::{Digest, Sha256};

guest_kernel::main!(main);

/// Longest silence of the sender.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks for the sender.
const RETRY: Duration = Duration::from_millis(10);

fn main(guest: &Guest) -> Result<(), &'static str> {
    let number = |key| guest.args().number(key).and_then(|value| u32::try_from(value).ok());
    let peer = number("peer").and_then(|id| u16::try_from(id).ok()).map(DomId).ok_or("peer= is missing")?;
    let port = number("port").map(Port).ok_or("port= is missing")?;
    let reference = number("ref").map(GrantRef).ok_or("ref= is missing")?;
    let channel = Channel::fixed(port).map_err(|_| "no event channels")?;

    let ring = find_ring(peer, reference, &channel)?;
    let began = time::now();
    let (sha256, bytes) = receive_file(peer, &ring, &channel)?;
    println!("receiver: sha256 {} {bytes} bytes ({})", hex(&sha256), Rate::of(bytes, began.elapsed()));
    ring.unmap().map_err(|_| "the ring cannot be unmapped")?;
    channel.notify().map_err(|_| "the sender cannot be notified")
}

/// Maps the ring as soon as the sender has granted it.
fn find_ring(peer: DomId, reference: GrantRef, channel: &Channel) -> Result<MappedGrant, &'static str> {
    let began = time::now();
    while began.elapsed() < PATIENCE {
        match MappedGrant::map(peer, reference, Access::ReadWrite) {
            Ok(ring) => return Ok(ring),
            Err(GrantError::Status(
                GrantStatus::BadGntref | GrantStatus::BadDomain | GrantStatus::GeneralError,
            )) => {}
            Err(_) => return Err("the ring cannot be mapped"),
        }
        let _ = channel.wait_for(RETRY);
    }
    Err("no sender came")
}

/// Receives everything; returns the digest and how many bytes there were.
fn receive_file(
    peer: DomId,
    ring: &MappedGrant,
    channel: &Channel,
) -> Result<([u8; 32], usize), &'static str> {
    let page = ring.frame().ok_or("the ring is not writable")?;
    let (mut down, mut up) = stream::receiver_ends(page).map_err(|_| "the sender's ring is not ours")?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, [0; PAGE_SIZE]);
    loop {
        let mut answered = false;
        while let Some(message) = down.pop().map_err(|_| "the sender broke the ring")? {
            let answer = match message {
                Down::Page { reference, length } => {
                    let data = MappedGrant::map(peer, reference, Access::ReadOnly)
                        .map_err(|_| "a page cannot be mapped")?;
                    let piece = buffer.get_mut(..length as usize).ok_or("a page is too long")?;
                    bytes += data.read(piece);
                    data.unmap().map_err(|_| "a page cannot be unmapped")?;
                    hash.update(piece);
                    Up::Done { reference }
                }
                Down::End { bytes: expected } if expected == bytes as u64 => {
                    let sha256 = hash.finalize().into();
                    up.push(&Up::Digest { sha256 }).map_err(|_| "the sender broke the ring")?;
                    channel.notify().map_err(|_| "the sender cannot be notified")?;
                    return Ok((sha256, bytes));
                }
                Down::End { .. } => return Err("bytes are missing"),
            };
            up.push(&answer).map_err(|_| "the sender broke the ring")?;
            answered = true;
        }
        if answered {
            channel.notify().map_err(|_| "the sender cannot be notified")?;
        }
        if channel.wait_for(PATIENCE) != Ok(Wake::Event) {
            return Err("the sender is silent");
        }
    }
}
