//! Batches, records and compaction without a store.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::path::Path;
use tokio::sync::Semaphore;

use super::*;
use crate::recording::frame::FRAME_OVERHEAD_BYTES;

fn state_with(bytes: &[&[u8]]) -> State {
    let mut state = State::default();
    for (n, bytes) in (0..).zip(bytes) {
        let id = RecordingId::from_bytes([n; 10]);
        state
            .begin(id, b"{}".to_vec(), Arc::new(Semaphore::new(0)))
            .unwrap();
        assert!(state.append(id, bytes, Permits { share: 1, space: 1 }, 1000));
    }
    state
}

#[test]
fn one_batch_takes_the_bytes_of_all_recordings() {
    let mut state = state_with(&[b"one", b"two", b"three"]);
    let batch = state.take_batch(10_000, tokio::time::Instant::now().into_std());
    let data: Vec<_> = batch
        .items
        .iter()
        .map(|item| item.data.as_slice())
        .collect();
    assert_eq!(data, [b"one".as_slice(), b"two", b"three"]);
    assert_eq!(state.commit_wish(), None);
}

#[test]
fn a_record_goes_behind_the_bytes_before_it_and_ahead_of_the_end() {
    let mut state = state_with(&[&[b'a'; 300]]);
    let id = RecordingId::from_bytes([0; 10]);
    let push = |state: &mut State, bytes: usize| {
        state.push_record(id, FrameKind::Cut, StreamOffset(300), vec![b'r'; bytes])
    };
    let mut committed = push(&mut state, 200).unwrap();
    assert!(push(&mut state, FRAME_PLAIN_BYTES_MAX + 1).is_none());
    assert!(state.close(id, b"{}".to_vec()).is_some());
    assert!(push(&mut state, 1).is_none(), "its end was said");

    let now = tokio::time::Instant::now().into_std();
    // The first object has room for the bytes alone, the second for the record, the third for the end.
    let shapes = [(300, 0, false), (0, 1, false), (0, 0, true)];
    for ((bytes, records, closed), room) in shapes.into_iter().zip([400, 250, 250]) {
        let batch = state.take_batch(room, now);
        let item = &batch.items[0];
        let shape = (item.data.len(), item.records.len(), item.close.is_some());
        assert_eq!(shape, (bytes, records, closed));
        assert!(committed.try_recv().is_err() || closed);
        let place = Arc::new(ObjectPlace {
            name: Path::from("object"),
            number: JournalNumber(1),
            epoch_index: 0,
        });
        let items = batch.items.into_iter().map(|item| (item, 0..0)).collect();
        let placed = Placed {
            items,
            ..Placed::default()
        };
        state.settle(&place, 100, placed, &Semaphore::new(0), now);
        if records > 0 {
            committed.try_recv().unwrap();
        }
    }
    assert_eq!(state.commit_wish(), None);
}

#[test]
fn a_batch_splits_at_the_object_limit_and_loses_nothing() {
    let mut state = state_with(&[&[b'a'; 300], &[b'b'; 300], b"c"]);
    let id = RecordingId::from_bytes([2; 10]);
    assert!(state.close(id, vec![b'x'; 150]).is_some());
    let mut streams = BTreeMap::<RecordingId, Vec<u8>>::new();
    let mut closes = 0;
    let mut batches = 0;
    while state.has_queue() {
        let batch = state.take_batch(250, tokio::time::Instant::now().into_std());
        let batch = batch.items;
        assert!(!batch.is_empty(), "a batch that takes nothing would loop");
        let size: usize = batch
            .iter()
            .flat_map(|item| {
                [
                    item.open.as_deref(),
                    Some(item.data.as_slice()),
                    item.close.as_deref(),
                ]
            })
            .flatten()
            .filter(|piece| !piece.is_empty())
            .map(|piece| piece.len() + FRAME_OVERHEAD_BYTES)
            .sum();
        assert!(size <= 250, "{size}");
        for item in batch {
            let stream = streams.entry(item.id).or_default();
            assert_eq!(item.offset.0, stream.len() as u64);
            stream.extend(item.data);
            closes += usize::from(item.close.is_some());
        }
        batches += 1;
    }
    assert!(batches >= 4);
    assert_eq!(closes, 1);
    assert_eq!(
        streams.values().map(Vec::len).collect::<Vec<_>>(),
        [300, 300, 1]
    );
}
