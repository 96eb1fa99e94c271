//! Waiting in tests for what other tasks of the same runtime do: in turns, which are counted, and not in time.
//!
//! Invariant: what never happens is a failure that says what was waited for, never a hang. Called by the tests of the rooms.

/// How often the other tasks may have their turn. What is waited for takes some ten.
const TURNS_MAX: u32 = 100_000;

/// Lets the other tasks go on until `look` finds something.
///
/// # Panics
/// When it has found nothing in [`TURNS_MAX`] turns, with `what` was waited for.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..TURNS_MAX {
        if let Some(found) = look() {
            return found;
        }
        tokio::task::yield_now().await;
    }
    panic!("{what}: not within {TURNS_MAX} turns of the other tasks");
}

#[tokio::test]
async fn what_happens_is_found_when_it_does() {
    let mut looks = 0;
    let found = until("the third look", || {
        looks += 1;
        (looks == 3).then_some(looks)
    });
    assert_eq!(found.await, 3);
}

#[tokio::test]
#[should_panic(expected = "a miracle: not within 100000 turns")]
async fn what_never_happens_is_a_failure_that_says_what_was_waited_for() {
    until("a miracle", || None::<()>).await;
}
