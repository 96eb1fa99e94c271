//! Every rule of the choice as a table.

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn latencies(of: &[(u32, u64)]) -> Latencies {
    of.iter().map(|(id, millis)| (*id, ms(*millis))).collect()
}

fn some_time() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way, and only differences to it count"
    )]
    let now = Instant::now();
    now + Duration::from_secs(1000)
}

/// Regions 1, 2 and 3, home 1, control up, nothing measured.
struct Case {
    now: Instant,
    current: Option<u32>,
    eligible: Vec<u32>,
    answered: Latencies,
    best: Latencies,
    scores: BTreeMap<u32, f64>,
    heard_ago: Option<Duration>,
    control_connected: bool,
    lot: u64,
}

impl Case {
    fn new(answered: &[(u32, u64)]) -> Self {
        Self {
            now: some_time(),
            current: Some(1),
            eligible: vec![1, 2, 3],
            answered: latencies(answered),
            best: latencies(answered),
            scores: BTreeMap::new(),
            heard_ago: None,
            control_connected: true,
            lot: 7,
        }
    }

    fn choose(&self) -> (Option<u32>, HomeReason) {
        choose(&Facts {
            now: self.now,
            began: self.now - ms(300),
            current: self.current,
            eligible: &self.eligible,
            answered: &self.answered,
            best: &self.best,
            scores: &self.scores,
            heard: self.heard_ago.map(|ago| self.now - ago),
            control_connected: self.control_connected,
            lot: self.lot,
        })
    }
}

#[test]
fn a_home_is_left_only_for_a_gain_of_ten_milliseconds_and_a_third() {
    // home, candidate, whether the home stays
    let table = [
        (100, 95, true),
        (100, 60, false),
        (20, 12, true),
        (20, 10, false),
        (19, 10, true),
        (100, 67, true),
        (100, 66, false),
        (30, 20, false),
        (29, 20, true),
        (15, 5, false),
        (14, 5, true),
        (1000, 989, true),
        (1000, 667, true),
        (1000, 666, false),
    ];
    for (home, candidate, stays) in table {
        assert_eq!(
            is_fast_enough(Some(ms(home)), ms(candidate)),
            stays,
            "{home} {candidate}"
        );
        let expected = if stays {
            (Some(1), HomeReason::FastEnough)
        } else {
            (Some(2), HomeReason::Fastest)
        };
        assert_eq!(Case::new(&[(1, home), (2, candidate)]).choose(), expected);
    }
    assert!(is_fast_enough(None, ms(1)));
}

#[test]
fn the_first_home_is_the_fastest_region() {
    let mut case = Case::new(&[(1, 30), (2, 29), (3, 31)]);
    case.current = None;
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
    case.answered = latencies(&[(3, 5), (2, 5)]);
    case.best = case.answered.clone();
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
}

#[test]
fn the_best_latency_of_late_decides_but_only_among_those_that_answer_now() {
    let mut case = Case::new(&[(1, 100), (2, 90), (3, 90)]);
    case.best = latencies(&[(1, 100), (2, 80), (3, 40)]);
    assert_eq!(case.choose(), (Some(3), HomeReason::Fastest));
    case.answered.remove(&3);
    assert_eq!(case.choose(), (Some(1), HomeReason::FastEnough));
}

#[test]
fn a_score_weighs_the_candidate_and_the_home() {
    let mut case = Case::new(&[(1, 100), (2, 150)]);
    case.scores = [(2, 0.4)].into();
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
    case.scores = [(1, 3.0)].into();
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
    case.scores = [(1, f64::MAX), (2, f64::MAX), (3, 1.0)].into();
    assert_eq!(case.choose().0, Some(1), "no panic, and equals go by id");
}

#[test]
fn a_home_that_did_not_answer_stays_only_if_its_connection_speaks() {
    let mut case = Case::new(&[(2, 5)]);
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
    case.heard_ago = Some(ms(7_999));
    assert_eq!(case.choose(), (Some(1), HomeReason::FastEnough));
    case.heard_ago = Some(ms(8_001));
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
}

#[test]
fn a_frame_since_the_measurement_began_shows_access_however_long_it_took() {
    let now = some_time();
    let began = now - ms(20_000);
    assert!(accessible(None, now, began, Some(now - ms(19_000))));
    assert!(!accessible(None, now, began, Some(now - ms(21_000))));
    assert!(!accessible(None, now, began, None));
    assert!(accessible(Some(ms(1)), now, began, None));
}

#[test]
fn if_nothing_answers_the_home_stays() {
    let mut case = Case::new(&[]);
    case.heard_ago = Some(ms(120_000));
    assert_eq!(case.choose(), (Some(1), HomeReason::Heard));
    case.heard_ago = Some(ms(120_001));
    assert_eq!(case.choose(), (Some(1), HomeReason::NothingBetter));
}

#[test]
fn if_nothing_answers_and_there_is_no_home_the_lot_decides_for_good() {
    let mut case = Case::new(&[]);
    case.current = None;
    for (lot, drawn) in [(0, 1), (1, 2), (2, 3), (3, 1), (u64::MAX, 1)] {
        case.lot = lot;
        assert_eq!(case.choose(), (Some(drawn), HomeReason::Drawn));
        assert_eq!(case.choose(), (Some(drawn), HomeReason::Drawn));
    }
    case.eligible.clear();
    assert_eq!(case.choose(), (None, HomeReason::NoRegion));
}

#[test]
fn a_home_is_not_changed_while_control_is_away() {
    let mut case = Case::new(&[(1, 100), (2, 5)]);
    case.control_connected = false;
    assert_eq!(case.choose(), (Some(1), HomeReason::ControlAway));
    case.eligible = vec![2];
    assert_eq!(case.choose(), (Some(1), HomeReason::ControlAway));
    case.current = None;
    assert_eq!(case.choose(), (Some(2), HomeReason::OnlyRegion));
}

#[test]
fn a_sole_region_is_home_whether_or_not_it_answers() {
    let mut case = Case::new(&[]);
    case.eligible = vec![3];
    assert_eq!(case.choose(), (Some(3), HomeReason::OnlyRegion));
}

#[test]
fn a_home_that_is_no_longer_eligible_is_left() {
    let mut case = Case::new(&[(1, 5), (2, 100)]);
    case.eligible = vec![2, 3];
    case.heard_ago = Some(ms(1));
    assert_eq!(case.choose(), (Some(2), HomeReason::Fastest));
    case.answered.clear();
    case.lot = 1;
    assert_eq!(case.choose(), (Some(3), HomeReason::Drawn));
}
