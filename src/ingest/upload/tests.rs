//! The upload machine in virtual time: tables of ends, and any interleaving.

use proptest::prelude::*;

use super::*;

const HOLD: Duration = Duration::from_millis(300);
const MAX: Duration = Duration::from_secs(5);

#[test]
fn a_clean_end_is_sealed_then_acked_in_full_then_held_open() {
    let (start, mut upload) = begin();
    take(&mut upload, start, b"{\"version\":2}\n[1,\"o\",\"x\"]\n");
    let end = start + Duration::from_secs(1);
    upload.handle_end(end, UploadEnd::Clean);
    assert!(!upload.is_receiving());
    assert!(upload.outcome().unwrap().clean());

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
    take(&mut upload, start, b"abc");
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
    take(&mut upload, start, b"abc");
    upload.handle_failed(start, "disk full".to_owned());
    upload.handle_durable(start, StreamOffset(3));
    assert!(!upload.is_receiving());
    assert_eq!(
        upload.outcome(),
        Some(&Outcome {
            cause: Cause::Failed,
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
        take(&mut upload, start, b"abc");
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
    take(&mut upload, start, b"abc");
    upload.handle_end(start, UploadEnd::Reset("reset".to_owned()));
    assert_eq!(
        upload.outcome(),
        Some(&Outcome {
            cause: Cause::Reset,
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
    take(&mut upload, start, b"abc");
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
fn what_cannot_wait_is_told_at_once_and_the_seal_goes_on_behind_it() {
    type Step = fn(&mut Upload, Instant);
    let table: [(Step, Cause, Option<&str>, &str); 4] = [
        (
            |upload, now| upload.handle_stalled(now, "no commit".to_owned()),
            Cause::Stalled,
            None,
            "no commit",
        ),
        (
            |upload, now| upload.handle_end(now, UploadEnd::Terminated("by eve".to_owned())),
            Cause::Terminated,
            Some("terminated"),
            "by eve",
        ),
        (
            |upload, now| upload.handle_end(now, UploadEnd::TooLong),
            Cause::BytesLimit,
            Some("limit_bytes"),
            "the recording reached recording_bytes_max, 3 bytes",
        ),
        (
            |upload, now| upload.handle_timeout(now + Duration::from_secs(60)),
            Cause::DurationLimit,
            Some("limit_duration"),
            "the recording reached recording_duration_max, 60s",
        ),
    ];
    for (step, cause, flag, text) in table {
        let (start, mut upload) = begin_with(UploadConfig {
            recording_bytes_max: Some(3),
            recording_duration_max: Some(Duration::from_secs(60)),
            ..UploadConfig::default()
        });
        take(&mut upload, start, b"abc");
        step(&mut upload, start);
        assert!(!upload.is_receiving());
        let outcome = upload.outcome().unwrap().clone();
        assert_eq!((outcome.cause, outcome.reason.as_str()), (cause, text));
        assert!(!outcome.clean() && cause.flag() == flag);
        let later = start + Duration::from_secs(61);
        let error = AckFrame::Error(text.to_owned());
        assert_eq!(upload.poll_frame(later), Some(error));
        assert!(upload.is_closed() && !upload.is_cut_short());
        upload.handle_sealed(later, 3);
        assert_eq!(upload.poll_frame(later + MAX), None, "one error frame");
    }
}

#[test]
fn no_byte_beyond_the_limit_is_taken_and_the_last_one_within_it_is() {
    let (start, mut upload) = begin_with(UploadConfig {
        recording_bytes_max: Some(10),
        ..UploadConfig::default()
    });
    assert_eq!(upload.handle_bytes(start, b"12345678"), 8);
    assert_eq!(upload.handle_bytes(start, b"90"), 2);
    assert!(upload.is_receiving(), "exactly the limit is within it");
    assert_eq!(upload.handle_bytes(start, b"1"), 0);
    upload.handle_end(start, UploadEnd::TooLong);
    assert_eq!(upload.handle_bytes(start, b"2"), 0);
    assert_eq!(upload.received_bytes(), 10);
}

#[test]
fn a_stall_behind_a_complete_body_is_told_and_leaves_the_recording_complete() {
    let (start, mut upload) = begin();
    take(&mut upload, start, b"abc");
    upload.handle_end(start, UploadEnd::Clean);
    upload.handle_stalled(start, "no commit".to_owned());
    let error = AckFrame::Error("no commit".to_owned());
    assert_eq!(upload.poll_frame(start), Some(error));
    assert!(upload.is_closed());
    assert!(upload.outcome().unwrap().clean());
}

#[test]
fn a_peer_that_does_not_read_its_last_frame_is_waited_for_no_longer_than_the_limit() {
    let (start, mut upload) = begin();
    upload.handle_stalled(start, "no commit".to_owned());
    let limit = start + Duration::from_secs(30);
    assert_eq!(upload.poll_limit(), Some(limit));
    upload.handle_timeout(limit - Duration::from_nanos(1));
    assert!(!upload.is_closed());
    upload.handle_timeout(limit);
    assert!(upload.is_closed() && upload.is_cut_short());
    assert_eq!(upload.poll_limit(), None);
}

#[test]
fn a_store_that_claims_more_than_it_was_given_is_not_believed() {
    let (start, mut upload) = begin();
    take(&mut upload, start, b"abc");
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
    Stall,
    End(UploadEnd),
    Sealed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2000_u16).prop_map(Step::Bytes),
        6 => any::<u16>().prop_map(Step::Durable),
        6 => (0..12_000_u16).prop_map(Step::Wait),
        1 => Just(Step::Fail),
        1 => Just(Step::Stall),
        1 => prop_oneof![
            Just(UploadEnd::Clean),
            Just(UploadEnd::Reset("r".to_owned())),
            Just(UploadEnd::Shutdown("s".to_owned())),
            Just(UploadEnd::Terminated("t".to_owned())),
        ].prop_map(Step::End),
        1 => Just(Step::Sealed),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn frames_never_pass_what_is_durable_never_go_back_and_never_pause_for_long(
        steps in steps(),
        recording_bytes_max in prop::option::of(0..20_000_u64),
        recording_duration_max in prop::option::of((0..60_000_u64).prop_map(Duration::from_millis)),
    ) {
        let (start, upload) = begin_with(UploadConfig {
            recording_bytes_max,
            recording_duration_max,
            ..UploadConfig::default()
        });
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
                let bytes = vec![b'x'; usize::from(length)];
                let taken = self.upload.handle_bytes(self.now, &bytes);
                self.received += u64::try_from(taken).unwrap();
                if taken < bytes.len() && self.upload.is_receiving() {
                    self.upload.handle_end(self.now, UploadEnd::TooLong);
                }
            }
            Step::Durable(offset) => {
                self.durable = self.durable.max(u64::from(offset).min(self.received));
                self.upload
                    .handle_durable(self.now, StreamOffset(u64::from(offset)));
            }
            Step::Wait(millis) => return self.wait(Duration::from_millis(millis.into())),
            Step::Fail => self.upload.handle_failed(self.now, "f".to_owned()),
            Step::Stall => self.upload.handle_stalled(self.now, "s".to_owned()),
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
fn begin_with(config: UploadConfig) -> (Instant, Upload) {
    let start = Instant::now();
    (start, Upload::new(start, config))
}

fn begin() -> (Instant, Upload) {
    begin_with(UploadConfig::default())
}

/// Bytes within every limit.
fn take(upload: &mut Upload, now: Instant, bytes: &[u8]) {
    assert_eq!(upload.handle_bytes(now, bytes), bytes.len());
}

#[test]
fn a_recorder_that_stops_waits_less_for_a_peer_that_does_not_read() {
    let (start, mut upload) = begin();
    upload.handle_end(start, UploadEnd::Shutdown("why".to_owned()));
    upload.handle_sealed(start, 0);
    assert!(upload.is_frame_due(start));
    let limit = start + Duration::from_secs(5);
    assert_eq!(upload.poll_limit(), Some(limit));
    upload.handle_timeout(limit);
    assert!(upload.is_closed() && upload.is_cut_short());
}

#[test]
fn what_had_arrived_belongs_to_an_upload_that_we_ended_and_to_no_other() {
    let said = || "why".to_owned();
    let config = || UploadConfig {
        recording_bytes_max: Some(10),
        recording_duration_max: Some(Duration::from_secs(60)),
        ..UploadConfig::default()
    };
    type End = fn(&mut Upload, Instant, String);
    let table: [(End, usize); 7] = [
        (|upload, now, why| upload.handle_stalled(now, why), 7),
        (
            |upload, now, why| upload.handle_end(now, UploadEnd::Shutdown(why)),
            7,
        ),
        (
            |upload, now, why| upload.handle_end(now, UploadEnd::Terminated(why)),
            7,
        ),
        (
            |upload, now, _| upload.handle_timeout(now + Duration::from_secs(60)),
            7,
        ),
        (|upload, now, why| upload.handle_failed(now, why), 0),
        (
            |upload, now, why| upload.handle_end(now, UploadEnd::Reset(why)),
            0,
        ),
        (|upload, now, _| upload.handle_end(now, UploadEnd::Clean), 0),
    ];
    for (index, (end, taken)) in table.into_iter().enumerate() {
        let (start, mut upload) = begin_with(config());
        assert_eq!(upload.handle_arrived(b"not yet"), 0);
        assert_eq!(upload.handle_bytes(start, b"abc"), 3);
        end(&mut upload, start, said());
        assert_eq!(upload.handle_bytes(start, b"late"), 0);
        assert_eq!(upload.handle_arrived(b"behind it"), taken, "{index}");
        assert_eq!(upload.received_bytes(), 3 + taken as u64);
    }
}
