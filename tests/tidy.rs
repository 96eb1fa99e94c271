//! House rules that a compiler cannot check: the plan of rooms, who may look at whom, and the form
//! of a file. A new room is added to [`ROOMS`] or [`NETSTACK_ROOMS`] in the commit that opens it.
//!
//! Each check takes a [`Source`] and says what is wrong with it, so that each is also shown to fail.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program: to panic is to fail"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of `src/`: name, layer, and the further rooms of the same layer that it may look at.
const ROOMS: &[(&str, Layer, &[&str])] = &[
    ("lib", Layer::Wiring, &[]),
    ("main", Layer::Wiring, &[]),
    ("cli", Layer::Wiring, &[]),
    ("config", Layer::Wiring, &[]),
    ("admin", Layer::Wiring, &[]),
    ("archive", Layer::Wiring, &[]),
    ("serve", Layer::Wiring, &[]),
    ("dev", Layer::Wiring, &[]),
    ("verify", Layer::Wiring, &[]),
    ("telemetry", Layer::Wiring, &[]),
    ("ingest", Layer::Edge, &[]),
    ("console", Layer::Edge, &[]),
    ("retention", Layer::Edge, &[]),
    ("capture", Layer::Edge, &[]),
    ("status", Layer::Edge, &[]),
    ("catalog", Layer::Durability, &["store"]),
    ("store", Layer::Durability, &[]),
    ("asciicast", Layer::Core, ALL_CORE),
    ("recording", Layer::Core, ALL_CORE),
    ("tlog", Layer::Core, ALL_CORE),
    ("access", Layer::Core, ALL_CORE),
    ("tenant", Layer::Core, ALL_CORE),
    ("screen", Layer::Core, ALL_CORE),
    ("shutdown", Layer::Core, &[]),
    ("ids", Layer::Core, &[]),
    ("tell", Layer::Core, &[]),
    ("turns", Layer::Core, &[]),
];

/// The core looks at itself freely, but at nothing above.
const ALL_CORE: &[&str] = &[
    "asciicast",
    "recording",
    "tlog",
    "access",
    "tenant",
    "ids",
    "shutdown",
];

/// Rooms of `netstack/src/`: name, and the layer; each may look at its own layer and below.
const NETSTACK_ROOMS: &[(&str, NetLayer)] = &[
    ("lib", NetLayer::Front),
    ("sim", NetLayer::Shell),
    ("io", NetLayer::Shell),
    ("devnet", NetLayer::Shell),
    ("node", NetLayer::Node),
    ("control", NetLayer::Machines),
    ("path", NetLayer::Machines),
    ("relay", NetLayer::Machines),
    ("netcheck", NetLayer::Machines),
    ("wireguard", NetLayer::Machines),
    ("tcpip", NetLayer::Machines),
    ("netmap", NetLayer::Map),
    ("filter", NetLayer::Filter),
    ("noise", NetLayer::Wire),
    ("disco", NetLayer::Wire),
    ("derp", NetLayer::Wire),
    ("stun", NetLayer::Wire),
    ("tailcfg", NetLayer::Wire),
    ("key", NetLayer::Words),
];

/// Layers of the recorder; a room looks at lower ones only, save for what [`ROOMS`] adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Core,
    Durability,
    Edge,
    Wiring,
}

/// Layers of the tailnet node, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NetLayer {
    Words,
    Wire,
    Filter,
    Map,
    Machines,
    Node,
    Shell,
    Front,
}

/// Names that say nothing of what is in the file.
const BANNED_NAMES: &[&str] = &[
    "utils", "util", "helpers", "helper", "common", "misc", "manager",
];
const LINES_MAX: usize = 600;

/// A file: its path within the repository, `/` between the parts, and its text.
struct Source {
    path: String,
    text: String,
}

type Check = fn(&Source) -> Vec<String>;

/// All checks by name; `tidy/bent.rs` shows each of them to fail.
const CHECKS: &[(&str, Check)] = &[
    ("begins_with_its_purpose", begins_with_its_purpose),
    ("is_short", is_short),
    ("has_a_telling_name", has_a_telling_name),
    ("ignores_no_test", ignores_no_test),
    ("is_in_the_plan", is_in_the_plan),
    ("looks_downward", looks_downward),
    (
        "leaves_netstack_to_the_wiring",
        leaves_netstack_to_the_wiring,
    ),
    (
        "leaves_boringtun_to_wireguard",
        leaves_boringtun_to_wireguard,
    ),
    ("leaves_devnet_to_dev", leaves_devnet_to_dev),
    (
        "logs_errors_with_their_causes",
        logs_errors_with_their_causes,
    ),
    (
        "leaves_system_randomness_to_shells",
        leaves_system_randomness_to_shells,
    ),
];

