//! docs/operations.md has every message that the program says to an operator, and what to do about it.
//!
//! A message is found in the document if one line of it has all its fixed parts, in their order: an operator greps for the words of a log. What stands in
//! `{}` may be anything there.

use super::{Source, code_of, collect, room};

/// Errors that an operator meets only as the cause behind another one, which the document has: the words of protocols and formats, and of what
/// only a developer runs.
const ONLY_CAUSES: &[&str] = &[
    "src/recording/",
    "src/asciicast.rs",
    "src/capture/ack_frames.rs",
    "src/capture/upload_body.rs",
    "src/capture/stream.rs",
    "src/ingest/frame_watch.rs",
    "src/ingest/response.rs",
    "netstack/src/key.rs",
    "netstack/src/tcpip/",
    "netstack/src/control/",
    "netstack/src/derp.rs",
    "netstack/src/disco.rs",
    "netstack/src/stun.rs",
    "netstack/src/devnet",
    "netstack/src/netmap.rs",
    "netstack/src/noise.rs",
    "netstack/src/filter/",
];

/// Where a demonstration and its control server log: nobody operates them.
const NOT_OPERATED: &[&str] = &["src/dev", "netstack/src/devnet"];

/// Files whose texts of three words or more are all for an operator: remedies, and what stands in the way of health.
const ALL_TEXTS: &[&str] = &[
    "src/main/advice.rs",
    "src/config/error.rs",
    "src/config/environment.rs",
    "src/config/rules.rs",
    "src/config/typed.rs",
    "src/serve/live.rs",
    "netstack/src/io.rs",
];

#[test]
fn the_document_for_operators_has_every_message_error_and_remedy() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["src", "netstack/src"] {
        collect(root, &root.join(folder), &mut sources);
    }
    let document = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let texts: Vec<(String, String)> = sources
        .iter()
        .filter(|source| room(&source.path).is_some())
        .flat_map(|source| {
            let texts = texts(source).into_iter();
            texts.map(|text| (source.path.clone(), text))
        })
        .collect();
    assert!(texts.len() > 150, "only {} were found", texts.len());
    let missing: Vec<String> = texts
        .into_iter()
        .filter(|(_, text)| !has(&document, text))
        .map(|(path, text)| format!("{path}: {text}"))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/operations.md lacks {} messages; write a row for each:\n{}",
        missing.len(),
        missing.join("\n")
    );
}

#[test]
fn messages_are_found_where_they_stand_and_missed_where_they_do_not() {
    let source = |path: &str, text: &str| Source {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    let logged = source(
        "src/store/x.rs",
        "tracing::warn!(%name, error = f(\"not this\"), \"it {name} stays \\\"so\\\" {}\", 1);\n\
         tracing::info!(\"not this\"); Err(_) => tracing::error!(\"no answer\"),\n\
         #[cfg(test)]\nmod tests {\n tracing::error!(\"nor this\") }",
    );
    assert_eq!(texts(&logged), ["it {name} stays \"so\" {}", "no answer"]);
    let errors = source(
        "src/status.rs",
        "#[error(\"another {a} is \\\n   there\", path.display())]\nstruct A;\n#[error(transparent)]",
    );
    assert_eq!(texts(&errors), ["another {a} is there"]);
    let remedies = source(
        "src/main/advice.rs",
        "\"do a thing\", 'x', \"short\", '\"', \"and one more\"",
    );
    assert_eq!(texts(&remedies), ["do a thing", "and one more"]);

    assert!(has(
        "| `it NAME stays \"so\"` | look |",
        "it {name} stays \"so\" {}"
    ));
    assert!(!has(
        "| it NAME |\n| stays \"so\" |",
        "it {name} stays \"so\" {}"
    ));
    assert!(!has("| stays, it |", "it {name} stays"));
    assert!(
        !has("| anything |", "{a}: {b}"),
        "a message without words is no message"
    );
}

/// What a file says to an operator.
fn texts(source: &Source) -> Vec<String> {
    let code = code_of(&source.text);
    let any = |places: &[&str]| places.iter().any(|place| source.path.starts_with(place));
    let mut found = Vec::new();
    if !any(NOT_OPERATED) {
        for call in ["tracing::warn!(", "tracing::error!(", "anyhow::bail!("] {
            found.extend(calls(&code, call).filter_map(message));
        }
        // The first line of what a command says when it fails.
        for call in [".context(", ".with_context("] {
            let contexts = calls(&code, call);
            found.extend(contexts.filter_map(|context| strings(context).into_iter().next()));
        }
    }
    if !any(ONLY_CAUSES) {
        let errors = calls(&code, "#[error(");
        found.extend(errors.filter_map(|error| strings(error).into_iter().next()));
    }
    if any(ALL_TEXTS) || source.path == "src/store/error.rs" {
        let has_words = |text: &String| text.split_whitespace().count() > 2;
        // Of the store's file, what its remedies are made of; its errors are found above.
        let from = code.find("pub(super) fn remedy").unwrap_or(0);
        let lints: Vec<String> = calls(&code, "#[expect(").flat_map(strings).collect();
        let for_operators = |text: &String| has_words(text) && !lints.contains(text);
        found.extend(strings(&code[from..]).into_iter().filter(for_operators));
    }
    // What only passes on what somebody else says has words of its own elsewhere.
    found.retain(|text| !parts(text).is_empty());
    found.sort_by_key(|text| code.find(text.as_str()));
    found.dedup();
    found
}

/// The arguments of each call that begins so.
fn calls<'a>(code: &'a str, call: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(call).map(move |(at, _)| {
        let inside = &code[at + call.len()..];
        &inside[..end_of(inside)]
    })
}

