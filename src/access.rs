//! May this identity do this? The answer carries its reason.
//!
//! Pure: identities and rules are handed in by the wiring, which asked the tailnet and read the settings; nothing here looks one up. Invariant: deny
//! is the empty state; what is permitted stands in one table (`role.rs`), and who has a role stands in a rule or in a grant of control, nowhere else.

mod identity;
mod role;

pub use identity::{Identity, UserIdentity};
pub use role::{Permission, Role};

/// The application capability whose grants name roles: `{"roles": ["auditor"]}`.
pub const CAPABILITY: &str = "tailtape.com/cap/recorder";

/// Gives a role to identities. Whoever matches one entry of one list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The role.
    pub role: Role,
    /// Login names of owners, such as `alice@example.com`; a tagged node has no owner.
    pub users: Vec<String>,
    /// Tags, such as `tag:audit`.
    pub tags: Vec<String>,
    /// StableIDs or MagicDNS names of nodes.
    pub nodes: Vec<String>,
}

/// An answer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// For the audit log: which role from where, or that there was none.
    pub reason: String,
}

/// Who has which role by configuration. Empty: only grants of control count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// A policy of these rules.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// May `identity` do what `permission` stands for?
    #[must_use]
    pub fn decide(&self, identity: &Identity, permission: Permission) -> Decision {
        let roles = self.roles(identity);
        let granting = roles.iter().find(|(role, _)| role.permits(permission));
        match granting {
            Some((role, from)) => Decision {
                allowed: true,
                reason: format!("{} has role {role} by {from}", identity.node_name),
            },
            None if roles.is_empty() => Decision {
                allowed: false,
                reason: format!("{} has no role", identity.node_name),
            },
            None => {
                let names: Vec<&str> = roles.iter().map(|(role, _)| role.name()).collect();
                Decision {
                    allowed: false,
                    reason: format!(
                        "no role of {} ({}) permits {permission}",
                        identity.node_name,
                        names.join(", ")
                    ),
                }
            }
        }
    }

    /// The roles of `identity`, each with where it came from.
    fn roles(&self, identity: &Identity) -> Vec<(Role, String)> {
        let by_rule = self
            .rules
            .iter()
            .zip(1_usize..)
            .filter_map(|(rule, number)| {
                let who = rule.matches(identity)?;
                Some((rule.role, format!("access rule {number} ({who})")))
            });
        let by_grant = granted(identity).map(|role| (role, format!("grant {CAPABILITY}")));
        by_rule.chain(by_grant).collect()
    }
}

impl Rule {
    /// What of `identity` the rule names.
    fn matches(&self, identity: &Identity) -> Option<String> {
        // A tagged node acts as its tags, never as the user whom control files it under.
        let user = identity.user.as_ref().filter(|_| identity.tags.is_empty());
        let user = user.filter(|user| self.users.contains(&user.login));
        let tag = identity.tags.iter().find(|tag| self.tags.contains(tag));
        let names = [&identity.stable_id, &identity.node_name];
        let node = names
            .into_iter()
            .find(|name| !name.is_empty() && self.nodes.contains(name));
        user.map(|user| format!("user {}", user.login))
            .or_else(|| tag.map(|tag| format!("tag {tag}")))
            .or_else(|| node.map(|node| format!("node {node}")))
    }
}

/// Roles that control grants. A value that cannot be read, and a role that is unknown, grant nothing.
fn granted(identity: &Identity) -> impl Iterator<Item = Role> {
    let values = identity.capabilities.get(CAPABILITY).into_iter().flatten();
    let roles = values
        .filter_map(|value| value.get("roles")?.as_array())
        .flatten();
    roles.filter_map(|role| Role::named(role.as_str()?))
}

#[cfg(test)]
mod tests;
