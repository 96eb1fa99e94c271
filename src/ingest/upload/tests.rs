//! The upload machine in virtual time: tables of ends, and any interleaving.

use proptest::prelude::*;

use super::*;

const HOLD: Duration = Duration::from_millis(300);
const MAX: Duration = Duration::from_secs(5);

#[test]
fn a_clean_end_is_sealed_then_acked_in_full_then_held_open() {
    let (start, mut upload) = begin();
    upload.handle_bytes(start, b"{\"version\":2}\n[1,\"o\",\"x\"]\n");
    let end = start + Duration::from_secs(1);
    upload.handle_end(end, UploadEnd::Clean);
    assert!(!upload.is_receiving());
    assert!(upload.outcome().unwrap().clean);

    assert_eq!(upload.poll_frame(end), None);
    let sealed = end + Duration::from_millis(20);
    upload.handle_sealed(sealed, 26);
    assert_eq!(
        upload.poll_frame(sealed),
        Some(AckFrame::Ack(StreamOffset(26)))
    );
    assert_eq!(upload.poll_frame(sealed), None);
    assert_eq!(upload.poll_timeout(), Some(end + HOLD));
    upload.handle_timeout(end + HOLD - Duration::from_nanos(1));
    assert!(!upload.is_closed());
    upload.handle_timeout(end + HOLD);
    assert!(upload.is_closed());
    assert_eq!(upload.poll_timeout(), None);
}

#[test]
fn acks_go_on_while_a_slow_seal_lasts() {
    let (start, mut upload) = begin();
    upload.handle_bytes(start, b"abc");
    upload.handle_end(start, UploadEnd::Clean);
    assert_eq!(
        upload.poll_frame(start + MAX),
        Some(AckFrame::Ack(StreamOffset(0)))
    );
    upload.handle_durable(start + MAX, StreamOffset(3));
    let later = start + MAX + MAX;
    assert_eq!(
        upload.poll_frame(later),
        Some(AckFrame::Ack(StreamOffset(3)))
    );
    upload.handle_sealed(later, 3);
    assert_eq!(
        upload.poll_frame(later),
        Some(AckFrame::Ack(StreamOffset(3)))
    );
    assert!(
        upload.is_closed(),
        "the hold is over when the seal took longer"
    );
}

#[test]
fn an_empty_body_ends_cleanly() {
    let (start, mut upload) = begin();
    upload.handle_end(start, UploadEnd::Clean);
    upload.handle_sealed(start, 0);
    assert_eq!(
        upload.poll_frame(start),
        Some(AckFrame::Ack(StreamOffset(0)))
    );
}

#[test]
fn a_failed_store_is_told_at_once_and_last() {
    let (start, mut upload) = begin();
    upload.handle_bytes(start, b"abc");
    upload.handle_failed(start, "disk full".to_owned());
    upload.handle_durable(start, StreamOffset(3));
    assert!(!upload.is_receiving());
    assert_eq!(
        upload.outcome(),
        Some(&Outcome {
            clean: false,
            reason: "disk full".to_owned()
        })
    );
    let error = AckFrame::Error("disk full".to_owned());
    assert_eq!(upload.poll_frame(start), Some(error));
    assert!(upload.is_closed());
    assert_eq!(upload.poll_frame(start + MAX), None);
}

#[test]
fn a_seal_that_fails_or_lost_bytes_ends_in_an_error_frame() {
    type Step = fn(&mut Upload, Instant);
    let table: [(Step, &str); 2] = [
        (
            |upload, now| upload.handle_failed(now, "no space".to_owned()),
            "no space",
        ),
        (
            |upload, now| upload.handle_sealed(now, 2),
            "stored 2 of 3 bytes",
        ),
    ];
    for (step, text) in table {
        let (start, mut upload) = begin();
        upload.handle_bytes(start, b"abc");
        upload.handle_end(start, UploadEnd::Clean);
        step(&mut upload, start);
        assert_eq!(
            upload.poll_frame(start),
            Some(AckFrame::Error(text.to_owned()))
        );
        assert!(upload.is_closed());
    }
}

#[test]
fn a_reset_upload_is_incomplete_and_says_nothing_more() {
    let (start, mut upload) = begin();
    upload.handle_bytes(start, b"abc");
    upload.handle_end(start, UploadEnd::Reset("reset".to_owned()));
    assert_eq!(
        upload.outcome(),
        Some(&Outcome {
            clean: false,
            reason: "reset".to_owned()
        })
    );
    assert_eq!(upload.poll_timeout(), None);
    assert_eq!(upload.poll_frame(start + MAX), None);
    upload.handle_sealed(start, 3);
    assert!(upload.is_closed());
}

