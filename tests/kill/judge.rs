//! The judge: a closed store beside what each session sent and was told.
//!
//! Invariant: it believes neither the recorder nor its reader alone: each recording is read from its files by the document, and once more
//! through the store's own reader. Called when a run is over, and by the tests that bend a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use futures_util::TryStreamExt;
use serde_json::Value;
use tailtape::store::{StoreError, StoreReader, StoreUrl};

use crate::content::Key;
use crate::raw::{self, Names};
use crate::reporter;
use crate::round::Run;
use crate::session::{Endpoint, Script, Told};

/// The longest header that a session sends.
const HEADER_BYTES_MAX: usize = 512;

/// A session that is over.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) script: Script,
    pub(crate) told: Told,
}

/// What the judge found in order, and every fault.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acked_bytes: u64,
    pub(crate) stored_bytes: u64,
    /// Sessions that were told that all of them is stored.
    pub(crate) whole: u64,
    /// Recordings that a later recorder sealed.
    pub(crate) recovered: u64,
    /// Sessions that were never acked and left nothing.
    pub(crate) unheard: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) acked_events: u64,
    /// Events that were stored although their answer was not heard.
    pub(crate) unheard_events: u64,
    pub(crate) lost_events: u64,
    pub(crate) events_twice: u64,
    pub(crate) faults: Vec<String>,
}

/// A recording that is as its manifest says, and what the judge needs of it.
#[derive(Debug)]
struct Held {
    name: String,
    bytes: u64,
    clean: bool,
    flags: Vec<String>,
    endpoint: String,
    node: String,
}

pub(crate) async fn judge(store: &Path, run: &Run) -> Verdict {
    let mut verdict = Verdict::default();
    match verdict.recordings(store, run).await {
        Err(fault) => verdict.faults.push(fault),
        Ok(mut by_session) => {
            for record in &run.records {
                let found = by_session.remove(&record.script.key).unwrap_or_default();
                verdict.session(record, &found, run);
            }
        }
    }
    verdict.events(store, run);
    verdict.left_over(store);
    verdict
}

impl Verdict {
    /// Reads every recording twice, from its files and through the store's reader, and finds the session that sent it: by the mark in
    /// its header, or by the bytes of a header that was cut off.
    async fn recordings(
        &mut self,
        store: &Path,
        run: &Run,
    ) -> Result<BTreeMap<Key, Vec<Held>>, String> {
        let keys = run.records.iter().map(|record| record.script.key);
        let by_mark: BTreeMap<String, Key> = keys.map(|key| (key.mark(), key)).collect();
        let url = StoreUrl::Local(store.to_owned());
        let reader = StoreReader::open(&url)
            .await
            .map_err(|error| error.with_causes())?;
        let listed: Result<BTreeSet<String>, _> = reader.manifest_names().try_collect().await;
        let listed = listed.map_err(|error| error.with_causes())?;
        let names = raw::manifests_below(store);
        if listed != names {
            self.fault("the store's reader lists other recordings than there are".to_owned());
        }
        let mut by_session: BTreeMap<Key, Vec<Held>> = BTreeMap::new();
        let mut cut_off = Vec::new();
        for name in names {
            let (manifest, bytes) = match read_twice(store, &reader, &name).await {
                Ok(read) => read,
                Err(what) => {
                    self.fault(format!("{name}: {what}"));
                    continue;
                }
            };
            let held = Held::new(name, &manifest, bytes.len());
            match manifest["claimed"]["connectionID"].as_str() {
                None => cut_off.push((held, bytes)),
                Some(mark) => match by_mark.get(mark) {
                    None => self.fault(format!("{held:?}: no session was marked {mark}")),
                    Some(key) => {
                        if bytes != key.prefix(bytes.len()) {
                            self.fault(format!("{held:?} is not what {key:?} sent"));
                        }
                        by_session.entry(*key).or_default().push(held);
                    }
                },
            }
        }
        for (held, bytes) in cut_off {
            let begins = |key: &&Key| key.prefix(HEADER_BYTES_MAX).starts_with(&bytes);
            let free = |key: &&Key| !by_session.contains_key(*key);
            match by_mark.values().filter(free).find(begins) {
                Some(key) => by_session.entry(*key).or_default().push(held),
                None => self.fault(format!("{held:?}: no session began like that")),
            }
        }
        Ok(by_session)
    }

