//! Roles, and what each permits: the one table of access.
//!
//! Invariant: what is not in the table is denied. Whether a permission covers the recording at hand (one's own, one's tenant) is asked with it: the
//! permissions say how far they reach. Called by [`Policy::decide`](super::Policy::decide).

use std::fmt;

/// What a person or program is, to the recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Sees the sessions that the user ran.
    Viewer,
    /// Sees the sessions of a tenant.
    Auditor,
    /// Sees live sessions and ends them.
    Operator,
    /// Decides on holds and retention of a tenant.
    Admin,
    /// May do everything.
    System,
    /// Reads the counters.
    Metrics,
}

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Play a recording of a session that the asking user ran.
    PlayOwn,
    /// List and play every recording of the tenant.
    PlayTenant,
    /// Export recordings of the tenant.
    Export,
    /// Read the audit log of the tenant.
    ReadAudit,
    /// Follow a session that is running.
    Follow,
    /// End a session that is running.
    Terminate,
    /// Set and release legal holds.
    Hold,
    /// Change what is kept for how long, and remove.
    Retain,
    /// Read metrics.
    ReadMetrics,
    /// Change the recorder itself: drain, keys.
    Administer,
}

use Permission::{
    Administer, Export, Follow, Hold, PlayOwn, PlayTenant, ReadAudit, ReadMetrics, Retain,
    Terminate,
};

/// Who may do what.
const TABLE: [(Role, &[Permission]); 6] = [
    (Role::Viewer, &[PlayOwn]),
    (Role::Auditor, &[PlayOwn, PlayTenant, Export, ReadAudit]),
    (Role::Operator, &[PlayOwn, Follow, Terminate]),
    (Role::Admin, &[ReadAudit, Hold, Retain]),
    (Role::System, &Permission::ALL),
    (Role::Metrics, &[ReadMetrics]),
];

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] = [
        Self::Viewer,
        Self::Auditor,
        Self::Operator,
        Self::Admin,
        Self::System,
        Self::Metrics,
    ];

    /// Its name in settings and grants.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::System => "system",
            Self::Metrics => "metrics",
        }
    }

    /// The role of that name; names are exact.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether the table has it.
    #[must_use]
    pub fn permits(self, permission: Permission) -> bool {
        TABLE
            .iter()
            .any(|(role, permissions)| *role == self && permissions.contains(&permission))
    }
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 10] = [
        PlayOwn,
        PlayTenant,
        Export,
        ReadAudit,
        Follow,
        Terminate,
        Hold,
        Retain,
        ReadMetrics,
        Administer,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PlayOwn => "playing one's own sessions",
            PlayTenant => "playing the tenant's sessions",
            Export => "exporting",
            ReadAudit => "reading the audit log",
            Follow => "following a live session",
            Terminate => "ending a live session",
            Hold => "legal holds",
            Retain => "retention",
            ReadMetrics => "reading metrics",
            Administer => "administering the recorder",
        })
    }
}
