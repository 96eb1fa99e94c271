//! The one timer queue: a hierarchical timing wheel (Varghese and Lauck, 1987), one entry per connection.
//!
//! Arming, moving and cancelling cost the same with ten connections and with ten thousand, which no heap or tree offers; nothing is ever scanned. Times are ticks of
//! one millisecond. The entries are links in an array by connection slot, so there is at most one per connection and nothing to collect.
//! Called by [`super::TcpIp`] after it polled a connection.

/// Levels of the wheel; level `n` has slots of `64^n` ticks, so four reach 4.6 hours. What is due later is put at the far end and sorted in again from there.
const LEVELS: u32 = 4;
/// Bits of one level's slot number: one machine word says which of its 64 slots are occupied.
const SLOT_BITS: u32 = 6;
const SLOTS: u64 = 1 << SLOT_BITS;
/// Ticks that one slot of the last level covers, and that the whole wheel covers.
const LAST_SLOT_TICKS: u64 = 1 << (SLOT_BITS * (LEVELS - 1));
const SPAN_TICKS: u64 = 1 << (SLOT_BITS * LEVELS);
/// No link, and the place of an entry that is not armed.
const NONE: u32 = u32::MAX;

/// Armed deadlines by connection slot.
#[derive(Debug)]
pub(super) struct Wheel {
    /// The last tick whose entries have fired.
    elapsed: u64,
    /// First entry of every slot of every level: `level * 64 + slot`.
    heads: Vec<u32>,
    /// One bit per slot of a level that has entries.
    occupied: [u64; LEVELS as usize],
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: u64,
    previous: u32,
    next: u32,
    /// Index into `heads`.
    place: u32,
}

const UNARMED: Entry = Entry {
    due: 0,
    previous: NONE,
    next: NONE,
    place: NONE,
};

impl Wheel {
    pub(super) fn new() -> Self {
        let slots = usize::try_from(SLOTS * u64::from(LEVELS)).unwrap_or_default();
        Self {
            elapsed: 0,
            heads: vec![NONE; slots],
            occupied: [0; LEVELS as usize],
            entries: Vec::new(),
        }
    }

    /// Arms, moves or (with `None`) cancels the deadline of a slot. A tick that is over counts as the next one, so a poll can never ask for itself at once.
    pub(super) fn schedule(&mut self, slot: u32, due: Option<u64>) {
        let Some(due) = due else {
            self.unlink(slot);
            return;
        };
        let due = due.max(self.elapsed + 1);
        let place = self.place_of(due);
        match self.entry_mut(slot) {
            // Most packets move a deadline that lies hours ahead by less than its slot is wide.
            Some(entry) if entry.place == place => entry.due = due,
            Some(_) => {
                self.unlink(slot);
                self.link(slot, place, due);
            }
            None => {
                let count = usize::try_from(slot).unwrap_or_default() + 1;
                self.entries.resize(count.max(self.entries.len()), UNARMED);
                self.link(slot, place, due);
            }
        }
    }

    /// The tick at which [`Wheel::expire`] has something to do: an entry is due, or far ones have to be sorted in nearer.
    pub(super) fn next(&self) -> Option<u64> {
        self.next_place().map(|(_, start)| start)
    }

