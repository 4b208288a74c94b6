//! Static event channels: pairs of `xen,evtchn-v1` nodes that name each other (Xen's `static-evtchn.c`).
//!
//! `xen,evtchn = <port &peer>`: the port in the domain the node is a child of, and the node of the other end.
use heapless::Vec;
use pv_abi::{DomId, Port};

use crate::domain::CONTROL;

use super::cells::Cells;
use super::dom0less::{DOMAIN_COMPATIBLE, domain_id, is_control};
use super::error::TreeError;
use super::node::Node;
use super::refusal::Refusal;
use super::tree::Tree;

/// Most static channels of one domain.
pub const MAX_CHANNELS: usize = 8;

/// One end of a channel that exists from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaticChannel {
    /// The port in this domain.
    pub local_port: Port,
    /// The domain at the other end; possibly this one.
    pub peer: DomId,
    /// The port there.
    pub peer_port: Port,
}

/// Whether `node` is one end of a static channel.
pub(super) fn is_channel(node: Node<'_>) -> Result<bool, TreeError> {
    node.is_compatible(&["xen,evtchn-v1"])
}

/// What a channel's node says: its port and the reference to the other end.
fn ends(node: Node<'_>) -> Result<Option<(Port, u32)>, TreeError> {
    let Some(value) = node.bytes("xen,evtchn")? else { return Ok(None) };
    let mut cells = Cells::new(value);
    Ok(cells.u32().zip(cells.u32()).map(|(port, peer)| (Port(port), peer)))
}

/// Adds the channel whose end is `node` to `channels` of a domain that may have ports below `max_ports`.
pub(super) fn add(
    tree: &Tree<'_>,
    node: Node<'_>,
    max_ports: u32,
    channels: &mut Vec<StaticChannel, MAX_CHANNELS>,
) -> Result<(), Refusal> {
    let (local_port, reference) = ends(node)?.ok_or(Refusal::ChannelMalformed)?;
    if local_port.0 == 0 || local_port.0 >= max_ports {
        return Err(Refusal::ChannelPortOutOfRange);
    }
    if channels.iter().any(|channel| channel.local_port == local_port) {
        return Err(Refusal::ChannelPortTwice);
    }
    let own = node.phandle()?.ok_or(Refusal::ChannelNotMutual)?;
    let peer = find(tree, reference)?.ok_or(Refusal::ChannelPeerMissing)?;
    // A node that names itself would need one port to have two ends.
    if peer.reference != own || reference == own {
        return Err(Refusal::ChannelNotMutual);
    }
    if peer.port.0 == 0 {
        return Err(Refusal::ChannelPortOutOfRange);
    }
    let channel = StaticChannel { local_port, peer: peer.domain, peer_port: peer.port };
    channels.push(channel).map_err(|_| Refusal::TooManyChannels)
}

/// The other end of a channel.
struct Peer {
    domain: DomId,
    port: Port,
    reference: u32,
}

/// The channel node with phandle `wanted` below a domain's node.
fn find(tree: &Tree<'_>, wanted: u32) -> Result<Option<Peer>, TreeError> {
    let mut walk = tree.walk()?;
    let mut domains: usize = 0;
    let (mut inside, mut control) = (false, false);
    while let Some(path) = walk.step()? {
        let node = path.node()?;
        if path.depth() <= 2 {
            inside = path.is_child_of(&["chosen"])? && node.is_compatible(&DOMAIN_COMPATIBLE)?;
            control = inside && is_control(node)?;
            domains = domains.saturating_add(usize::from(inside && !control));
        } else if inside && path.depth() == 3 && node.phandle()? == Some(wanted) && is_channel(node)? {
            let Some((port, reference)) = ends(node)? else { return Ok(None) };
            let domain = if control { Some(CONTROL) } else { domain_id(domains) };
            return Ok(domain.map(|domain| Peer { domain, port, reference }));
        }
    }
    Ok(None)
}