#[test]
fn the_repository_keeps_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["src", "netstack", "tests", "fuzz"] {
        collect(root, &root.join(folder), &mut sources);
    }
    assert!(
        sources.len() > 10,
        "only {} files were found",
        sources.len()
    );
    let broken: Vec<String> = sources
        .iter()
        .flat_map(|source| {
            let complaints = CHECKS.iter().flat_map(|(_, check)| check(source));
            complaints
                .map(|complaint| format!("{}: {complaint}", source.path))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.ends_with("target") {
            collect(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).unwrap();
            let parts: Vec<_> = relative.iter().map(|part| part.to_str().unwrap()).collect();
            sources.push(Source {
                path: parts.join("/"),
                text: fs::read_to_string(&path).unwrap(),
            });
        }
    }
}

fn begins_with_its_purpose(source: &Source) -> Vec<String> {
    let first = source.text.lines().next().unwrap_or_default();
    let says_something = first
        .strip_prefix("//!")
        .is_some_and(|rest| rest.trim().len() > 3);
    complain(!says_something, "does not begin with //! and what it is")
}

fn is_short(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    complain(
        lines > LINES_MAX,
        format!("has {lines} lines, and may have {LINES_MAX}"),
    )
}

fn has_a_telling_name(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for part in source.path.trim_end_matches(".rs").split('/') {
        complaints.extend(complain(
            BANNED_NAMES.contains(&part),
            format!("is named {part}"),
        ));
        complaints.extend(complain(
            part == "mod",
            "is a mod.rs; room x is x.rs beside the folder x/",
        ));
    }
    for line in source.text.lines() {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| word.starts_with("pub"));
        let name = (words.next() == Some("mod"))
            .then(|| words.next())
            .flatten();
        let name = name.map(|name| name.trim_end_matches([';', '{']));
        let banned = name.filter(|name| BANNED_NAMES.contains(name));
        complaints.extend(banned.map(|name| format!("has a module named {name}")));
    }
    complaints
}

fn ignores_no_test(source: &Source) -> Vec<String> {
    let ignored = |line: &str| {
        let line = line.trim_start();
        line.starts_with("#[ignore") || (line.starts_with("#[cfg_attr(") && line.contains("ignore"))
    };
    complain(
        source.text.lines().any(ignored),
        "ignores a test; assert today's behaviour and mark it wrong",
    )
}

fn is_in_the_plan(source: &Source) -> Vec<String> {
    let planned = match room(&source.path) {
        Some(Room::Recorder(name)) => layer(name).is_some(),
        Some(Room::Netstack(name)) => net_layer(name).is_some(),
        None => true,
    };
    complain(
        !planned,
        "is no room of the plan; add it to the table at the top of tests/tidy.rs and to ARCHITECTURE.md",
    )
}

fn looks_downward(source: &Source) -> Vec<String> {
    let seen = rooms_named(&source.text);
    let forbidden = |name: &&String| match room(&source.path) {
        Some(Room::Recorder(own)) => !may_look(own, name),
        Some(Room::Netstack(own)) => match (net_layer(own), net_layer(name)) {
            (Some(own), Some(other)) => other > own,
            (None, _) | (_, None) => false,
        },
        None => false,
    };
    let upward = seen.iter().filter(forbidden);
    upward
        .map(|name| format!("looks at crate::{name}, which is not below it"))
        .collect()
}

fn leaves_netstack_to_the_wiring(source: &Source) -> Vec<String> {
    let above = match room(&source.path) {
        Some(Room::Recorder(own)) => layer(own) == Some(Layer::Wiring),
        Some(Room::Netstack(_)) | None => true,
    };
    complain(
        !above && names(&source.text, "netstack"),
        "names netstack, which only the wiring may",
    )
}

fn leaves_boringtun_to_wireguard(source: &Source) -> Vec<String> {
    let allowed = source.path.starts_with("netstack/src/wireguard") || room(&source.path).is_none();
    complain(
        !allowed && names(&source.text, "boringtun"),
        "names boringtun, which only wireguard.rs may",
    )
}

fn leaves_devnet_to_dev(source: &Source) -> Vec<String> {
    let allowed = match room(&source.path) {
        Some(Room::Recorder(name)) => name == "dev",
        Some(Room::Netstack(name)) => name == "devnet" || name == "lib",
        None => true,
    };
    let named = source.text.contains("netstack::devnet") || source.text.contains("crate::devnet");
    complain(
        !allowed && named && names(&source.text, "devnet"),
        "names devnet, which only dev and tests may",
    )
}

