//! The joints of a session: characters that reads split.

use proptest::prelude::*;

use super::*;

#[test]
fn a_character_split_between_two_reads_is_given_whole_with_the_second() {
    let mut runes = Runes::default();
    assert_eq!(runes.handle_bytes(b"a\xE2\x82"), b"a");
    assert_eq!(runes.handle_bytes(b"\xACb"), "€b".as_bytes());
    assert!(runes.take_rest().is_empty());
}

#[test]
fn bytes_that_begin_no_character_are_not_held_back() {
    for bytes in [
        &b"\xFF"[..],
        b"\x80",
        b"a\xC0",
        b"\xE0\x80",
        b"\xF5\x80\x80",
        b"\xED\xA0",
    ] {
        let mut runes = Runes::default();
        assert_eq!(runes.handle_bytes(bytes), bytes, "{bytes:02x?}");
    }
}

#[test]
fn a_character_that_the_session_cuts_short_is_given_at_its_end() {
    let mut runes = Runes::default();
    assert_eq!(runes.handle_bytes(b"\xF0\x9F\x8E"), b"");
    assert_eq!(runes.take_rest(), b"\xF0\x9F\x8E");
}

proptest! {
    #[test]
    fn any_split_of_text_gives_pieces_that_are_text(text in "\\PC{0,40}", size in 1_usize..5) {
        let mut runes = Runes::default();
        let mut joined = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            let whole = runes.handle_bytes(piece);
            prop_assert!(std::str::from_utf8(&whole).is_ok());
            joined.extend(whole);
        }
        prop_assert!(runes.take_rest().is_empty());
        prop_assert_eq!(joined, text.into_bytes());
    }

    #[test]
    fn no_byte_is_lost_whatever_comes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..8)) {
        let mut runes = Runes::default();
        let mut joined = Vec::new();
        for piece in &pieces {
            joined.extend(runes.handle_bytes(piece));
            prop_assert!(runes.held.len() <= 3);
        }
        joined.extend(runes.take_rest());
        prop_assert_eq!(joined, pieces.concat());
    }
}
