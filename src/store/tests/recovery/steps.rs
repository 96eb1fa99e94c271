//! Each step of recovery × {fails, fails yet persists, dies, dies yet persists}; and a zombie that resumes at each of them.

use std::time::Duration;

use bytes::Bytes;

use super::super::super::{RecordingHandle, RecoveryState, StoreError};
use super::super::process::{Mishap, Process};
use super::super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening};
use super::{CAST, recording, recovered};

/// What a crash left: one recording sealed, one ended and unsealed, two open.
struct Crash {
    process: Process,
    open: Vec<RecordingHandle>,
    ended: crate::ids::RecordingId,
}

async fn crash(world: &World) -> Crash {
    let process = Process::start(world, 1, None).await.unwrap();
    let store = &process.store;
    let sealed = recording(store, &[b"sealed"]).await;
    let one = recording(store, &[CAST, b"[3,\"o\",\"!\"]\n"]).await;
    sealed.finish(clean_end()).await.unwrap();
    let ended = recording(store, &[CAST]).await;
    let ended_id = ended.id();
    let other = recording(store, &[b"no asciicast"]).await;
    process.backend.strike_at("get journal", Mishap::Freezes);
    let finishing = ended.finish(clean_end());
    assert!(
        tokio::time::timeout(Duration::from_secs(5), finishing)
            .await
            .is_err()
    );
    assert!(!process.backend.is_running());
    process.store.shared.release_lock();
    Crash {
        process,
        open: vec![one, other],
        ended: ended_id,
    }
}

/// Every acked byte is there, in order, exactly once; what is left of the journal is what is never removed.
async fn audit(world: &World, crash: &Crash, case: &str) {
    let sealed = world.sealed().await;
    assert_eq!(sealed.len(), 4, "{case}");
    for (handle, sent) in crash.open.iter().zip([
        [CAST, b"[3,\"o\",\"!\"]\n"].concat(),
        b"no asciicast".to_vec(),
    ]) {
        let (manifest, stream) = world.sealed_of(handle.id()).await;
        assert!(stream.starts_with(&sent), "{case}");
        assert!(
            stream.len() as u64 >= handle.durable().borrow().offset.0,
            "{case}"
        );
        assert!(manifest.flags.contains(&"incomplete".to_owned()), "{case}");
        assert!(manifest.gaps.is_empty(), "{case}");
    }
    let (manifest, stream) = world.sealed_of(crash.ended).await;
    assert_eq!(stream, CAST, "{case}");
    assert!(manifest.flags.contains(&"complete".to_owned()), "{case}");
    assert_eq!(world.journal_left().await, Vec::<String>::new(), "{case}");
    world.audit_journal().await;
}

/// The operations of a start and its recovery, in order; the last ones are the trim's.
async fn steps(backend: Backend) -> Vec<String> {
    let world = World::new(backend).await;
    let left = crash(&world).await;
    let second = Process::start(&world, 2, None).await.unwrap();
    let stats = recovered(&second.store).await;
    assert_eq!(
        (stats.recordings_sealed, stats.recordings_found),
        (3, 3),
        "{stats:?}"
    );
    audit(&world, &left, "no mishap").await;
    second.backend.log()
}

#[tokio::test(start_paused = true)]
async fn recovery_ends_well_whatever_happens_at_any_step() {
    for backend in BACKENDS {
        let steps = steps(backend).await;
        let kinds = ["list", "get", "put", "delete"];
        assert!(
            kinds
                .iter()
                .all(|kind| steps.iter().any(|step| step.starts_with(kind)))
        );
        for mishap in [
            Mishap::Fails,
            Mishap::FailsYetPersists,
            Mishap::Dies,
            Mishap::DiesYetPersists,
        ] {
            for (number, step) in steps.iter().enumerate() {
                let case = format!("{backend:?} {mishap:?} at {number}: {step}");
                let world = World::new(backend).await;
                let left = crash(&world).await;
                let starting = Process::start(&world, 2, Some((number, mishap)));
                // A start that fails or hangs is one that an operator repeats.
                let started = tokio::time::timeout(Duration::from_secs(60), starting).await;
                let mut done = false;
                if let Ok(Ok(second)) = &started {
                    let limit = Duration::from_secs(120);
                    let recovering = tokio::time::timeout(limit, second.store.recovered());
                    done = recovering.await.is_ok();
                    assert!(done || !second.backend.is_running(), "{case}");
                    if !done {
                        second.die();
                    }
                }
                if !done {
                    let third = Process::start(&world, 3, None).await.unwrap();
                    recovered(&third.store).await;
                }
                // A delete that fails costs room until the next start.
                let last = Process::start(&world, 4, None).await.unwrap();
                recovered(&last.store).await;
                audit(&world, &left, &case).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_zombie_that_resumes_at_any_step_never_acks_a_byte_that_is_lost() {
    for backend in BACKENDS {
        let steps = steps(backend).await;
        let (mut acks, mut fences) = (0, 0);
        // Behind the last step too: the journal is trimmed by then.
        for number in 0..=steps.len() {
            let case = format!("{backend:?} at {number}: {:?}", steps.get(number));
            let world = World::new(backend).await;
            let mut left = crash(&world).await;
            for handle in &mut left.open {
                handle
                    .append(Bytes::from_static(b"from the dead\n"))
                    .await
                    .unwrap();
            }
            let recoverer = Process::backend(&world, Some((number, Mishap::Freezes)));
            let config = world.config.clone();
            let starting = Process::start_on(&world, config, 2, std::sync::Arc::clone(&recoverer));
            let mut starting = std::pin::pin!(starting);
            let mut started = None;
            // On a clock that moves when everybody waits, this is until the recoverer is frozen or done.
            let first = async {
                match (&mut starting).await {
                    Ok(second) => started.insert(second).store.recovered().await.state,
                    // It was frozen for so long that its start was given up.
                    Err(_) => RecoveryState::Failed,
                }
            };
            let ended = tokio::time::timeout(Duration::from_secs(120), first).await;
            let recovered_first = ended == Ok(RecoveryState::Done);
            assert!(recovered_first || !recoverer.is_running(), "{case}");
            let sent = left
                .open
                .iter()
                .map(|handle| handle.durable().borrow().offset.0 + 14);
            let sent: Vec<u64> = sent.collect();
            left.process.backend.thaw();
            let mut fenced = 0;
            for (handle, sent) in left.open.iter().zip(sent) {
                match durable_at(handle, sent).await {
                    Ok(()) => {}
                    Err(error) => {
                        assert!(
                            matches!(*error, StoreError::Fenced { .. }),
                            "{case}: {error:?}"
                        );
                        fenced += 1;
                    }
                }
            }
            acks += left.open.len() - fenced;
            fences += fenced;
            if fenced > 0 {
                let begun = left.process.store.begin(opening());
                assert!(matches!(begun, Err(StoreError::Fenced { .. })), "{case}");
            }
            recoverer.thaw();
            if let Some(second) = &started {
                recovered(&second.store).await;
            }
            let last = Process::start(&world, 4, None).await.unwrap();
            recovered(&last.store).await;
            audit(&world, &left, &case).await;
        }
        assert!(acks > 0 && fences > 0, "{acks} acks, {fences} fences");
    }
}
