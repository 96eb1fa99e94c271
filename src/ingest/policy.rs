//! Who may upload.
//!
//! Invariant: decided by what the tailnet says of the peer alone; an empty list permits nobody. The routes of [`ingest`](super) ask before anything is taken.

use crate::access::Identity;

/// Which peers may send recordings and events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UploadPolicy {
    /// Every node whose traffic the tailnet's rules let through.
    #[default]
    Any,
    /// Nodes with one of these tags (`tag:…`).
    Tags(Vec<String>),
    /// Nodes that were granted this application capability with a value that has `"upload": true`.
    Capability(String),
}

impl UploadPolicy {
    /// Why `peer` may not upload; nothing if it may.
    pub(super) fn refusal(&self, peer: &Identity) -> Option<&'static str> {
        let (permitted, refusal) = match self {
            Self::Any => (true, ""),
            Self::Tags(tags) => (
                peer.tags.iter().any(|tag| tags.contains(tag)),
                "upload = tags: this node has none of the tags that may upload",
            ),
            Self::Capability(name) => (
                peer.capabilities.get(name).is_some_and(|values| {
                    values
                        .iter()
                        .any(|value| value.get("upload") == Some(&serde_json::Value::Bool(true)))
                }),
                "upload = capability: this node was not granted the capability to upload",
            ),
        };
        (!permitted).then_some(refusal)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_is_permitted_by_what_the_tailnet_says_of_it() {
        let peer = Identity {
            stable_id: "n1".to_owned(),
            node_name: "web".to_owned(),
            user: None,
            tags: vec!["tag:prod".to_owned(), "tag:web".to_owned()],
            address: [100, 64, 0, 7].into(),
            capabilities: [
                (
                    "example.com/cap/record".to_owned(),
                    vec![json!({"roles": []}), json!({"upload": true})],
                ),
                (
                    "example.com/cap/look".to_owned(),
                    vec![json!({"roles": ["viewer"]})],
                ),
            ]
            .into(),
        };
        let tags =
            |tags: &[&str]| UploadPolicy::Tags(tags.iter().map(|tag| (*tag).into()).collect());
        let table = [
            (UploadPolicy::Any, true),
            (tags(&["tag:ssh", "tag:web"]), true),
            (tags(&["tag:ssh"]), false),
            (tags(&["tag:we"]), false),
            (tags(&[]), false),
            (
                UploadPolicy::Capability("example.com/cap/record".into()),
                true,
            ),
            (UploadPolicy::Capability("example.com/cap".into()), false),
            (
                UploadPolicy::Capability("example.com/cap/look".into()),
                false,
            ),
            (UploadPolicy::Capability(String::new()), false),
        ];
        for (policy, permitted) in table {
            assert_eq!(policy.refusal(&peer).is_none(), permitted, "{policy:?}");
        }
    }
}
