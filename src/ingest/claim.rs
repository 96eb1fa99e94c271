//! Whose session it is: the header's claim, beside what the tailnet says of the node that it names.
//!
//! Invariants: pure; holds at most one header line, and nothing once it has been read; a header changes nothing about how its recording is taken. Fed by
//! the [`session`](super::session) with what it appends.

use std::net::IpAddr;
use std::sync::Arc;

use super::sink::SourceNode;
use crate::access::UserIdentity;
use crate::asciicast::Header;

/// Longest header that is read for its claim. A stock one is under 2 KiB.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Longest StableID that is looked up.
const STABLE_ID_BYTES_MAX: usize = 64;
/// The flag of a recording whose header says otherwise than the tailnet.
pub(super) const MISMATCH_FLAG: &str = "source_mismatch";

/// What the tailnet says of a node now, by its StableID; `None` if this recorder does not see such a node.
pub type Directory = Arc<dyn Fn(&str) -> Option<NodeFacts> + Send + Sync>;

/// A node as the netmap has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its MagicDNS name, without a trailing dot.
    pub node_name: String,
    /// Who owns it; absent for a tagged node.
    pub user: Option<UserIdentity>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its tailnet addresses.
    pub addresses: Vec<IpAddr>,
}

/// Gathers the first line of a recording.
#[derive(Debug, Default)]
pub(super) struct ClaimReader {
    line: Vec<u8>,
}

/// What the reader knows by now.
#[derive(Debug, PartialEq)]
pub(super) enum Claim {
    /// The line has not ended.
    Unfinished(ClaimReader),
    Header(Box<Header>),
    /// There is no header that could be read.
    Nothing,
}

impl PartialEq for ClaimReader {
    fn eq(&self, other: &Self) -> bool {
        self.line == other.line
    }
}

impl ClaimReader {
    /// The next bytes of the recording.
    pub(super) fn read(mut self, bytes: &[u8]) -> Claim {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
        if self.line.len().saturating_add(part.len()) > HEADER_BYTES_MAX {
            return Claim::Nothing;
        }
        self.line.extend_from_slice(part);
        match (end, Header::parse(&self.line)) {
            (None, _) => Claim::Unfinished(self),
            (Some(_), Ok(header)) => Claim::Header(Box::new(header)),
            (Some(_), Err(_)) => Claim::Nothing,
        }
    }
}

/// What the tailnet says of the node that `header` names, and where the header says otherwise. Nothing if it names none.
pub(super) fn source_node(header: &Header, directory: &Directory) -> Option<SourceNode> {
    let stable_id = header.src_node_id.as_str();
    if stable_id.is_empty() || stable_id.len() > STABLE_ID_BYTES_MAX {
        return None;
    }
    let Some(facts) = directory(stable_id) else {
        return Some(SourceNode {
            stable_id: stable_id.to_owned(),
            found: false,
            node_name: String::new(),
            user: None,
            tags: Vec::new(),
            addresses: Vec::new(),
            // A recorder sees only the nodes that may reach it: not to see one is no contradiction.
            mismatch: Vec::new(),
        });
    };
    Some(SourceNode {
        mismatch: mismatch(header, &facts),
        stable_id: stable_id.to_owned(),
        found: true,
        node_name: facts.node_name,
        user: facts.user,
        tags: facts.tags,
        addresses: facts.addresses,
    })
}

