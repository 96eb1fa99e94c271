//! What errors say to operators, to the log, and to who uploads.

use super::*;

#[test]
fn a_full_a_forbidden_and_a_read_only_disk_are_named_with_their_remedies() {
    let rows = [
        (ErrorKind::StorageFull, "ENOSPC", "free some room"),
        (ErrorKind::QuotaExceeded, "EDQUOT", "raise it"),
        (ErrorKind::PermissionDenied, "EACCES", "the right to write"),
        (ErrorKind::ReadOnlyFilesystem, "EROFS", "mount it writable"),
    ];
    for (kind, name, remedy) in rows {
        let io = std::io::Error::from(kind);
        let error = StoreError::Object {
            step: "create",
            name: "journal/a".into(),
            source: object_store::Error::Generic {
                store: "disk",
                source: Box::new(std::io::Error::other(io)),
            },
        };
        let told = error.remedy();
        assert!(told.contains(name) && told.contains(remedy), "{told}");
        assert!(!told.contains("journal/a"), "peers read it: {told}");
    }
    let unknown = StoreError::Unanswered {
        step: "create",
        name: "journal/a".into(),
    };
    assert_eq!(unknown.remedy(), unknown.to_string());
}

#[test]
fn what_is_told_beside_the_remedy_does_not_say_its_cause_again() {
    let object = |source: std::io::Error| StoreError::Object {
        step: "create",
        name: "journal/a".into(),
        source: object_store::Error::Generic {
            store: "disk",
            source: Box::new(source),
        },
    };
    let full = object(std::io::Error::from_raw_os_error(28));
    assert_eq!(full.beyond_remedy(), "create journal/a: Generic disk error");
    let refused = object(std::io::Error::from_raw_os_error(111));
    assert_eq!(refused.remedy(), "create journal/a");
    assert_eq!(
        refused.beyond_remedy(),
        "Generic disk error: Connection refused (os error 111)"
    );
    let unanswered = StoreError::Unanswered {
        step: "create",
        name: "journal/a".into(),
    };
    assert_eq!(unanswered.beyond_remedy(), "", "the remedy says it all");
}

#[test]
fn uploaders_are_told_what_failed_and_the_remedy_and_no_place_of_the_host() {
    let object = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Object {
        step: "create",
        name: "recordings/a".into(),
        source: object_store::Error::Generic {
            store: "disk",
            source,
        },
    };
    let denied = object(Box::new(std::io::Error::from(ErrorKind::PermissionDenied)));
    let failed = StoreError::RecordingFailed {
        recording: RecordingId::from_bytes([0; RecordingId::BYTES]),
        source: Arc::new(denied),
    };
    let told = failed.for_peers();
    assert_eq!(
        told,
        "create recordings/a: access is denied (EACCES): give the recorder's user the right to write there"
    );
    let other = object("cannot open /srv/store/a".into()).for_peers();
    assert!(
        other.starts_with("create recordings/a; look at its room"),
        "{other}"
    );
    assert!(!other.contains("/srv"), "{other}");
    let replaced = StoreError::Replaced {
        path: "/srv/store".into(),
    };
    assert!(!replaced.for_peers().contains("/srv"));
    let full = StoreError::DiskNearlyFull {
        free_bytes: 1,
        free_bytes_min: 2,
    };
    assert_eq!(full.for_peers(), full.to_string(), "it has its remedy");
}

#[test]
fn an_error_is_logged_with_each_cause_once() {
    let full = std::io::Error::from(ErrorKind::StorageFull);
    let said = full.to_string();
    let error = StoreError::Object {
        step: "create",
        name: "journal/a".into(),
        source: object_store::Error::Generic {
            store: "disk",
            source: Box::new(full),
        },
    };
    let told = error.with_causes();
    assert!(told.starts_with("create journal/a: "), "{told}");
    assert_eq!(told.matches(&said).count(), 1, "{told}");
}
