//! UDP sockets of the tunnel: one per bound address, read and written in batches.
//!
//! Invariant: a socket never blocks the loop; reads are bounded per call; with offload on, GRO splits
//! what the kernel merged and GSO sends a run with one call; with it off every datagram is a call of
//! its own. Datagrams may be fragmented on the way (transport.md §7.4). Called by `io/driver.rs`.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use quinn_udp::{RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::node::Transmit;

/// Buffers per read; with GRO each may hold 64 KiB of datagrams.
const READ_BUFFERS: usize = 8;

/// Datagrams per read without offload: as many as one merged read holds.
const SINGLE_READS: usize = 48;

/// Bytes of one read buffer: the largest merged read.
const READ_BUFFER_BYTES: usize = 65_536;

/// What is asked of the kernel for both directions; it may give less (performance.md: 2 MiB at least).
const SOCKET_BUFFER_BYTES: usize = 7 * 1024 * 1024;

/// One bound socket.
#[derive(Debug)]
pub(super) struct Udp {
    socket: UdpSocket,
    /// `None`: offload is off.
    state: Option<UdpSocketState>,
    local: SocketAddr,
}

impl Udp {
    /// Binds `local`; port 0 takes a free one.
    pub(super) fn bind(local: SocketAddr, offload: bool) -> io::Result<Self> {
        let domain = socket2::Domain::for_address(local);
        let socket =
            socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&local.into())?;
        socket.set_nonblocking(true)?;
        let socket: std::net::UdpSocket = socket.into();
        let state = offload
            .then(|| UdpSocketState::new((&socket).into()))
            .transpose()?;
        allow_fragments(&socket, local.is_ipv6());
        let sock = socket2::SockRef::from(&socket);
        for (what, asked) in [
            ("receive", sock.set_recv_buffer_size(SOCKET_BUFFER_BYTES)),
            ("send", sock.set_send_buffer_size(SOCKET_BUFFER_BYTES)),
        ] {
            if let Err(error) = asked {
                tracing::debug!(%error, what, "socket buffer stays at its default size");
            }
        }
        let local = socket.local_addr()?;
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            state,
            local,
        })
    }

    /// The bound address.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Completes when something can be read.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Completes when something can be written.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Reads one batch and gives each datagram to `each`; returns how many there were.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; otherwise what the kernel said.
    pub(super) fn try_read(
        &self,
        buffers: &mut ReadBuffers,
        each: &mut dyn FnMut(SocketAddr, &[u8]),
    ) -> io::Result<usize> {
        let mut count = 0;
        let Some(state) = &self.state else {
            let buffer = buffers
                .slots
                .first_mut()
                .ok_or(io::ErrorKind::InvalidInput)?;
            while count < SINGLE_READS {
                match self.socket.try_recv_from(buffer) {
                    Ok((len, from)) => each(from, buffer.get(..len).unwrap_or_default()),
                    Err(error) if count == 0 => return Err(error),
                    // What it was comes up again with the next read.
                    Err(_) => break,
                }
                count += 1;
            }
            return Ok(count);
        };
        let mut metas = [RecvMeta::default(); READ_BUFFERS];
        let filled = self.socket.try_io(Interest::READABLE, || {
            let mut slices: Vec<IoSliceMut<'_>> = buffers
                .slots
                .iter_mut()
                .map(|slot| IoSliceMut::new(slot))
                .collect();
            state.recv((&self.socket).into(), &mut slices, &mut metas)
        })?;
        for (meta, slot) in metas.iter().zip(&buffers.slots).take(filled) {
            let merged = slot.get(..meta.len).unwrap_or_default();
            // No chunk would come of a datagram without a byte, and nobody would know of it.
            if merged.is_empty() {
                each(meta.addr, merged);
                count += 1;
            }
            for datagram in merged.chunks(meta.stride.max(1)) {
                each(meta.addr, datagram);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Sends one run; returns how many bytes of it went out and, if not all, why: `WouldBlock` when the
    /// kernel's buffer is full, otherwise what the kernel said of this address.
    pub(super) fn try_send(&self, run: &Transmit<'_>) -> (usize, io::Result<()>) {
        let segments_max = self
            .state
            .as_ref()
            .map_or(1, UdpSocketState::max_gso_segments);
        let call_bytes = run.segment_bytes.saturating_mul(segments_max).max(1);
        let mut sent = 0;
        for contents in run.contents.chunks(call_bytes) {
            let outcome = match &self.state {
                Some(state) => self.send_merged(state, contents, run),
                None => self
                    .socket
                    .try_send_to(contents, run.destination)
                    .map(|_whole| ()),
            };
            if let Err(error) = outcome {
                return (sent, Err(error));
            }
            sent += contents.len();
        }
        (sent, Ok(()))
    }

    fn send_merged(
        &self,
        state: &UdpSocketState,
        contents: &[u8],
        run: &Transmit<'_>,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: run.destination,
            ecn: None,
            contents,
            segment_size: (contents.len() > run.segment_bytes).then_some(run.segment_bytes),
            src_ip: None,
        };
        self.socket.try_io(Interest::WRITABLE, || {
            state.try_send((&self.socket).into(), &transmit)
        })
    }
}

/// Memory for reads, kept between calls.
pub(super) struct ReadBuffers {
    slots: Vec<Box<[u8]>>,
}

impl Default for ReadBuffers {
    fn default() -> Self {
        let slots = (0..READ_BUFFERS)
            .map(|_| vec![0_u8; READ_BUFFER_BYTES].into_boxed_slice())
            .collect();
        Self { slots }
    }
}

/// quinn-udp forbids fragmentation, which would swallow full packets on links below 1360 bytes.
fn allow_fragments(socket: &std::net::UdpSocket, is_ipv6: bool) {
    use rustix::net::sockopt;
    let set = if is_ipv6 {
        sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DONT)
    } else {
        sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DONT)
    };
    if let Err(error) = set {
        tracing::debug!(%error, "fragmentation of the tunnel's datagrams stays as it was");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::TransmitBatch;

    async fn read_all(socket: &Udp, want: usize) -> Vec<Vec<u8>> {
        let mut buffers = ReadBuffers::default();
        let mut got: Vec<Vec<u8>> = Vec::new();
        while got.len() < want {
            socket.readable().await.unwrap();
            match socket.try_read(&mut buffers, &mut |_, datagram| got.push(datagram.to_vec())) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        got
    }

    async fn a_run_arrives_as_the_datagrams_it_holds(bind: &str, offload: bool) {
        let from = Udp::bind(bind.parse().unwrap(), offload).unwrap();
        let to = Udp::bind(bind.parse().unwrap(), offload).unwrap();
        let mut batch = TransmitBatch::default();
        let sent: Vec<Vec<u8>> = (0..30_u8)
            .map(|n| vec![n; if n == 29 { 7 } else { 1312 }])
            .collect();
        for datagram in &sent {
            batch.push(to.local(), datagram);
        }
        // A new socket counts as full until the runtime has looked at it.
        from.writable().await.unwrap();
        for run in batch.iter() {
            from.writable().await.unwrap();
            assert_eq!(from.try_send(&run).0, run.contents.len());
        }
        assert_eq!(read_all(&to, sent.len()).await, sent);
    }

    #[tokio::test]
    async fn runs_arrive_whole_with_and_without_offload_on_both_families() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            for offload in [true, false] {
                a_run_arrives_as_the_datagrams_it_holds(bind, offload).await;
            }
        }
    }
}