    /// Fires every entry due at or before `now`: its slot is appended to `fired`, and is armed no more.
    pub(super) fn expire(&mut self, now: u64, fired: &mut Vec<u32>) {
        while let Some((place, start)) = self.next_place()
            && start <= now
        {
            self.elapsed = start;
            let mut at = self.take_place(place);
            while let Some(entry) = self.entry_mut(at) {
                let (slot, next, due) = (at, entry.next, entry.due);
                *entry = UNARMED;
                if due <= start {
                    fired.push(slot);
                } else {
                    self.link(slot, self.place_of(due), due);
                }
                at = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    /// The first occupied place and the tick at which its slot begins. Entries of a lower level are always due before those of a higher one.
    fn next_place(&self) -> Option<(u32, u64)> {
        (0..LEVELS)
            .zip(&self.occupied)
            .find_map(|(level, &occupied)| {
                let shift = SLOT_BITS * level;
                let current = u32::try_from((self.elapsed >> shift) % SLOTS).unwrap_or_default();
                let ahead = occupied.rotate_right(current);
                (ahead != 0).then(|| {
                    let distance = ahead.trailing_zeros();
                    let place = level * 64 + (current + distance) % 64;
                    (
                        place,
                        ((self.elapsed >> shift) + u64::from(distance)) << shift,
                    )
                })
            })
    }

    /// Where a deadline after `elapsed` belongs: the lowest level at which it lies in another slot than the present.
    fn place_of(&self, due: u64) -> u32 {
        let differing = self.elapsed ^ due;
        let (level, due) = if differing < SPAN_TICKS {
            (
                (63 - (differing | (SLOTS - 1)).leading_zeros()) / SLOT_BITS,
                due,
            )
        } else {
            (
                LEVELS - 1,
                due.min(self.elapsed + SPAN_TICKS - LAST_SLOT_TICKS),
            )
        };
        level * 64 + u32::try_from((due >> (SLOT_BITS * level)) % SLOTS).unwrap_or_default()
    }

    fn link(&mut self, slot: u32, place: u32, due: u64) {
        let Some(head) = self.heads.get_mut(index(place)) else {
            return;
        };
        let next = std::mem::replace(head, slot);
        if let Some(bits) = self.occupied.get_mut(index(place / 64)) {
            *bits |= 1 << (place % 64);
        }
        if let Some(after) = self.entry_mut(next) {
            after.previous = slot;
        }
        if let Some(entry) = self.entry_mut(slot) {
            *entry = Entry {
                due,
                previous: NONE,
                next,
                place,
            };
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        let Entry {
            previous,
            next,
            place,
            ..
        } = std::mem::replace(entry, UNARMED);
        if place == NONE {
            return;
        }
        if let Some(after) = self.entry_mut(next) {
            after.previous = previous;
        }
        if let Some(before) = self.entry_mut(previous) {
            before.next = next;
        } else {
            if let Some(head) = self.heads.get_mut(index(place)) {
                *head = next;
            }
            if next == NONE {
                self.take_place(place);
            }
        }
    }

    /// Empties a place and gives its first entry.
    fn take_place(&mut self, place: u32) -> u32 {
        if let Some(bits) = self.occupied.get_mut(index(place / 64)) {
            *bits &= !(1 << (place % 64));
        }
        self.heads
            .get_mut(index(place))
            .map_or(NONE, |head| std::mem::replace(head, NONE))
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index(slot))
    }
}

/// The widening that `From` lacks; every target that has sockets has 32 bits of address at least.
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_deadline_fires_at_its_tick_at_every_distance() {
        for due in [
            1,
            63,
            64,
            65,
            4_095,
            4_096,
            262_144,
            7_200_000,
            16_777_215,
            16_777_216,
            100_000_000,
        ] {
            for start in [0, 1, 63, 16_777_215, 16_777_300] {
                let mut wheel = Wheel::new();
                let mut fired = Vec::new();
                wheel.expire(start, &mut fired);
                wheel.schedule(7, Some(start + due));
                let mut wakes = 0;
                while fired.is_empty() {
                    let next = wheel.next().unwrap();
                    assert!(next <= start + due);
                    wheel.expire(next, &mut fired);
                    wakes += 1;
                    assert!(wakes < 20);
                }
                assert_eq!(
                    (fired, wheel.elapsed, wheel.next()),
                    (vec![7], start + due, None)
                );
            }
        }
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_tick_and_not_before() {
        let mut wheel = Wheel::new();
        let mut fired = Vec::new();
        wheel.expire(1_000, &mut fired);
        wheel.schedule(0, Some(5));
        wheel.expire(1_000, &mut fired);
        assert!(fired.is_empty());
        wheel.expire(1_001, &mut fired);
        assert_eq!(fired, [0]);
    }

    proptest! {
        /// The reference is an ordered map that is scanned.
        #[test]
        fn the_wheel_fires_what_a_sorted_list_fires(
            steps in proptest::collection::vec((0_u32..12, proptest::option::of(0_u64..40_000_000), 0_u64..300_000), 1..120)
        ) {
            let (mut wheel, mut model, mut now) = (Wheel::new(), BTreeMap::new(), 0_u64);
            for (slot, delay, step) in steps {
                wheel.schedule(slot, delay.map(|delay| now + delay));
                match delay {
                    Some(delay) => model.insert(slot, (now + delay).max(now + 1)),
                    None => model.remove(&slot),
                };
                let first = model.values().min().copied();
                prop_assert_eq!(wheel.next().is_some(), first.is_some());
                prop_assert!(wheel.next() <= first);
                now += step;
                let mut fired = Vec::new();
                wheel.expire(now, &mut fired);
                fired.sort_unstable();
                let expected: Vec<u32> = model.iter().filter(|&(_, &due)| due <= now).map(|(&slot, _)| slot).collect();
                model.retain(|_, due| *due > now);
                prop_assert_eq!(fired, expected);
            }
        }
    }
}