#[test]
fn a_shutdown_seals_first_and_then_says_so() {
    let (start, mut upload) = begin();
    upload.handle_bytes(start, b"abc");
    upload.handle_end(start, UploadEnd::Shutdown("stopping".to_owned()));
    upload.handle_durable(start, StreamOffset(3));
    assert_eq!(
        upload.poll_frame(start),
        Some(AckFrame::Ack(StreamOffset(3)))
    );
    upload.handle_sealed(start, 3);
    let error = AckFrame::Error("stopping".to_owned());
    assert_eq!(upload.poll_frame(start), Some(error));
    assert!(upload.is_closed());
}

#[test]
fn a_store_that_claims_more_than_it_was_given_is_not_believed() {
    let (start, mut upload) = begin();
    upload.handle_bytes(start, b"abc");
    upload.handle_durable(start, StreamOffset(99));
    assert_eq!(
        upload.poll_frame(start),
        Some(AckFrame::Ack(StreamOffset(3)))
    );
}

#[derive(Debug, Clone)]
enum Step {
    Bytes(u16),
    Durable(u16),
    Wait(u16),
    Fail,
    End(UploadEnd),
    Sealed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2000_u16).prop_map(Step::Bytes),
        6 => any::<u16>().prop_map(Step::Durable),
        6 => (0..12_000_u16).prop_map(Step::Wait),
        1 => Just(Step::Fail),
        1 => prop_oneof![
            Just(UploadEnd::Clean),
            Just(UploadEnd::Reset("r".to_owned())),
            Just(UploadEnd::Shutdown("s".to_owned())),
        ].prop_map(Step::End),
        1 => Just(Step::Sealed),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn frames_never_pass_what_is_durable_never_go_back_and_never_pause_for_long(steps in steps()) {
        let (start, upload) = begin();
        let mut world = World { upload, now: start, last: start, received: 0, durable: 0, acked: 0, ended: false };
        for step in steps {
            world.take(step)?;
        }
        world.take(Step::Wait(20_000))?;
    }
}

/// The machine under a shell that always wakes in time, and the promises it is held to.
struct World {
    upload: Upload,
    now: Instant,
    last: Instant,
    received: u64,
    durable: u64,
    acked: u64,
    ended: bool,
}

impl World {
    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Bytes(length) => {
                if self.upload.is_receiving() {
                    self.received += u64::from(length);
                }
                self.upload
                    .handle_bytes(self.now, &vec![b'x'; usize::from(length)]);
            }
            Step::Durable(offset) => {
                self.durable = self.durable.max(u64::from(offset).min(self.received));
                self.upload
                    .handle_durable(self.now, StreamOffset(u64::from(offset)));
            }
            Step::Wait(millis) => return self.wait(Duration::from_millis(millis.into())),
            Step::Fail => self.upload.handle_failed(self.now, "f".to_owned()),
            Step::End(end) => self.upload.handle_end(self.now, end),
            Step::Sealed => {
                if !self.upload.is_receiving() {
                    self.durable = self.received;
                    self.upload.handle_sealed(self.now, self.received);
                }
            }
        }
        self.drain()
    }

    fn wait(&mut self, time: Duration) -> Result<(), TestCaseError> {
        let until = self.now + time;
        while let Some(wake) = self.upload.poll_timeout().filter(|wake| *wake <= until) {
            self.now = self.now.max(wake);
            self.upload.handle_timeout(self.now);
            let before = self.upload.poll_timeout();
            self.drain()?;
            prop_assert!(
                self.upload.poll_timeout() != before || before.is_none_or(|next| next > self.now)
            );
        }
        self.now = until;
        Ok(())
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        loop {
            let due = self.upload.is_frame_due(self.now);
            let frame = self.upload.poll_frame(self.now);
            prop_assert_eq!(due, frame.is_some());
            let Some(frame) = frame else { return Ok(()) };
            prop_assert!(!self.ended, "nothing follows an error frame");
            prop_assert!(self.now.duration_since(self.last) <= MAX);
            self.last = self.now;
            match frame {
                AckFrame::Ack(StreamOffset(offset)) => {
                    prop_assert!(offset <= self.durable && offset >= self.acked);
                    self.acked = offset;
                }
                AckFrame::Error(_) => self.ended = true,
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an origin for virtual time comes from no other place"
)]
fn begin() -> (Instant, Upload) {
    let start = Instant::now();
    (start, Upload::new(start, UploadConfig::default()))
}
