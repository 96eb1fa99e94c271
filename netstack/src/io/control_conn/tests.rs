//! What needs no server, and servers that misbehave.

use super::*;

async fn error_for(url: &str) -> ControlConnError {
    let machine = MachinePrivate::from_bytes([1; 32]);
    ControlConn::connect(url, &machine, None, 130)
        .await
        .unwrap_err()
}

#[tokio::test]
async fn urls_that_cannot_be_used_are_named() {
    for url in [
        "https://control.example.com",
        "ftp://127.0.0.1",
        "127.0.0.1:80",
        "http://user@127.0.0.1",
        "http://127.0.0.1/path",
        "",
        "not a url",
    ] {
        assert!(
            matches!(error_for(url).await, ControlConnError::Url { .. }),
            "{url}"
        );
    }
}

#[tokio::test]
async fn plain_http_is_refused_beyond_private_addresses() {
    for url in [
        "http://192.0.2.1",
        "http://[2001:db8::1]",
        "http://100.64.0.1",
    ] {
        assert!(
            matches!(error_for(url).await, ControlConnError::NotPrivate { .. }),
            "{url}"
        );
    }
}
