//! Straight and bent samples: a check that cannot fail checks nothing.

use super::{CHECKS, LINES_MAX, Source};

/// Check, path, text, and whether the check is content with it. A text of [`TOO_LONG`] stands for more lines than allowed.
const SAMPLES: &[(&str, &str, &str, bool)] = &[
    (
        "begins_with_its_purpose",
        "src/ids.rs",
        "//! What it is.\n",
        true,
    ),
    (
        "begins_with_its_purpose",
        "src/ids.rs",
        "use std::fs;\n//! Late.\n",
        false,
    ),
    ("begins_with_its_purpose", "src/ids.rs", "//!\n", false),
    ("begins_with_its_purpose", "src/ids.rs", "", false),
    ("is_short", "src/ids.rs", "//! Short.\n", true),
    ("is_short", "src/ids.rs", TOO_LONG, false),
    (
        "has_a_telling_name",
        "src/store/journal.rs",
        "mod tests;\npub(crate) mod frame;",
        true,
    ),
    ("has_a_telling_name", "src/store/utils.rs", "", false),
    ("has_a_telling_name", "src/helpers/x.rs", "", false),
    ("has_a_telling_name", "src/store/mod.rs", "", false),
    ("has_a_telling_name", "src/ids.rs", "    mod common;", false),
    (
        "has_a_telling_name",
        "src/ids.rs",
        "pub(crate) mod misc {",
        false,
    ),
    (
        "ignores_no_test",
        "tests/x.rs",
        "// We do not use #[ignore].\n#[test]",
        true,
    ),
    (
        "ignores_no_test",
        "tests/x.rs",
        "#[test]\n    #[ignore = \"slow\"]",
        false,
    ),
    (
        "ignores_no_test",
        "tests/x.rs",
        "#[cfg_attr(unix, ignore)]",
        false,
    ),
    ("is_in_the_plan", "src/store/journal.rs", "", true),
    ("is_in_the_plan", "netstack/src/io/udp.rs", "", true),
    ("is_in_the_plan", "tests/anything.rs", "", true),
    ("is_in_the_plan", "src/kitchen.rs", "", false),
    ("is_in_the_plan", "netstack/src/kitchen/sink.rs", "", false),
    (
        "looks_downward",
        "src/ingest/upload.rs",
        "use crate::{ids::RecordingId, store};\nuse crate::asciicast::Header;",
        true,
    ),
    (
        "looks_downward",
        "src/ingest/upload.rs",
        "use crate::console::Page;",
        false,
    ),
    (
        "looks_downward",
        "src/store.rs",
        "use crate::{\n    ids,\n    recording::{frame, seal},\n    catalog::Entry,\n};",
        false,
    ),
    (
        "looks_downward",
        "src/store.rs",
        "fn f() { crate::ingest::go() }",
        false,
    ),
    (
        "looks_downward",
        "src/store.rs",
        "// Never use crate::ingest here.",
        true,
    ),
    (
        "looks_downward",
        "src/store.rs",
        "fn f() {}\n#[cfg(test)]\nmod tests {\n use crate::ingest::X; }",
        true,
    ),
    (
        "looks_downward",
        "src/catalog.rs",
        "use crate::store::Reader;",
        true,
    ),
    (
        "looks_downward",
        "src/ids.rs",
        "use crate::recording::Frame;",
        false,
    ),
    (
        "looks_downward",
        "src/serve.rs",
        "use crate::{ingest, dev};",
        true,
    ),
    (
        "looks_downward",
        "netstack/src/node.rs",
        "use crate::netmap::Netmap;",
        true,
    ),
    (
        "looks_downward",
        "netstack/src/filter.rs",
        "use crate::netmap::Netmap;",
        false,
    ),
    (
        "looks_downward",
        "netstack/src/tailcfg/map.rs",
        "use crate::{key, io};",
        false,
    ),
    (
        "leaves_netstack_to_the_wiring",
        "src/dev.rs",
        "use netstack::io::Tailnet;",
        true,
    ),
    (
        "leaves_netstack_to_the_wiring",
        "src/ingest.rs",
        "let netstack_bytes = 1; // netstack::io",
        true,
    ),
    (
        "leaves_netstack_to_the_wiring",
        "src/ingest.rs",
        "use netstack::io::Tailnet;",
        false,
    ),
    (
        "leaves_netstack_to_the_wiring",
        "src/ingest.rs",
        "use netstack as net;",
        false,
    ),
    (
        "leaves_boringtun_to_wireguard",
        "netstack/src/wireguard.rs",
        "use boringtun::noise::Tunn;",
        true,
    ),
    (
        "leaves_boringtun_to_wireguard",
        "netstack/src/node.rs",
        "//! Not boringtun::noise.",
        true,
    ),
    (
        "leaves_boringtun_to_wireguard",
        "netstack/src/node.rs",
        "use boringtun::noise::Tunn;",
        false,
    ),
    (
        "logs_errors_with_their_causes",
        "src/store/x.rs",
        "tracing::warn!(%name, error = error.with_causes(), \"x\"); f(&error as &dyn Error);",
        true,
    ),
    (
        "logs_errors_with_their_causes",
        "src/status.rs",
        "tracing::debug!(%error, \"an io::Error has no cause\")",
        true,
    ),
    (
        "logs_errors_with_their_causes",
        "src/ingest/x.rs",
        "tracing::error!(\n    error = &*error as &dyn std::error::Error,\n    \"x\"\n);",
        false,
    ),
    (
        "logs_errors_with_their_causes",
        "src/store/x.rs",
        "Err(error) => tracing::warn!(%name, %error, \"x\"),",
        false,
    ),
    (
        "leaves_system_randomness_to_shells",
        "netstack/src/io/keystore.rs",
        "use rand_core::OsRng;",
        true,
    ),
    (
        "leaves_system_randomness_to_shells",
        "netstack/src/node.rs",
        "use rand_core::{OsRng, RngCore};",
        false,
    ),
    (
        "leaves_system_randomness_to_shells",
        "src/ids.rs",
        "let mut rng = rand_core::OsRng;",
        false,
    ),
    (
        "leaves_devnet_to_dev",
        "src/dev.rs",
        "use netstack::devnet::Devnet;",
        true,
    ),
    (
        "leaves_devnet_to_dev",
        "src/serve.rs",
        "use netstack::devnet::Devnet;",
        false,
    ),
    (
        "leaves_devnet_to_dev",
        "netstack/src/io.rs",
        "use crate::devnet::Devnet;",
        false,
    ),
];

const TOO_LONG: &str = "too long";

#[test]
fn each_check_fails_on_a_bent_file_and_passes_a_straight_one() {
    for (name, path, text, straight) in SAMPLES {
        let (_, check) = CHECKS.iter().find(|(check, _)| check == name).unwrap();
        let text = match *text {
            TOO_LONG => "//! A file.\n".repeat(LINES_MAX + 1),
            text => text.to_owned(),
        };
        let source = Source {
            path: (*path).to_owned(),
            text,
        };
        let complaints = check(&source);
        assert_eq!(
            complaints.is_empty(),
            *straight,
            "{name} of {path}: {complaints:?}"
        );
    }
}

#[test]
fn every_check_is_shown_to_fail_and_to_pass() {
    for (name, _) in CHECKS {
        for straight in [true, false] {
            let shown = SAMPLES
                .iter()
                .any(|(check, _, _, outcome)| check == name && *outcome == straight);
            assert!(shown, "no sample shows {name} to be {straight}");
        }
    }
}