/// The header's keys that say otherwise than the tailnet. What the header leaves out says nothing.
fn mismatch(header: &Header, facts: &NodeFacts) -> Vec<String> {
    let user = facts.user.as_ref();
    let mut claimed_tags = header.src_node_tags.clone();
    let mut tags = facts.tags.clone();
    claimed_tags.sort_unstable();
    tags.sort_unstable();
    let claimed_id = header.src_node_user_id;
    let claimed_user = header.src_node_user.as_str();
    let claims = [
        (
            "srcNode",
            !header.src_node.is_empty() && header.src_node != facts.node_name,
        ),
        (
            "srcNodeTags",
            !claimed_tags.is_empty() && claimed_tags != tags,
        ),
        (
            "srcNodeUserID",
            claimed_id != 0 && user.is_none_or(|user| user.id != claimed_id),
        ),
        (
            "srcNodeUser",
            !claimed_user.is_empty() && user.is_none_or(|user| user.login != claimed_user),
        ),
    ];
    let wrong = claims.into_iter().filter(|(_, wrong)| *wrong);
    wrong.map(|(key, _)| key.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = br#"{"version":2,"srcNode":"laptop.ts.net","srcNodeID":"nAbc","srcNodeUserID":30585448562688899,"srcNodeUser":"alice@example.com"}"#;

    fn facts() -> NodeFacts {
        NodeFacts {
            node_name: "laptop.ts.net".to_owned(),
            user: Some(UserIdentity {
                id: 30_585_448_562_688_899,
                login: "alice@example.com".to_owned(),
                display_name: "Alice".to_owned(),
            }),
            tags: Vec::new(),
            addresses: vec![[100, 64, 0, 9].into()],
        }
    }

    #[test]
    fn a_header_is_read_however_it_is_cut_and_nothing_behind_it() {
        let stream = [LINE, b"\n[0,\"o\",\"x\"]\n"].concat();
        let header = Header::parse(LINE).unwrap();
        for size in 1..=stream.len() {
            let mut reader = ClaimReader::default();
            let mut pieces = stream.chunks(size);
            let claim = loop {
                match reader.read(pieces.next().unwrap()) {
                    Claim::Unfinished(more) => reader = more,
                    done @ (Claim::Header(_) | Claim::Nothing) => break done,
                }
            };
            assert_eq!(claim, Claim::Header(Box::new(header.clone())));
        }
    }

    #[test]
    fn what_is_no_header_is_given_up_and_no_more_than_the_limit_is_held() {
        let read = |bytes: &[u8]| ClaimReader::default().read(bytes);
        assert_eq!(read(b"hello\n"), Claim::Nothing);
        assert_eq!(read(b"\n"), Claim::Nothing);
        let Claim::Unfinished(full) = read(&vec![b' '; HEADER_BYTES_MAX]) else {
            panic!("within the limit");
        };
        assert_eq!(full.read(b"x"), Claim::Nothing);
        assert_eq!(read(&vec![b'x'; HEADER_BYTES_MAX + 1]), Claim::Nothing);
    }

    #[test]
    fn each_claim_that_the_tailnet_contradicts_is_named() {
        type Change = fn(&mut NodeFacts);
        let table: [(Change, &[&str]); 6] = [
            (|_| {}, &[]),
            (
                |facts| facts.node_name = "other.ts.net".to_owned(),
                &["srcNode"],
            ),
            (
                |facts| facts.user.as_mut().unwrap().id += 1,
                &["srcNodeUserID"],
            ),
            (
                |facts| facts.user.as_mut().unwrap().login = "eve@example.com".to_owned(),
                &["srcNodeUser"],
            ),
            (|facts| facts.user = None, &["srcNodeUserID", "srcNodeUser"]),
            // The header claims no tags, so it contradicts none.
            (|facts| facts.tags = vec!["tag:a".to_owned()], &[]),
        ];
        let header = Header::parse(LINE).unwrap();
        for (change, expected) in table {
            let mut facts = facts();
            change(&mut facts);
            let directory: Directory = Arc::new(move |id| (id == "nAbc").then(|| facts.clone()));
            let source = source_node(&header, &directory).unwrap();
            assert!(source.found);
            assert_eq!(source.mismatch, expected);
            assert_eq!(source.addresses, [IpAddr::from([100, 64, 0, 9])]);
        }
        let tagged = br#"{"srcNodeID":"nAbc","srcNodeTags":["tag:b","tag:a"]}"#;
        let tagged = Header::parse(tagged).unwrap();
        for (tags, expected) in [
            (["tag:a", "tag:b"], &[][..]),
            (["tag:a", "tag:c"], &["srcNodeTags"][..]),
        ] {
            let directory: Directory = Arc::new(move |_| {
                Some(NodeFacts {
                    tags: tags.map(str::to_owned).to_vec(),
                    ..facts()
                })
            });
            let source = source_node(&tagged, &directory).unwrap();
            assert_eq!(source.mismatch, expected);
        }
    }

    #[test]
    fn a_node_that_is_not_seen_is_said_to_be_so_and_a_senseless_id_is_not_looked_up() {
        let nobody: Directory = Arc::new(|_| None);
        let header = Header::parse(LINE).unwrap();
        let source = source_node(&header, &nobody).unwrap();
        assert!(!source.found && source.mismatch.is_empty());
        let never: Directory = Arc::new(|_| panic!("asked"));
        let long = Header {
            src_node_id: "n".repeat(STABLE_ID_BYTES_MAX + 1),
            ..Header::default()
        };
        assert_eq!(source_node(&Header::default(), &never), None);
        assert_eq!(source_node(&long, &never), None);
    }
}
