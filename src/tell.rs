//! Text for people: an error and its causes on one line, a value without the secrets that may be in it, and what is safe on a terminal.
//!
//! Invariants: pure; what stands in place of a secret is `…`, and what is hidden is rather too much than too little. Called by whoever logs an error, and
//! by `config`, `store` and `main` for what an operator gave.

mod terminal;

pub use terminal::{UNSHOWN, is_shown, printable, printable_json};

/// What stands for what is not shown.
const HIDDEN: &str = "…";

/// How the keys begin with which nodes join, at Tailscale and at Headscale.
const KEY_PREFIXES: [&str; 2] = ["tskey-", "hskey-"];

/// Headscale's older keys are as many hex digits, and nothing in their form says what they are.
const HEX_KEY_DIGITS_MIN: usize = 40;

/// An error and its causes on one line: for a log, which shows an error's own words alone. Without auth keys, which a path may have.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().trim_end().to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        let words = words.trim_end();
        // Some libraries end with the words of their source.
        if !text.ends_with(words) {
            text.push_str(": ");
            text.push_str(words);
        }
        source = cause.source();
    }
    without_keys(&text)
}

/// Whether the text as a whole is an auth key, by its form.
#[must_use]
pub fn is_like_a_key(text: &str) -> bool {
    let text = text.trim();
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    KEY_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
        || (is_hex && text.len() >= HEX_KEY_DIGITS_MIN)
}

/// The text without auth keys, and without a URL's user, password, query and fragment.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    if is_like_a_key(text) {
        return HIDDEN.to_owned();
    }
    without_keys(&without_credentials(text))
}

/// Cuts `user:password@` and `?key=…#…`, also where the rest is no URL that a parser would take.
fn without_credentials(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    let is_url = !scheme.is_empty();
    // A password may have any sign, so the last `@` of all ends it.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) if is_url || user.contains(':') => (user, place),
        Some(_) | None => ("", rest),
    };
    if user.contains(['?', '#']) {
        // Whether a password or a query has the `@` is not known: then nothing is shown.
        return format!("{scheme}{HIDDEN}");
    }
    let user = match user {
        "" => String::new(),
        _ => format!("{HIDDEN}@"),
    };
    let query = place.find(['?', '#']).map(|at| place.split_at(at));
    match query {
        Some((place, query)) if is_url || query.contains('=') => {
            let sign = query.chars().next().unwrap_or('?');
            format!("{scheme}{user}{place}{sign}{HIDDEN}")
        }
        Some(_) | None => format!("{scheme}{user}{place}"),
    }
}

/// The text without auth keys, each cut behind its prefix: for a text that is no single value, such as a message that names a path.
#[must_use]
pub fn without_keys(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    let next = |text: &str| {
        let found = KEY_PREFIXES.iter().filter_map(|prefix| {
            let at = text.find(prefix)?;
            Some((at, at.checked_add(prefix.len())?))
        });
        found.min()
    };
    while let Some((_, end)) = next(rest) {
        let Some((before, after)) = rest.split_at_checked(end) else {
            break;
        };
        shown.push_str(before);
        shown.push_str(HIDDEN);
        rest = after.trim_start_matches(|sign: char| sign.is_ascii_alphanumeric() || sign == '-');
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_and_on_one_line() {
        let io = std::io::Error::other("no room\n");
        let error = anyhow::Error::from(io)
            .context("write it: no room")
            .context("keep it");
        assert_eq!(with_causes(error.as_ref()), "keep it: write it: no room");
        let io = std::io::Error::other("no /run/tskey-auth-k1-x/file");
        let error = anyhow::Error::from(io).context("open hskey-a-b");
        assert_eq!(
            with_causes(error.as_ref()),
            "open hskey-…: no /run/tskey-…/file"
        );
    }

    #[test]
    fn a_key_is_known_by_its_form() {
        let hex = "0123456789abcdef".repeat(3);
        for key in [
            "tskey-auth-k1-x",
            "hskey-auth-x",
            hex.as_str(),
            " tskey-x\n",
        ] {
            assert!(is_like_a_key(key), "{key}");
            assert_eq!(without_secrets(key), "…");
        }
        for other in [
            "/run/secrets/tskey-auth",
            "auth-key",
            "",
            "0123456789abcdef",
        ] {
            assert!(!is_like_a_key(other), "{other}");
        }
    }

    #[test]
    fn users_passwords_queries_and_keys_are_not_shown() {
        for (text, shown) in [
            ("http://op:secret@h:8080", "http://…@h:8080"),
            ("http://op:se@cr/et@h:8080/x", "http://…@h:8080/x"),
            ("http://op:se?cr#et@h", "http://…"),
            ("s3://bucket?secret=x@y", "s3://…"),
            ("http://token@h", "http://…@h"),
            ("op:secret@h:8080", "…@h:8080"),
            ("s3://bucket?secret=x&y=z#f", "s3://bucket?…"),
            ("s3:bucket?secret=x", "s3:bucket?…"),
            ("http://h/#secret", "http://h/#…"),
            ("/run/tskey-auth-k1-x/file", "/run/tskey-…/file"),
            (
                "unexpected 'tskey-a-b', 'hskey-c'",
                "unexpected 'tskey-…', 'hskey-…'",
            ),
        ] {
            assert_eq!(without_secrets(text), shown, "{text}");
        }
        for plain in [
            "/srv/store@home",
            "http://h:8080",
            "alice@example.com",
            "file:///a",
            "what?",
            "",
        ] {
            assert_eq!(without_secrets(plain), plain);
        }
    }
}