/// Where the parenthesis closes that was opened before `text`.
fn end_of(text: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (1, false, false);
    for (at, sign) in text.char_indices() {
        match sign {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The message of a log line: the last argument that begins as a text, or the one before its values.
fn message(arguments: &str) -> Option<String> {
    let mut depth = 0;
    let mut at = 0;
    let mut begins = true;
    while at < arguments.len() {
        let rest = &arguments[at..];
        let sign = rest.chars().next()?;
        if sign == '"' && begins && depth == 0 {
            return strings(rest).into_iter().next();
        }
        if sign == '"' {
            at += literal(rest)?.1;
            continue;
        }
        match sign {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        begins = match sign {
            ',' => true,
            _ if sign.is_whitespace() => begins,
            _ => false,
        };
        at += sign.len_utf8();
    }
    None
}

/// Every string literal.
fn strings(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(['"', '\'']) {
        rest = &rest[at..];
        let skipped = match rest.starts_with('\'') {
            // A quote as a character; lifetimes are not closed so soon.
            true if rest.starts_with("'\"'") => 3,
            true => 1,
            false => match literal(rest) {
                Some((text, length)) => {
                    found.push(text);
                    length
                }
                None => break,
            },
        };
        rest = &rest[skipped..];
    }
    found
}

/// The literal that `code` begins with, as the compiler reads it, and its length in the code.
fn literal(code: &str) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut signs = code.char_indices().skip(1).peekable();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => return Some((text, at + 1)),
            '\\' => match signs.next()?.1 {
                '\n' => while signs.next_if(|(_, sign)| sign.is_whitespace()).is_some() {},
                'n' => text.push('\n'),
                other => text.push(other),
            },
            _ => text.push(sign),
        }
    }
    None
}

fn has(document: &str, text: &str) -> bool {
    let parts = parts(text);
    let in_order = |line: &str| {
        let mut rest = line;
        parts
            .iter()
            .all(|part| match rest.split_once(part.as_str()) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
    };
    !parts.is_empty() && document.lines().any(in_order)
}

/// What is fixed of a message: between its values, with two letters at least.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut signs = text.replace("{{", "\u{1}").replace("}}", "\u{2}");
    signs = signs.replace('|', "\\|");
    let mut inside = false;
    for sign in signs.chars() {
        match sign {
            '{' => {
                inside = true;
                parts.push(String::new());
            }
            '}' => inside = false,
            _ if inside => {}
            _ => {
                let part = parts.last_mut().unwrap();
                part.push(match sign {
                    '\u{1}' => '{',
                    '\u{2}' => '}',
                    '\n' => ' ',
                    _ => sign,
                });
            }
        }
    }
    let worded = |part: &String| part.chars().filter(|sign| sign.is_alphabetic()).count() > 1;
    let parts = parts.iter().map(|part| part.trim().to_owned());
    parts.filter(worded).collect()
}
