//! How soon a map stream that ended is opened again: a server that breaks off each time is asked ever more slowly, one that lasted at once.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

impl World {
    /// A stream that says one map, lives for `life` on keep-alives, and is closed by the server.
    fn short_stream(&mut self, life: Duration) {
        self.answer("stream", 200, b"");
        self.map(SELF_ONLY);
        self.answer("update", 200, b"");
        let until = self.now + life;
        while self.now < until {
            let step = Duration::from_secs(50).min(until - self.now);
            self.pass(step);
            self.map(KEEP_ALIVE);
        }
        let id = self.id("stream");
        let reason = "control ended the map stream".to_owned();
        self.control.handle_failed(self.now, id, reason);
        self.events();
    }

    /// How many streams are opened within `span` by a server that ends each after `life`, and the waits between them.
    fn attempts(&mut self, span: Duration, life: Duration) -> Vec<Duration> {
        let until = self.now + span;
        let mut waits = Vec::new();
        while self.now < until {
            self.short_stream(life);
            assert!(!self.requests().contains(&"stream"), "never without a wait");
            waits.push(self.pass_to_deadline());
        }
        waits
    }
}

#[test]
fn a_control_that_closes_after_each_first_map_is_asked_at_growing_distances() {
    for life in [Duration::ZERO, Duration::from_secs(5)] {
        let mut world = World::new(None, Some(NodePrivate::from_bytes([3; 32])));
        world.answer("register", 200, ACCEPTED);
        let first = world.attempts(HOUR, life);
        let second = world.attempts(HOUR, life);
        // n² · 10 ms up to 30 s: some 55 until then, and two a minute from then on.
        assert!(
            (90..=175).contains(&first.len()),
            "{life:?}: {}",
            first.len()
        );
        assert!(
            (80..=250).contains(&second.len()),
            "{life:?}: {}",
            second.len()
        );
        assert!(
            second.len() < first.len(),
            "{} then {}",
            first.len(),
            second.len()
        );
        let mean = |waits: &[Duration]| {
            waits.iter().sum::<Duration>() / u32::try_from(waits.len()).unwrap()
        };
        for tens in first[..50].windows(20).step_by(10) {
            assert!(mean(&tens[..10]) < mean(&tens[10..]), "{tens:?}");
        }
        let least = Duration::from_secs(15);
        assert!(second.iter().all(|wait| *wait >= least), "{second:?}");
    }
}

#[test]
fn a_stream_that_lasted_an_hour_is_opened_again_at_once_and_its_past_is_forgiven() {
    let mut world = World::new(None, Some(NodePrivate::from_bytes([3; 32])));
    world.answer("register", 200, ACCEPTED);
    let rough = world.attempts(HOUR, Duration::ZERO);
    assert!(*rough.last().unwrap() >= Duration::from_secs(15));
    world.short_stream(HOUR);
    assert!(world.pass_to_deadline() <= Duration::from_millis(15));
    // And once more: the second break in a row of a stream that lasts is a first one too.
    world.short_stream(HOUR);
    assert!(world.pass_to_deadline() <= Duration::from_millis(15));
    world.short_stream(Duration::ZERO);
    let again = world.pass_to_deadline();
    assert!((20..=60).contains(&again.as_millis()), "{again:?}");
}

#[test]
fn a_netmap_that_is_refused_each_time_is_asked_for_at_growing_distances() {
    let mut world = World::new(None, Some(NodePrivate::from_bytes([3; 32])));
    world.answer("register", 200, ACCEPTED);
    let mut waits = Vec::new();
    for _ in 0..10 {
        world.answer("stream", 200, b"");
        world.map(SELF_ONLY);
        world.answer("update", 200, b"");
        let reason = "too many peers".to_owned();
        world.control.give_up_stream(world.now, reason);
        world.events();
        waits.push(world.pass_to_deadline());
    }
    assert!(waits[0] <= Duration::from_millis(7500), "{waits:?}");
    assert!(waits[9] >= Duration::from_secs(150), "{waits:?}");
}
