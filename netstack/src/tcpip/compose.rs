//! One TCP segment in one IP packet, made without a stack.
//!
//! Invariant: lengths and checksums are right. Called by [`super::last_sent`] and [`super::rebuild`].

use std::net::SocketAddr;

use smoltcp::wire::{IpEndpoint, IpProtocol, IpRepr, TcpPacket, TcpRepr};

use super::device::checksums;

/// The packet that carries `segment`. Both addresses are of one family, and the payload is shorter than an IP packet may be long.
pub(super) fn compose(from: SocketAddr, to: SocketAddr, segment: &TcpRepr<'_>) -> Vec<u8> {
    let (from, to): (IpEndpoint, IpEndpoint) = (from.into(), to.into());
    let header = IpRepr::new(
        from.addr,
        to.addr,
        IpProtocol::Tcp,
        segment.buffer_len(),
        64,
    );
    let mut packet = vec![0; header.buffer_len()];
    header.emit(&mut packet, &checksums());
    let body = packet.get_mut(header.header_len()..).unwrap_or_default();
    segment.emit(
        &mut TcpPacket::new_unchecked(body),
        &from.addr,
        &to.addr,
        &checksums(),
    );
    packet
}
