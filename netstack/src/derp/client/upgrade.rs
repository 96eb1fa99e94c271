//! The HTTP/1.1 upgrade by which a connection to a relay begins: request out, answer in.
//!
//! Invariant: at most [`HEAD_BYTES_MAX`] bytes of head and [`BODY_BYTES_MAX`] of a refusal's body are kept,
//! and what the DERP map says cannot add a line to the request. Called by `derp::client`.

use std::net::Ipv6Addr;

use bytes::Bytes;

use super::{BODY_BYTES_MAX, DerpClientError, HEAD_BYTES_MAX};

/// Headers of an answer; a relay sends a handful.
const HEADERS_MAX: usize = 64;
/// Longest host name (RFC 1035), and room for an IPv6 address.
const HOST_BYTES_MAX: usize = 255;

/// The request. `ideal_node` names the region's first node, if this is another one.
pub(super) fn request(host: &str, ideal_node: Option<&str>) -> Result<Bytes, DerpClientError> {
    if !is_token(host) {
        return Err(DerpClientError::Host {
            host: host.chars().take(HOST_BYTES_MAX).collect(),
        });
    }
    let host = match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => host.to_owned(),
    };
    let mut text =
        format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n");
    // It serves the relay's statistics only, so a name that cannot be sent is left out.
    if let Some(name) = ideal_node.filter(|name| is_token(name)) {
        text.push_str("Ideal-Node: ");
        text.push_str(name);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    Ok(text.into())
}

/// Whether it can stand in a header: printable, no blanks.
fn is_token(text: &str) -> bool {
    (1..=HOST_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// How far the answer is.
#[derive(Debug)]
pub(super) enum Answer {
    /// Part of the head.
    Head(Vec<u8>),
    /// A refusal, whose body is still to come.
    Body {
        status: u16,
        body: Vec<u8>,
        wanted_bytes: usize,
    },
}

/// What more bytes of the answer led to.
pub(super) enum Step<'a> {
    /// Not yet decided.
    More,
    /// 101; what follows is DERP.
    Switched(&'a [u8]),
}

impl Answer {
    pub(super) fn new() -> Self {
        Self::Head(Vec::new())
    }

    /// Takes the next bytes.
    pub(super) fn push<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<'a>, DerpClientError> {
        match self {
            Self::Head(head) => {
                let kept_bytes = head.len();
                let room = HEAD_BYTES_MAX.saturating_sub(kept_bytes);
                let (taken, _) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
                head.extend_from_slice(taken);
                let Some((status, head_bytes, length)) = parse(head)? else {
                    if taken.len() < bytes.len() || head.len() >= HEAD_BYTES_MAX {
                        return Err(DerpClientError::HeadTooLong);
                    }
                    return Ok(Step::More);
                };
                let rest = bytes
                    .get(head_bytes.saturating_sub(kept_bytes)..)
                    .unwrap_or_default();
                if status == 101 {
                    return Ok(Step::Switched(rest));
                }
                *self = Self::Body {
                    status,
                    body: Vec::new(),
                    wanted_bytes: length.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX),
                };
                self.push(rest)
            }
            Self::Body {
                body, wanted_bytes, ..
            } => {
                let room = wanted_bytes.saturating_sub(body.len());
                let taken = bytes.get(..room).unwrap_or(bytes);
                body.extend_from_slice(taken);
                if body.len() >= *wanted_bytes {
                    return Err(self.refused().unwrap_or(DerpClientError::Closed));
                }
                Ok(Step::More)
            }
        }
    }

    /// The refusal, with as much of its body as has come.
    pub(super) fn refused(&self) -> Option<DerpClientError> {
        match self {
            Self::Head(_) => None,
            Self::Body { status, body, .. } => Some(DerpClientError::Refused {
                status: *status,
                body: printable(body),
            }),
        }
    }
}

/// Status, length of the head, and length of the body where it is said; `None` until the head is whole.
fn parse(head: &[u8]) -> Result<Option<(u16, usize, Option<usize>)>, DerpClientError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response
        .parse(head)
        .map_err(|error| DerpClientError::Http {
            reason: match error {
                httparse::Error::HeaderName => "a header's name is invalid",
                httparse::Error::HeaderValue => "a header's value is invalid",
                httparse::Error::NewLine => "a line ends wrongly",
                httparse::Error::Status => "the status is invalid",
                httparse::Error::Token => "it does not begin with a status line",
                httparse::Error::TooManyHeaders => "it has too many headers",
                httparse::Error::Version => "the version is another one",
            },
        })?;
    let httparse::Status::Complete(head_bytes) = parsed else {
        return Ok(None);
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| str::from_utf8(header.value).ok()?.trim().parse().ok());
    Ok(Some((response.code.unwrap_or(0), head_bytes, length)))
}

/// Text of a stranger, made harmless for logs and terminals.
pub(super) fn printable(text: &[u8]) -> String {
    let text = text.get(..BODY_BYTES_MAX).unwrap_or(text);
    String::from_utf8_lossy(text)
        .trim()
        .chars()
        .flat_map(char::escape_debug)
        .collect()
}
