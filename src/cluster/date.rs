//! The two ways in which Vault writes time as text.

use crate::clock::UnixSeconds;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads an HTTP `Date`, such as `Sun, 06 Nov 1994 08:49:37 GMT`. Every answer has one, so it
/// is read at fixed places.
pub(crate) fn http(text: &str) -> Option<UnixSeconds> {
    let (day_of_the_week, date) = text.split_at_checked(text.len().checked_sub(24)?)?;
    let separators = [(2, " "), (6, " "), (11, " "), (20, " GMT")];
    let is_of_the_form = day_of_the_week.ends_with(", ")
        && separators.iter().all(|(at, what)| date.get(*at..*at + what.len()) == Some(*what));
    if !is_of_the_form {
        return None;
    }
    let month = MONTHS.iter().position(|m| date.get(3..6) == Some(*m))? + 1;
    let day = number(date.get(..2)?, 2)?;
    let year = number(date.get(7..11)?, 4)?;
    unix(year, i64::try_from(month).ok()?, day, date.get(12..20)?)
}

/// Reads an RFC 3339 time, such as `2024-05-16T00:00:00.123456789+02:00`; the fraction is
/// cut off.
pub(crate) fn rfc3339(text: &str) -> Option<UnixSeconds> {
    let (date, time) = text.split_once(['T', 't'])?;
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?, 4)?;
    let month = number(parts.next()?, 2)?;
    let day = number(parts.next()?, 2)?;
    let clock = time.get(..8)?;
    let zone = time.get(8..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.as_bytes().first()? {
        b'Z' | b'z' if zone.len() == 1 => 0,
        sign @ (b'+' | b'-') => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let seconds = number(hours, 2)? * 3_600 + number(minutes, 2)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    unix(year, month, day, clock).map(|t| UnixSeconds(t.0 - offset))
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    fits.then(|| text.bytes().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')))
}

fn unix(year: i64, month: i64, day: i64, time: &str) -> Option<UnixSeconds> {
    let mut parts = time.splitn(3, ':');
    let hour = number(parts.next()?, 2)?;
    let minute = number(parts.next()?, 2)?;
    let second = number(parts.next()?, 2)?;
    let sane = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60; // a leap second
    if !sane {
        return None;
    }
    // Counted in years that begin in March, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before_year = year * 365 + year / 4 - year / 100 + year / 400;
    let days = days_before_year + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(UnixSeconds(((days * 24 + hour) * 60 + minute) * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_read_to_the_second() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199),
            ("Fri, 01 Mar 2024 00:00:00 GMT", 1_709_251_200),
            ("Wed, 31 Dec 2025 23:59:59 GMT", 1_767_225_599),
        ] {
            assert_eq!(http(text), Some(UnixSeconds(seconds)), "{text}");
        }
    }

    #[test]
    fn rfc3339_is_read_with_fraction_and_offset() {
        for text in
            ["2024-05-16T00:00:00Z", "2024-05-16T00:00:00.987654321Z", "2024-05-16T02:00:00+02:00"]
        {
            assert_eq!(rfc3339(text), Some(UnixSeconds(1_715_817_600)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_time() {
        for text in [
            "",
            "now",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "2024-05-16",
            "2024-13-16T00:00:00Z",
            "2024-05-16T00:00:00",
            "2024-05-16Tä0:00:00Z",
        ] {
            assert_eq!(http(text), None, "{text}");
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
