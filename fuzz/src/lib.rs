//! One function for each decoder of bytes that we did not write: it must neither panic nor break
//! what it promises, whatever the bytes.
//!
//! Called by the binaries in `fuzz_targets/`, and by `tests/corpus.rs`, which includes this file and
//! replays the committed corpus with no fuzzing engine. A new decoder: a function here, its line in
//! [`TARGETS`], its five lines in `fuzz_targets/`, its `[[bin]]`, and seeds in `corpus/<name>/`.
//!
//! A decoder behind a seal (a box, a digest, a length) is called twice: with the bytes as they are,
//! and with the seal put right, so that the engine reaches what lies behind. A state machine takes
//! the bytes as a [`Script`](script::Script).
#![forbid(unsafe_code)]

mod content;
mod control;
mod derp;
mod disco;
mod journal;
mod netcheck;
mod netmap;
mod node;
mod noise;
mod path;
mod records;
mod script;
mod segment;
mod stun;
mod tcpip;
mod text;
mod upload;
mod wireguard;

/// A decoder, by the name of its binary and of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All decoders.
pub const TARGETS: &[Target] = &[
    ("ack_frames", upload::ack_frames),
    ("asciicast", content::asciicast),
    ("control_map", control::control_map),
    ("control_register", control::control_register),
    ("derp_client", derp::derp_client),
    ("derp_frame", derp::derp_frame),
    ("disco_datagram", disco::disco_datagram),
    ("disco_message", disco::disco_message),
    ("filter_packet", netmap::filter_packet),
    ("journal_frame", journal::journal_frame),
    ("journal_object", journal::journal_object),
    ("manifest_json", journal::manifest_json),
    ("netcheck", netcheck::netcheck),
    ("netmap_json", netmap::netmap_json),
    ("node", node::node),
    ("noise_early", noise::noise_early),
    ("noise_initiation", noise::noise_initiation),
    ("noise_records", noise::noise_records),
    ("noise_response", noise::noise_response),
    ("path", path::path),
    ("records_json", records::records_json),
    ("stun_message", stun::stun_message),
    ("tcpip_packet", tcpip::tcpip_packet),
    ("tcpip_segment", tcpip::tcpip_segment),
    ("text_forms", text::text_forms),
    ("unpack", journal::unpack),
    ("upload", upload::upload),
    ("wireguard", wireguard::wireguard),
];

/// Runs one target by name; the binaries call it.
///
/// # Panics
/// If there is no such target, or the decoder breaks a promise.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, decode) = target.unwrap_or_else(|| panic!("no target {name}"));
    decode(data);
}
