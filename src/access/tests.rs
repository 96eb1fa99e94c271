//! The role table row by row, and where roles come from.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// Rows are permissions in the order of [`Permission::ALL`], columns roles in that of [`Role::ALL`]: viewer, auditor, operator, admin, system, metrics.
const EXPECTED: [(Permission, [bool; 6]); 10] = {
    const Y: bool = true;
    const N: bool = false;
    [
        (Permission::PlayOwn, [Y, Y, Y, N, Y, N]),
        (Permission::PlayTenant, [N, Y, N, N, Y, N]),
        (Permission::Export, [N, Y, N, N, Y, N]),
        (Permission::ReadAudit, [N, Y, N, Y, Y, N]),
        (Permission::Follow, [N, N, Y, N, Y, N]),
        (Permission::Terminate, [N, N, Y, N, Y, N]),
        (Permission::Hold, [N, N, N, Y, Y, N]),
        (Permission::Retain, [N, N, N, Y, Y, N]),
        (Permission::ReadMetrics, [N, N, N, N, Y, Y]),
        (Permission::Administer, [N, N, N, N, Y, N]),
    ]
};

fn alice() -> Identity {
    Identity {
        stable_id: "nAlice".into(),
        node_name: "laptop.tail.test".into(),
        user: Some(UserIdentity {
            id: 7,
            login: "alice@example.com".into(),
            display_name: "Alice".into(),
        }),
        tags: Vec::new(),
        address: "100.64.0.7".parse().unwrap(),
        capabilities: BTreeMap::new(),
    }
}

fn tagged(tag: &str) -> Identity {
    Identity {
        tags: vec![tag.into()],
        ..alice()
    }
}

fn rule(role: Role) -> Rule {
    Rule {
        role,
        users: Vec::new(),
        tags: Vec::new(),
        nodes: Vec::new(),
    }
}

fn granted_roles(value: Value) -> Identity {
    Identity {
        capabilities: BTreeMap::from([(CAPABILITY.to_owned(), vec![value])]),
        ..alice()
    }
}

#[test]
fn each_role_permits_what_its_column_says_and_nothing_else() {
    assert_eq!(EXPECTED.map(|(permission, _)| permission), Permission::ALL);
    for (permission, row) in EXPECTED {
        for (role, expected) in Role::ALL.into_iter().zip(row) {
            assert_eq!(role.permits(permission), expected, "{role}: {permission}");
            let policy = Policy::new(vec![Rule {
                users: vec!["alice@example.com".into()],
                ..rule(role)
            }]);
            assert_eq!(policy.decide(&alice(), permission).allowed, expected);
            let granted = granted_roles(json!({"roles": [role.name()]}));
            assert_eq!(
                Policy::default().decide(&granted, permission).allowed,
                expected
            );
        }
    }
}

#[test]
fn without_a_rule_or_a_grant_nothing_is_allowed_and_the_answer_says_so() {
    for permission in Permission::ALL {
        let decision = Policy::default().decide(&alice(), permission);
        assert!(!decision.allowed);
        assert_eq!(decision.reason, "laptop.tail.test has no role");
    }
    let nobody = Policy::new(Role::ALL.map(rule).to_vec());
    assert!(
        !nobody.decide(&alice(), Permission::PlayOwn).allowed,
        "a rule that names nobody"
    );
}

#[test]
fn a_rule_reaches_users_tags_and_nodes_and_the_reason_names_which() {
    let role = Role::Auditor;
    let by = |rule: Rule, identity: &Identity| {
        Policy::new(vec![self::rule(Role::Metrics), rule]).decide(identity, Permission::Export)
    };
    let users = Rule {
        users: vec!["alice@example.com".into()],
        ..rule(role)
    };
    let tags = Rule {
        tags: vec!["tag:audit".into()],
        ..rule(role)
    };
    let ids = Rule {
        nodes: vec!["nAlice".into()],
        ..rule(role)
    };
    let names = Rule {
        nodes: vec!["laptop.tail.test".into()],
        ..rule(role)
    };
    for (rule, identity, who) in [
        (users.clone(), alice(), "user alice@example.com"),
        (tags.clone(), tagged("tag:audit"), "tag tag:audit"),
        (ids, alice(), "node nAlice"),
        (names, alice(), "node laptop.tail.test"),
    ] {
        let decision = by(rule, &identity);
        assert!(decision.allowed);
        assert_eq!(
            decision.reason,
            format!("laptop.tail.test has role auditor by access rule 2 ({who})")
        );
    }
    assert!(!by(tags, &tagged("tag:other")).allowed);
    assert!(
        !by(users, &tagged("tag:other")).allowed,
        "a tagged node is no user's"
    );
}

#[test]
fn a_role_that_does_not_reach_is_named_in_the_refusal() {
    let decision = Policy::default().decide(
        &granted_roles(json!({"roles": ["viewer", "metrics"]})),
        Permission::Terminate,
    );
    assert!(!decision.allowed);
    assert_eq!(
        decision.reason,
        "no role of laptop.tail.test (viewer, metrics) permits ending a live session"
    );
}

#[test]
fn a_grant_that_cannot_be_read_grants_nothing() {
    for value in [
        json!({"roles": ["Auditor"]}),
        json!({"roles": ["root"]}),
        json!({"roles": "system"}),
        json!({"role": "system"}),
        json!({"roles": [["system"]]}),
        json!("system"),
        json!(null),
    ] {
        let identity = granted_roles(value.clone());
        for permission in Permission::ALL {
            assert!(
                !Policy::default().decide(&identity, permission).allowed,
                "{value}"
            );
        }
    }
    let other = Identity {
        capabilities: BTreeMap::from([(
            "example.com/cap".to_owned(),
            vec![json!({"roles": ["system"]})],
        )]),
        ..alice()
    };
    assert!(
        !Policy::default()
            .decide(&other, Permission::ReadMetrics)
            .allowed
    );
}

#[test]
fn names_of_roles_lead_back_to_them() {
    for role in Role::ALL {
        assert_eq!(Role::named(role.name()), Some(role));
    }
}