    fn session(&mut self, record: &Record, found: &[Held], run: &Run) {
        let (Script { key, endpoint, .. }, told) = (record.script, &record.told);
        self.acked_bytes += told.acked_bytes;
        self.whole += u64::from(told.whole);
        self.twice += u64::try_from(found.len().saturating_sub(1)).unwrap();
        let [held] = found else {
            match (found.len(), told.acked_bytes) {
                (0, 0) => self.unheard += 1,
                (0, acked) => {
                    self.lost += acked;
                    self.fault(format!("acked, and not in the store: {record:?}"));
                }
                (_, _) => self.fault(format!("recorded more than once: {found:?}; {record:?}")),
            }
            return;
        };
        self.stored_bytes += held.bytes;
        self.lost += told.acked_bytes.saturating_sub(held.bytes);
        let by_another = run.sealed_in.get(&held.name) != Some(&key.round);
        self.recovered += u64::from(by_another);
        let flagged = |flag: &str| held.flags.iter().any(|found| found == flag);
        let all_of_it = told.ended && held.bytes == told.sent_bytes;
        let path = match endpoint {
            Endpoint::V1 => "/record",
            Endpoint::V2 => "/v2/record",
        };
        let claims = [
            ("has every acked byte", held.bytes >= told.acked_bytes),
            (
                "has no byte that was not sent",
                held.bytes <= told.sent_bytes,
            ),
            (
                "is either complete or incomplete",
                flagged("complete") != flagged("incomplete"),
            ),
            ("is clean if complete", held.clean == flagged("complete")),
            (
                "is complete if that was told",
                !told.whole || flagged("complete"),
            ),
            (
                "has all of it if complete",
                !flagged("complete") || all_of_it,
            ),
            (
                "is flagged as recovered exactly if another recorder sealed it",
                flagged("recovered") == by_another,
            ),
            ("has no gap", !flagged("gaps")),
            ("came over this endpoint", held.endpoint == path),
            ("came from this node", held.node == "ssh-node.tail.test"),
        ];
        for (claim, _) in claims.iter().filter(|(_, holds)| !holds) {
            self.fault(format!("not true: {claim}; {held:?}; {record:?}"));
        }
    }

    /// Each acked event is one line below `events/`, as it was sent; one whose answer was not heard is one at most.
    fn events(&mut self, store: &Path, run: &Run) {
        let mut stored = BTreeMap::<String, (String, u64)>::new();
        for name in Names::below(store).events {
            let lines = match raw::lines(store, &name) {
                Ok(lines) => lines,
                Err(what) => {
                    self.fault(format!("{name}: {what}"));
                    continue;
                }
            };
            for (text, line) in lines {
                let node = &line["uploader"]["node_name"];
                if node != "ssh-node.tail.test" || line["destination"]["node"] != *node {
                    self.fault(format!("{name}: not from the node that sent it: {node}"));
                }
                let mark = line["event"]["mark"].as_str().unwrap_or_default();
                let (event, times) = stored.entry(mark.to_owned()).or_default();
                *event = text;
                *times += 1;
            }
        }
        for reported in &run.reported {
            for number in 0..reported.sent {
                let (key, mark) = (reported.key, reporter::mark(reported.key, number));
                let is_acked = reported.acked.contains(&number);
                self.acked_events += u64::from(is_acked);
                let Some((event, times)) = stored.remove(&mark) else {
                    if is_acked {
                        self.lost_events += 1;
                        self.fault(format!("event {mark} is acked and not in the store"));
                    }
                    continue;
                };
                self.unheard_events += u64::from(!is_acked);
                self.events_twice += times - 1;
                if times > 1 {
                    self.fault(format!("event {mark} is there {times} times"));
                }
                let sent = format!("\"event\":{}}}", reporter::body(key, number));
                if !event.ends_with(&sent) {
                    self.fault(format!("event {mark} is not what was sent"));
                }
            }
        }
        for mark in stored.into_keys() {
            self.fault(format!("an event that nobody sent: {mark}"));
        }
    }

    /// Nothing is in the store that should not be.
    fn left_over(&mut self, store: &Path) {
        let names = Names::below(store);
        for name in &names.journal {
            if !raw::stays(&fs::read(store.join(name)).unwrap()) {
                self.fault(format!("{name}: neither an opener nor a fence"));
            }
        }
        for name in raw::orphans(store) {
            self.fault(format!("{name}: no manifest refers to it"));
        }
        let ids: BTreeSet<&str> = names
            .manifests
            .iter()
            .map(|name| raw::recording_of(name))
            .collect();
        if ids.len() != names.manifests.len() {
            self.fault("two manifests have the same recording id".to_owned());
        }
        let known = |name: &str| name == "store/id" || name.starts_with(".lock-");
        for name in names.others.iter().filter(|name| !known(name)) {
            self.fault(format!("{name}: what is this?"));
        }
    }

    fn fault(&mut self, what: String) {
        self.faults.push(what);
    }
}

impl Held {
    fn new(name: String, manifest: &Value, bytes: usize) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            name,
            bytes: u64::try_from(bytes).unwrap(),
            clean: manifest["clean"] == true,
            flags: manifest["flags"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text)
                .collect(),
            endpoint: text(&manifest["endpoint"]),
            node: text(&manifest["uploader"]["node_name"]),
        }
    }
}

/// The manifest and the bytes of a recording: from its files, and the same through the store's own reader.
async fn read_twice(
    store: &Path,
    reader: &StoreReader,
    name: &str,
) -> Result<(Value, Vec<u8>), String> {
    let (manifest, bytes) = raw::read(store, name)?;
    let said = |error: StoreError| error.with_causes();
    let decoded = reader.manifest(name).await.map_err(said)?;
    let pieces: Vec<_> = reader
        .read_plain(decoded)
        .try_collect()
        .await
        .map_err(said)?;
    let same = pieces.concat() == bytes;
    same.then_some((manifest, bytes))
        .ok_or_else(|| "the store's reader reads other bytes than there are".to_owned())
}
