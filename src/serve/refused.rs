//! What the system refuses of the places that the settings chose, as an error that names the setting.
//!
//! Invariant: a start and `--check` tell the same of the same place. Called by both.

use netstack::io::keystore::KeyStoreError;

use crate::config::Config;
use crate::status::StatusError;

/// What fails when the socket does.
pub(super) const SOCKET: &str = "cannot serve status, health and drain";

/// Of the state.
pub(super) fn state(config: &Config, error: KeyStoreError) -> anyhow::Error {
    let dir = &config.state;
    let context = format!("cannot keep the recorder's state in {}", dir.display());
    let said = match &error {
        KeyStoreError::File { source, .. } => Some(source.kind()),
        KeyStoreError::InUse { .. }
        | KeyStoreError::Name { .. }
        | KeyStoreError::Full { .. }
        | KeyStoreError::Damaged { .. }
        | KeyStoreError::OtherControl { .. } => None,
    };
    let error = match said {
        Some(said) => config.refused_place("state", dir, said, error),
        None => error.into(),
    };
    error.context(context)
}

/// Of the socket.
pub(super) fn socket(config: &Config, error: StatusError) -> anyhow::Error {
    let said = match &error {
        StatusError::System { source, .. } => Some(source.kind()),
        StatusError::InUse { .. }
        | StatusError::NoSocket { .. }
        | StatusError::NotServed { .. }
        | StatusError::Http { .. }
        | StatusError::Unanswered { .. }
        | StatusError::Answer { .. } => None,
    };
    let error = match said {
        Some(said) => config.refused_place("socket", &config.socket, said, error),
        None => error.into(),
    };
    error.context(SOCKET)
}
