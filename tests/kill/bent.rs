//! The judge is judged: each fault that it is there for, made by hand in a store that was in order, is seen.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::judge::{Record, Verdict, judge};
use crate::raw::{Names, recording_of};
use crate::round::Run;
use crate::{Scene, play, quoted};

/// Another than that of the long run, and one whose first round streams.
const SEED: u64 = 2;

/// What a bend says of itself: its name, and whether the verdict shows it.
type Bend = (&'static str, fn(&Path, &mut Run), fn(&Verdict) -> bool);

const BENDS: [Bend; 12] = [
    ("an ack beyond what is stored", ack_beyond, |verdict| {
        verdict.lost == 1_000_000
    }),
    (
        "an acked recording that is gone",
        lose_recording,
        |verdict| verdict.lost > 0,
    ),
    (
        "a recording that is there twice",
        copy_manifest,
        |verdict| verdict.twice == 1,
    ),
    ("a byte that is another", bend_byte, |_| true),
    ("a segment that is gone", lose_segment, |_| true),
    ("a segment of no recording", stray_segment, |_| true),
    ("an object left in the journal", leave_object, |_| true),
    ("an acked event that is gone", lose_events, |verdict| {
        verdict.lost_events > 0
    }),
    ("an event that is there twice", copy_events, |verdict| {
        verdict.events_twice > 0
    }),
    ("an event that is another", bend_event, |_| true),
    ("a recording of no session", forget_session, |_| true),
    (
        "recordings that others should have sealed",
        swap_sealers,
        |_| true,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_sees_what_is_lost_bent_left_over_or_there_twice() {
    let scene = Scene::new(SEED);
    let (run, verdict) = play(&scene, SEED, 1).await;
    assert!(
        verdict.faults.is_empty(),
        "{}",
        quoted(&verdict.faults.join("\n"))
    );
    assert!(
        verdict.acked_bytes > 0 && verdict.acked_events > 0,
        "nothing was acked that could be lost"
    );
    let store = scene.directory.join("store");
    for (what, bend, shows) in BENDS {
        let copy = scene.directory.join("bent");
        copy_folder(&store, &copy);
        let mut bent = Run {
            records: run.records.clone(),
            reported: run.reported.clone(),
            sealed_in: run.sealed_in.clone(),
            ..run
        };
        bend(&copy, &mut bent);
        let verdict = judge(&copy, &bent).await;
        assert!(
            !verdict.faults.is_empty() && shows(&verdict),
            "{what}: {verdict:?}"
        );
        fs::remove_dir_all(&copy).unwrap();
    }
    scene.clear();
}

/// One session has been told of more than is there.
fn ack_beyond(store: &Path, run: &mut Run) {
    let (name, at) = acked(store, run);
    let stored = manifest(store, &name)["bytes"].as_u64().unwrap();
    let told = &mut run.records[at].told;
    told.acked_bytes = stored + 1_000_000;
    told.sent_bytes = told.acked_bytes;
}

fn lose_recording(store: &Path, run: &mut Run) {
    let (name, _) = acked(store, run);
    for segment in segments(store, &name) {
        fs::remove_file(store.join(segment)).unwrap();
    }
    fs::remove_file(store.join(name)).unwrap();
}

fn lose_segment(store: &Path, run: &mut Run) {
    let (name, _) = acked(store, run);
    fs::remove_file(store.join(&segments(store, &name)[0])).unwrap();
}

fn copy_manifest(store: &Path, run: &mut Run) {
    let (name, _) = acked(store, run);
    fs::copy(store.join(&name), store.join(of_another(&name))).unwrap();
}

fn bend_byte(store: &Path, run: &mut Run) {
    let (name, _) = acked(store, run);
    let segment = store.join(&segments(store, &name)[0]);
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(segment, bytes).unwrap();
}

fn stray_segment(store: &Path, run: &mut Run) {
    let (name, _) = acked(store, run);
    let segment = &segments(store, &name)[0];
    fs::copy(store.join(segment), store.join(of_another(segment))).unwrap();
}

fn forget_session(store: &Path, run: &mut Run) {
    let (_, at) = acked(store, run);
    run.records.remove(at);
}

fn events(store: &Path) -> std::path::PathBuf {
    let name = Names::below(store).events.into_iter().next();
    store.join(name.unwrap())
}

fn lose_events(store: &Path, _: &mut Run) {
    Names::below(store)
        .events
        .iter()
        .for_each(|name| fs::remove_file(store.join(name)).unwrap());
}

fn copy_events(store: &Path, _: &mut Run) {
    let there = events(store);
    fs::copy(&there, there.with_file_name("0000-copy.ndjson")).unwrap();
}

fn bend_event(store: &Path, _: &mut Run) {
    let there = events(store);
    let text = fs::read_to_string(&there).unwrap();
    fs::write(there, text.replacen("kubernetes", "cubernetes", 1)).unwrap();
}

/// What a recorder sealed before it was killed was sealed after, and the reverse.
fn swap_sealers(store: &Path, run: &mut Run) {
    let own = std::mem::take(&mut run.sealed_in);
    let others = Names::below(store)
        .manifests
        .into_iter()
        .filter(|name| !own.contains_key(name));
    run.sealed_in = others.map(|name| (name, 0)).collect();
}

fn leave_object(store: &Path, _: &mut Run) {
    let opener = Names::below(store)
        .journal
        .into_iter()
        .find(|name| name.ends_with("/0000000000"));
    let opener = store.join(opener.unwrap());
    let mut object = fs::read(&opener).unwrap();
    // Its number.
    object[65] = 9;
    fs::write(opener.with_file_name("0000000009"), object).unwrap();
}

/// The manifest of a session that was acked, and where its record stands.
fn acked(store: &Path, run: &Run) -> (String, usize) {
    let mut names = Names::below(store).manifests.into_iter();
    let record_of = |name: &String| {
        let manifest = manifest(store, name);
        let mark = manifest["claimed"]["connectionID"].as_str()?.to_owned();
        let of_mark =
            |record: &Record| record.script.key.mark() == mark && record.told.acked_bytes > 0;
        run.records.iter().position(of_mark)
    };
    names
        .find_map(|name| record_of(&name).map(|at| (name, at)))
        .unwrap()
}

fn manifest(store: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(store.join(name)).unwrap()).unwrap()
}

fn segments(store: &Path, name: &str) -> Vec<String> {
    let manifest = manifest(store, name);
    let segments = manifest["segments"].as_array().unwrap().iter();
    segments
        .map(|segment| segment["name"].as_str().unwrap().to_owned())
        .collect()
}

/// The name with the id of another recording.
fn of_another(name: &str) -> String {
    name.replace(recording_of(name), "aaaaaaaaaaaaaaaa")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
