//! What one asks a catalog for, and what it answers.
//!
//! Invariant: what the tailnet says of the uploader and what the uploader claims stand apart in an entry. Pure; `now` is an argument. Called by the
//! catalog and by `ls`.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;
use thiserror::Error;

use crate::ids::RecordingId;
use crate::recording::manifest::{Manifest, SourceNode, rfc3339};
use crate::recording::seal::HexDigest;

/// What to look for; an absent part matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// A node: StableID, MagicDNS name or its first label; the uploader, or the node that the session is claimed to come from.
    pub node: Option<String>,
    /// A login name: the uploader's owner, or the person whose session it is claimed to be.
    pub user: Option<String>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
    /// Received before this time.
    pub until: Option<Timestamp>,
    /// At most so many entries, the newest.
    pub limit: usize,
}

/// One recording in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its id.
    pub id: RecordingId,
    /// When the upload opened.
    #[serde(with = "rfc3339")]
    pub received_at: Timestamp,
    /// When it ended.
    #[serde(with = "rfc3339")]
    pub ended_at: Timestamp,
    /// The node that uploaded, as the tailnet says.
    pub node: String,
    /// Its StableID.
    pub stable_id: String,
    /// Who owns it, as the tailnet says; none for a tagged node.
    pub owner: Option<String>,
    /// Its tags, as the tailnet says.
    pub tags: Vec<String>,
    /// Whose session it is, as the uploader claims.
    pub claimed: Claimed,
    /// What the tailnet said of the node that is claimed; that the session came from there nobody proved.
    pub source_node: Option<SourceNode>,
    /// The length of the stream.
    pub bytes: u64,
    /// Its events.
    pub events: u64,
    /// What was noticed.
    pub flags: Vec<String>,
    /// SHA-256 of the stream.
    pub cast_sha256: HexDigest,
    /// The manifest's object name.
    pub manifest: String,
}

/// What the uploader says of the session. Nothing proves it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Claimed {
    /// Whose session it is: a login name.
    pub user: Option<String>,
    /// The name of the node that it came from.
    pub src_node: Option<String>,
    /// The user on the host.
    pub local_user: Option<String>,
}

impl Entry {
    /// The entry of a manifest.
    #[must_use]
    pub fn of(manifest: Manifest, name: String) -> Self {
        let claimed = |key: &str| {
            let text = manifest.claimed.as_ref()?.get(key)?.as_str()?;
            (!text.is_empty()).then(|| text.to_owned())
        };
        Self {
            claimed: Claimed {
                user: claimed("srcNodeUser"),
                src_node: claimed("srcNode").map(|node| node.trim_end_matches('.').to_owned()),
                local_user: claimed("localUser"),
            },
            id: manifest.recording_id,
            received_at: manifest.received_at,
            ended_at: manifest.ended_at,
            node: manifest.uploader.node_name,
            stable_id: manifest.uploader.stable_id,
            owner: manifest.uploader.user.map(|user| user.login),
            tags: manifest.uploader.tags,
            source_node: manifest.source_node,
            bytes: manifest.bytes,
            events: manifest.event_count,
            flags: manifest.flags,
            cast_sha256: manifest.cast_sha256,
            manifest: name,
        }
    }

    /// How long the upload was open; zero when the clock went back.
    #[must_use]
    pub fn duration(&self) -> Duration {
        let duration = self.ended_at.duration_since(self.received_at);
        Duration::try_from(duration).unwrap_or_default()
    }
}

impl Query {
    /// Whether some moment is within the times.
    ///
    /// # Errors
    /// [`TimeError::Empty`].
    pub fn check(self) -> Result<Self, TimeError> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if since >= until => Err(TimeError::Empty { since, until }),
            _ => Ok(self),
        }
    }

    /// Whether the entry is one of those.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        let node = self.node.as_deref().is_none_or(|node| {
            entry.stable_id == node
                || is_named(&entry.node, node)
                || entry
                    .claimed
                    .src_node
                    .as_deref()
                    .is_some_and(|name| is_named(name, node))
        });
        let user = self.user.as_deref().is_none_or(|user| {
            let names = [entry.owner.as_deref(), entry.claimed.user.as_deref()];
            names
                .into_iter()
                .flatten()
                .any(|name| name.eq_ignore_ascii_case(user))
        });
        node && user
            && self.since.is_none_or(|since| entry.received_at >= since)
            && self.until.is_none_or(|until| entry.received_at < until)
    }
}

/// Whether a MagicDNS name is the one asked for, whole or by its first label.
fn is_named(name: &str, asked: &str) -> bool {
    let asked = asked.trim_end_matches('.');
    let label = name.split('.').next().unwrap_or_default();
    name.eq_ignore_ascii_case(asked) || label.eq_ignore_ascii_case(asked)
}

/// Times that cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TimeError {
    /// A text is no time.
    #[error(
        "{text:?} is no time: write 2026-11-20T10:15:00Z, 2026-11-20 (UTC), or how long ago, as in 90m, 12h or 7d"
    )]
    Unreadable {
        /// As given.
        text: String,
    },
    /// No moment is both at or after one and before the other.
    #[error("nothing is from {since} or later and before {until}")]
    Empty {
        /// From here.
        since: Timestamp,
        /// Until before here.
        until: Timestamp,
    },
}

