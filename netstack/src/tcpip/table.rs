//! Where connections live: slots that are reused, and ids that know which use they mean.
//!
//! Invariant: an id finds the connection that it was made for, or nothing. Owned by [`super::TcpIp`].

use super::connection::Connection;

/// A handle on one connection. It never refers to a later connection, however long it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId {
    slot: u32,
    /// Which use of the slot is meant; it wraps after 2^32 uses of one slot.
    generation: u32,
}

impl ConnId {
    pub(super) fn slot(self) -> u32 {
        self.slot
    }
}

#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Table {
    /// `None` only when 2^32 slots are in use, which the limit on connections forbids.
    pub(super) fn insert(&mut self, connection: Connection) -> Option<ConnId> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot::default());
                slot
            }
        };
        let place = self.place_mut(slot)?;
        place.connection = Some(Box::new(connection));
        Some(ConnId {
            slot,
            generation: place.generation,
        })
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Box<Connection>> {
        let place = self.place_mut(slot)?;
        let connection = place.connection.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        Some(connection)
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.place_mut(slot)?.connection.as_deref_mut()
    }

    pub(super) fn get(&self, id: ConnId) -> Option<&Connection> {
        let place = self.slots.get(usize::try_from(id.slot).ok()?)?;
        place
            .connection
            .as_deref()
            .filter(|_| place.generation == id.generation)
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        let place = self.place_mut(id.slot)?;
        place
            .connection
            .as_deref_mut()
            .filter(|_| place.generation == id.generation)
    }

    /// The present id of an occupied slot.
    pub(super) fn id(&self, slot: u32) -> Option<ConnId> {
        let place = self.slots.get(usize::try_from(slot).ok()?)?;
        place.connection.as_ref().map(|_| ConnId {
            slot,
            generation: place.generation,
        })
    }

    /// Every occupied slot: for changes of address, never per packet.
    pub(super) fn occupied(&self) -> Vec<u32> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, place)| place.connection.is_some())
            .map(|(slot, _)| slot)
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn place_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(slot).ok()?)
    }
}
