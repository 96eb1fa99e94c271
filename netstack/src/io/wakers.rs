//! Who waits for what: one waker per direction of a connection, one per listening port.
//!
//! Invariant: an entry exists only while a stream or listener exists; wakers are called after the
//! node's lock is released. Called by `io/driver.rs` and `io/stream.rs`.

use std::collections::HashMap;
use std::task::Waker;

use crate::tcpip::{ConnId, TcpEvent};

#[derive(Debug, Default)]
struct Pair {
    read: Option<Waker>,
    write: Option<Waker>,
}

/// All waiting tasks of one node.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    conns: HashMap<ConnId, Pair>,
    ports: HashMap<u16, Waker>,
}

impl Wakers {
    /// The task wants to know when `conn` can be read.
    pub(super) fn reading(&mut self, conn: ConnId, waker: &Waker) {
        store(&mut self.conns.entry(conn).or_default().read, waker);
    }

    /// The task wants to know when `conn` can be written, or is established.
    pub(super) fn writing(&mut self, conn: ConnId, waker: &Waker) {
        store(&mut self.conns.entry(conn).or_default().write, waker);
    }

    /// The task wants to know when `port` has a connection to accept.
    pub(super) fn accepting(&mut self, port: u16, waker: &Waker) {
        self.ports
            .entry(port)
            .and_modify(|w| w.clone_from(waker))
            .or_insert_with(|| waker.clone());
    }

    /// The stream is gone.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
    }

    /// The listener is gone.
    pub(super) fn forget_port(&mut self, port: u16) {
        self.ports.remove(&port);
    }

    /// Moves the wakers that `event` concerns to `due`.
    pub(super) fn due(&mut self, event: &TcpEvent, due: &mut Vec<Waker>) {
        match event {
            TcpEvent::Acceptable { port } => due.extend(self.ports.remove(port)),
            TcpEvent::Readable(conn) => {
                due.extend(self.conns.get_mut(conn).and_then(|pair| pair.read.take()));
            }
            TcpEvent::Connected(conn) | TcpEvent::Writable(conn) => {
                due.extend(self.conns.get_mut(conn).and_then(|pair| pair.write.take()));
            }
            TcpEvent::Closed(conn, _) => {
                if let Some(pair) = self.conns.remove(conn) {
                    due.extend(pair.read.into_iter().chain(pair.write));
                }
            }
        }
    }

    /// Everybody: the node is shutting down.
    pub(super) fn all(&mut self) -> Vec<Waker> {
        let conns = std::mem::take(&mut self.conns).into_values();
        let mut due: Vec<Waker> = std::mem::take(&mut self.ports).into_values().collect();
        due.extend(conns.flat_map(|pair| pair.read.into_iter().chain(pair.write)));
        due
    }
}

fn store(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(stored) => stored.clone_from(waker),
        None => *slot = Some(waker.clone()),
    }
}
