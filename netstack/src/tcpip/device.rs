//! smoltcp's network device, made for the length of one call: at most one packet in, any number out to a closure.
//!
//! It never blocks and never fails: what a stack wants to send goes straight to the caller's closure, from one scratch buffer.

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant;

/// Largest packet inside the tunnel, in bytes: what every tailnet node is configured with, and the least that IPv6 permits.
pub(super) const MTU_BYTES: usize = 1280;

/// More than the headers of any packet that smoltcp builds here: IPv6 (40) and TCP with options (60), in bytes.
const HEADERS_BYTES: usize = 128;

/// The sink for outgoing packets.
pub(super) type Emit<'a> = dyn FnMut(&[u8]) + 'a;

/// Where a packet goes that smoltcp has just built; it may still be changed.
pub(super) type Build<'a> = dyn FnMut(&mut [u8]) + 'a;

/// One packet to take in, if any, and where to put what comes out.
pub(super) struct Wire<'a> {
    pub(super) inbound: Option<&'a [u8]>,
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) emit: &'a mut Build<'a>,
}

/// WireGuard authenticated what comes in, so only what goes out needs checksums: the peer's kernel verifies them.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut checksums = ChecksumCapabilities::ignored();
    checksums.ipv4 = Checksum::Tx;
    checksums.udp = Checksum::Tx;
    checksums.tcp = Checksum::Tx;
    checksums.icmpv4 = Checksum::Tx;
    checksums.icmpv6 = Checksum::Tx;
    checksums
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Outgoing<'_>)> {
        let packet = self.inbound.take()?;
        Some((
            Received(packet),
            Outgoing {
                scratch: self.scratch,
                emit: self.emit,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing {
            scratch: self.scratch,
            emit: self.emit,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU_BYTES;
        capabilities.checksum = checksums();
        capabilities
    }
}

pub(super) struct Received<'t>(&'t [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

pub(super) struct Outgoing<'t> {
    scratch: &'t mut Vec<u8>,
    emit: &'t mut (dyn FnMut(&mut [u8]) + 't),
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length_bytes: usize, write: F) -> R {
        if self.scratch.len() < length_bytes {
            self.scratch.resize(length_bytes, 0);
        }
        let packet = self.scratch.get_mut(..length_bytes).unwrap_or_default();
        // smoltcp leaves reserved fields of some headers as it finds them: they must not carry another peer's bytes. Payloads it always writes whole.
        packet
            .iter_mut()
            .take(HEADERS_BYTES)
            .for_each(|byte| *byte = 0);
        let result = write(packet);
        (self.emit)(packet);
        result
    }
}
