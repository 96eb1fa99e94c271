//! RFC 3339 timestamps, as Go writes `time.Time`, to seconds since 1970 and back.
//!
//! Invariant: reading never panics, and Go's zero time is told apart from a real one. Called by
//! `index` for key expiry and by `merge` for the time at which a peer was last seen.

/// A point in time that control wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timestamp {
    /// Absent, or Go's zero time.
    Never,
    /// Seconds since 1970; fractions are cut off.
    At(i64),
    /// Not a timestamp.
    Unreadable,
}

/// Go's `time.Time{}`.
const GO_ZERO: i64 = -62_135_596_800;

impl Timestamp {
    /// Reads an optional timestamp.
    pub(super) fn read(text: Option<&str>) -> Self {
        match text {
            None | Some("") => Self::Never,
            Some(text) => match parse(text) {
                Some(GO_ZERO) => Self::Never,
                Some(seconds) => Self::At(seconds),
                None => Self::Unreadable,
            },
        }
    }
}

fn parse(text: &str) -> Option<i64> {
    let (head, tail) = text.as_bytes().split_first_chunk::<19>()?;
    let &[
        y0,
        y1,
        y2,
        y3,
        b'-',
        m0,
        m1,
        b'-',
        d0,
        d1,
        b'T',
        h0,
        h1,
        b':',
        n0,
        n1,
        b':',
        s0,
        s1,
    ] = head
    else {
        return None;
    };
    let year = number(&[y0, y1, y2, y3])?;
    let (month, day) = (number(&[m0, m1])?, number(&[d0, d1])?);
    let (hour, minute, second) = (number(&[h0, h1])?, number(&[n0, n1])?, number(&[s0, s1])?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let zone = match tail.strip_prefix(b".") {
        Some(fraction) => {
            let digits = fraction
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            fraction.get(digits..).filter(|_| digits > 0)?
        }
        None => tail,
    };
    let offset = match zone {
        b"Z" => 0,
        &[sign @ (b'+' | b'-'), h0, h1, b':', m0, m1] => {
            let seconds = number(&[h0, h1])? * 3600 + number(&[m0, m1])? * 60;
            if sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    in_range.then(|| {
        days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset
    })
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum * 10 + i64::from(digit - b'0'))
    })
}

/// Writes a point in time in UTC. Only for years 1 to 9999; others are clamped.
pub(super) fn format(unix_seconds: i64) -> String {
    let seconds = unix_seconds.clamp(GO_ZERO, 253_402_300_799);
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let time = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

/// Days since 1970 of a date of the Gregorian calendar, counted in eras of 400 years from March on.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_that_go_writes_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Timestamp::At(0)),
            ("2023-01-10T00:00:00Z", Timestamp::At(1_673_308_800)),
            (
                "2024-02-29T23:59:59.123456789Z",
                Timestamp::At(1_709_251_199),
            ),
            ("2024-03-01T01:59:59+02:00", Timestamp::At(1_709_251_199)),
            ("2024-02-29T18:29:59-05:30", Timestamp::At(1_709_251_199)),
            ("0001-01-01T00:00:00Z", Timestamp::Never),
            ("", Timestamp::Never),
            ("2024-02-29", Timestamp::Unreadable),
            ("2024-13-01T00:00:00Z", Timestamp::Unreadable),
            ("2024-02-29T23:59:59.Z", Timestamp::Unreadable),
            ("2024-02-29T23:59:59", Timestamp::Unreadable),
            ("soon", Timestamp::Unreadable),
        ] {
            assert_eq!(Timestamp::read(Some(text)), expected, "{text}");
        }
        assert_eq!(Timestamp::read(None), Timestamp::Never);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in GO_ZERO + 1..253_402_300_799_i64) {
            prop_assert_eq!(Timestamp::read(Some(&format(seconds))), Timestamp::At(seconds));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,40}", digits in "[0-9TZ:+.-]{0,40}") {
            Timestamp::read(Some(&text));
            Timestamp::read(Some(&digits));
        }
    }
}