/// A log shows an error's own words alone, and of the store's errors the causes say what is wrong: `tell::with_causes` has them.
fn logs_errors_with_their_causes(source: &Source) -> Vec<String> {
    let Some(Room::Recorder(room)) = room(&source.path) else {
        return Vec::new();
    };
    let code = code_of(&source.text);
    let mut log_lines = code.match_indices("tracing::").filter_map(|(at, _)| {
        let call = &code[at..];
        let end = call.find(';').unwrap_or(call.len());
        let call = &call[..end];
        call.split_once("!(").map(|(_, arguments)| arguments)
    });
    let bare =
        |line: &str| line.contains("as &dyn") || (room == "store" && line.contains("%error"));
    complain(
        log_lines.any(bare),
        "logs an error without its causes; log tell::with_causes of it",
    )
}

/// The core of netstack draws from a seed that it is given; boringtun alone has its own way.
fn leaves_system_randomness_to_shells(source: &Source) -> Vec<String> {
    const SHELLS: [&str; 4] = ["io", "devnet", "key", "wireguard"];
    let pure = match room(&source.path) {
        Some(Room::Netstack(name)) => !SHELLS.contains(&name),
        Some(Room::Recorder(own)) => layer(own) == Some(Layer::Core),
        None => false,
    };
    let code = code_of(&source.text);
    let drawn = ["OsRng", "getrandom", "thread_rng"]
        .iter()
        .any(|name| code.contains(name));
    complain(
        pure && drawn,
        "draws from the system's randomness, which only shells may",
    )
}

fn complain(broken: bool, complaint: impl Into<String>) -> Vec<String> {
    broken.then(|| complaint.into()).into_iter().collect()
}

enum Room<'a> {
    Recorder(&'a str),
    Netstack(&'a str),
}

/// The room of a file of `src/` or `netstack/src/`; its tests may look anywhere.
fn room(path: &str) -> Option<Room<'_>> {
    if path.ends_with("/tests.rs") || path.contains("/tests/") {
        return None;
    }
    let first = |rest: &'static str| {
        let inside = path.strip_prefix(rest)?;
        inside
            .split('/')
            .next()
            .map(|name| name.trim_end_matches(".rs"))
    };
    first("src/")
        .map(Room::Recorder)
        .or_else(|| first("netstack/src/").map(Room::Netstack))
}

fn layer(name: &str) -> Option<Layer> {
    ROOMS
        .iter()
        .find(|(room, ..)| *room == name)
        .map(|(_, layer, _)| *layer)
}

fn net_layer(name: &str) -> Option<NetLayer> {
    NETSTACK_ROOMS
        .iter()
        .find(|(room, _)| *room == name)
        .map(|(_, layer)| *layer)
}

/// Whether room `own` of the recorder may look at `other`. Words that are no room are items of the front page.
fn may_look(own: &str, other: &str) -> bool {
    let Some((_, layer_of_own, beside)) = ROOMS.iter().find(|(room, ..)| *room == own) else {
        return true;
    };
    let Some(layer_of_other) = layer(other) else {
        return true;
    };
    own == other
        || *layer_of_own == Layer::Wiring
        || layer_of_other < *layer_of_own
        || beside.contains(&other)
}

/// The first words behind `crate::` in code: `crate::a::b`, `crate::{a::b, c}`.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let code = code_of(text);
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => names.extend(first_word(rest)),
            Some(group) => names.extend(members(group).into_iter().filter_map(first_word)),
        }
    }
    names
}

/// The members of a use group whose opening brace was read, nested groups left whole.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (0_usize, 0, Vec::new());
    for (at, sign) in group.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[start..at]);
                start = at + 1;
            }
            '}' => {
                members.push(&group[start..at]);
                break;
            }
            _ => {}
        }
    }
    members
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text
        .trim_start()
        .chars()
        .take_while(|sign| sign.is_alphanumeric() || *sign == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

/// Whether code names a crate or module as the head or middle of a path.
fn names(text: &str, name: &str) -> bool {
    let code = code_of(text);
    let word = |sign: char| sign.is_alphanumeric() || sign == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let whole = !before.is_some_and(word) && !after.starts_with(word);
        whole && (after.starts_with("::") || before.is_some_and(|sign| sign == ':' || sign == ' '))
    })
}

/// The text without comments and without a trailing module of tests.
fn code_of(text: &str) -> String {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    code.lines()
        .map(|line| match line.find("//") {
            Some(at) if !line[..at].contains('"') => &line[..at],
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[path = "tidy/bent.rs"]
mod bent;

#[path = "tidy/operations.rs"]
mod operations;
