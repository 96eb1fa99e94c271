//! Replays the committed fuzz corpus through the fuzzed functions, with no fuzzing engine: what
//! once broke a decoder stays mended. Run by `cargo test`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program: to panic is to fail"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[expect(
    unreachable_pub,
    reason = "public for the fuzz binaries, which are another crate"
)]
#[path = "../fuzz/src/lib.rs"]
mod decoders;

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn every_committed_input_keeps_its_decoder_whole() {
    for (target, _) in decoders::TARGETS {
        let folder = fuzz_folder().join("corpus").join(target);
        let inputs = names_in(&folder);
        assert!(!inputs.is_empty(), "corpus/{target} has no seeds");
        for input in inputs {
            let bytes = fs::read(folder.join(&input)).unwrap();
            let outcome = std::panic::catch_unwind(|| decoders::run(target, &bytes));
            assert!(
                outcome.is_ok(),
                "corpus/{target}/{input} breaks its decoder"
            );
        }
    }
}

#[test]
fn every_decoder_has_its_binary_and_its_corpus_and_none_is_left_over() {
    let targets: BTreeSet<String> = decoders::TARGETS
        .iter()
        .map(|(target, _)| (*target).to_owned())
        .collect();
    assert_eq!(
        targets.len(),
        decoders::TARGETS.len(),
        "a target is listed twice"
    );
    let binaries = names_in(&fuzz_folder().join("fuzz_targets"));
    let expected = targets
        .iter()
        .map(|target| format!("{target}.rs"))
        .collect();
    assert_eq!(binaries, expected);
    assert_eq!(names_in(&fuzz_folder().join("corpus")), targets);
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for target in &targets {
        let line = format!("path = \"fuzz_targets/{target}.rs\"");
        assert!(manifest.contains(&line), "fuzz/Cargo.toml lacks {line}");
    }
}