impl TimeError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "give --since and --until such a time",
            Self::Empty { .. } => "give --since an earlier time than --until",
        }
    }
}

/// Reads a time as people write it: RFC 3339, a day in UTC, or how long before `now`.
///
/// # Errors
/// It is none of them.
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, TimeError> {
    let ago = || {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: i64 = digits.parse().ok().filter(|number| *number >= 0)?;
        let seconds: i64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        let ago = jiff::SignedDuration::from_secs(number.checked_mul(seconds)?);
        now.checked_sub(ago).ok()
    };
    let day = || {
        let day: Date = text.parse().ok()?;
        let start = day.to_zoned(TimeZone::UTC).ok()?;
        Some(start.timestamp())
    };
    let whole = || text.parse::<Timestamp>().ok();
    // A time without a zone reads as a date too, and must not lose its hour.
    let is_day = text.len() == "2026-11-20".len();
    let time = ago().or_else(whole).or_else(|| is_day.then(day).flatten());
    time.ok_or_else(|| TimeError::Unreadable {
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../tests/vectors/manifest.json");

    fn entry() -> Entry {
        let manifest = Manifest::decode(GOLDEN.as_bytes()).unwrap();
        let mut entry = Entry::of(manifest, "recordings/x.json".into());
        entry.owner = None;
        entry.claimed.user = Some("alice@example.com".into());
        entry.claimed.src_node = Some("laptop.tail-scale.ts.net".into());
        entry
    }

    fn all() -> Query {
        Query {
            node: None,
            user: None,
            since: None,
            until: None,
            limit: 10,
        }
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_node_is_found_by_id_name_or_label_and_a_user_by_login() {
        for (node, found) in [
            ("nAbCdEfCNTRL", true),
            ("web", true),
            ("WEB.tail-scale.ts.net.", true),
            ("laptop", true),
            ("we", false),
            ("nabcdefcntrl", false),
        ] {
            let query = Query {
                node: Some(node.into()),
                ..all()
            };
            assert_eq!(query.matches(&entry()), found, "{node}");
        }
        for (user, found) in [("Alice@example.com", true), ("alice", false)] {
            let query = Query {
                user: Some(user.into()),
                ..all()
            };
            assert_eq!(query.matches(&entry()), found, "{user}");
        }
    }

    #[test]
    fn what_is_proven_and_what_is_claimed_have_keys_of_their_own() {
        let mut manifest = Manifest::decode(GOLDEN.as_bytes()).unwrap();
        manifest.claimed = Some(serde_json::json!({
            "srcNode": "eve.ts.net.", "srcNodeUser": "root@example.com", "localUser": "root",
        }));
        let uploader = manifest.uploader.clone();
        let entry = serde_json::to_value(Entry::of(manifest, "x.json".into())).unwrap();
        let claimed = serde_json::json!({
            "user": "root@example.com", "src_node": "eve.ts.net", "local_user": "root",
        });
        assert_eq!(entry["claimed"], claimed);
        assert_eq!(entry["node"], uploader.node_name);
        assert_eq!(
            entry["owner"],
            serde_json::json!(uploader.user.map(|user| user.login))
        );
        assert_eq!(entry["tags"], serde_json::json!(uploader.tags));
        let keys = ["user", "src_node", "local_user"];
        assert!(keys.iter().all(|key| entry.get(key).is_none()), "{entry}");
    }

    #[test]
    fn since_includes_its_moment_and_until_does_not() {
        let received = entry().received_at;
        let second = jiff::SignedDuration::from_secs(1);
        for (since, until, found) in [
            (Some(received), None, true),
            (None, Some(received), false),
            (Some(received - second), Some(received + second), true),
            (Some(received + second), None, false),
        ] {
            let query = Query {
                since,
                until,
                ..all()
            };
            assert_eq!(query.matches(&entry()), found);
        }
    }

    #[test]
    fn times_between_which_nothing_is_are_a_mistake() {
        let moment = time("2026-11-20T10:15:00Z");
        let second = jiff::SignedDuration::from_secs(1);
        for (since, until, is_right) in [
            (Some(moment), Some(moment), false),
            (Some(moment), Some(moment - second), false),
            (Some(moment), Some(moment + second), true),
            (None, Some(moment), true),
            (Some(moment), None, true),
        ] {
            let query = Query {
                since,
                until,
                ..all()
            };
            assert_eq!(query.check().is_ok(), is_right, "{since:?} {until:?}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = time("2026-11-21T12:00:00Z");
        for (text, expected) in [
            ("2026-11-20T10:15:00Z", "2026-11-20T10:15:00Z"),
            ("2026-11-20T10:15:00+02:00", "2026-11-20T08:15:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("90m", "2026-11-21T10:30:00Z"),
            ("7d", "2026-11-14T12:00:00Z"),
        ] {
            assert_eq!(parse_time(text, now), Ok(time(expected)), "{text}");
        }
        for text in [
            "",
            "d",
            "yesterday",
            "-1d",
            "9999999999999999d",
            "2026-11-20T10:15",
            "ä",
        ] {
            assert!(parse_time(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn the_duration_of_a_recording_is_never_negative() {
        assert_eq!(entry().duration(), Duration::from_millis(59_877));
        let mut back = entry();
        back.ended_at = back.received_at - jiff::SignedDuration::from_secs(5);
        assert_eq!(back.duration(), Duration::ZERO);
    }
}
