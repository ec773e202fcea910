//! Single values: durations, numbers, choices, addresses.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;

use super::report::Report;
use crate::config::load::Field;

/// One of `choices`, by its text.
pub(super) fn choice<T: Copy>(
    report: &mut Report<'_>,
    field: &Field<'_>,
    choices: &[(&str, T)],
) -> Option<T> {
    let text = field.text();
    let found = choices.iter().find(|(name, _)| *name == text);
    if found.is_none() {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
        let advice = format!("write {}", names.join(" or "));
        report.error(field, format!("`{}` is none of the choices", shown(text)), advice);
    }
    found.map(|(_, value)| *value)
}

/// `true` or `false`.
pub(super) fn flag(report: &mut Report<'_>, field: &Field<'_>) -> Option<bool> {
    choice(report, field, &[("true", true), ("false", false)])
}

/// A number within `bounds`.
pub(super) fn number<T>(
    report: &mut Report<'_>,
    field: &Field<'_>,
    bounds: RangeInclusive<T>,
) -> Option<T>
where
    T: FromStr + PartialOrd + Display,
{
    let value = field.text().parse().ok().filter(|value| bounds.contains(value));
    if value.is_none() {
        report.error(
            field,
            format!("`{}` is no number that can be used here", shown(field.text())),
            format!("write a number from {} to {}", bounds.start(), bounds.end()),
        );
    }
    value
}

/// A duration within `bounds`.
pub(super) fn duration(
    report: &mut Report<'_>,
    field: &Field<'_>,
    bounds: RangeInclusive<Duration>,
) -> Option<Duration> {
    let text = field.text();
    let range = || {
        let (from, to) = (bounds.start(), bounds.end());
        format!("{} to {}", humantime::format_duration(*from), humantime::format_duration(*to))
    };
    match humantime::parse_duration(text) {
        Ok(value) if bounds.contains(&value) => Some(value),
        Ok(_) => {
            let what = format!("`{}` is out of range", shown(text));
            report.error(field, what, format!("write a duration from {}", range()));
            None
        }
        Err(_) if text.parse::<u64>().is_ok() => {
            report.error(
                field,
                format!("`{text}` has no unit"),
                format!("write `{text}s` for seconds; {} are possible", range()),
            );
            None
        }
        Err(_) => {
            report.error(
                field,
                format!("`{}` is no duration", shown(text)),
                format!(
                    "write a number and a unit, such as `30s` or `2m`; {} are possible",
                    range()
                ),
            );
            None
        }
    }
}

/// Whether a URL may have a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// It may.
    Allowed,
    /// It ends after host and port.
    Refused,
}

/// An `https://` or `http://` URL with a host, perhaps a port, and nothing else but an
/// allowed path. No message shows user information or a query, where secrets stand.
pub(super) fn url(
    report: &mut Report<'_>,
    field: &Field<'_>,
    path: Path,
    example: &str,
) -> Option<Uri> {
    let text = field.text();
    let advice = || format!("write {example}");
    if text.contains('@') {
        report.error(field, "an address must not hold a user name or a password", advice());
        return None;
    }
    if let Some(at) = text.find(['?', '#']) {
        let what = format!("an address must end before its `{}`", &text[at..=at]);
        report.error(field, what, advice());
        return None;
    }
    let named = shown(text);
    if text.contains(',') {
        report.error(
            field,
            format!("`{named}` is several addresses in one text"),
            "write a list: [https://a:8200, https://b:8200]",
        );
        return None;
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let what = format!("`{named}` does not say how to connect");
        report.error(field, what, format!("write https://{named}"));
        return None;
    };
    if !matches!(scheme, "https" | "http") {
        report.error(field, format!("`{named}` is neither https:// nor http://"), advice());
        return None;
    }
    let whole = rest.trim_end_matches('/');
    let (authority, below) = whole.split_once('/').unwrap_or((whole, ""));
    if !below.is_empty() && path == Path::Refused {
        report.error(
            field,
            format!("`{named}` has a path"),
            format!("write {scheme}://{authority}; mounts and namespaces have keys of their own"),
        );
        return None;
    }
    let parsed = format!("{scheme}://{whole}").parse::<Uri>().ok();
    let usable = parsed.filter(|uri| {
        let port_is_sound = match uri.authority().and_then(|a| a.as_str().rsplit_once(':')) {
            Some((_, tail)) if !tail.ends_with(']') => uri.port_u16().is_some_and(|p| p > 0),
            _ => true,
        };
        uri.host().is_some_and(|host| !host.is_empty() && host != "[]") && port_is_sound
    });
    if usable.is_none() {
        report.error(field, format!("`{named}` is no address"), advice());
    }
    usable
}

/// Whether `uri` can only reach this machine.
pub(super) fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A mount or namespace path, without slashes at its ends.
pub(super) fn vault_path(report: &mut Report<'_>, field: &Field<'_>) -> Option<String> {
    let path = field.text().trim_matches('/');
    let sound = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.~@+=: ".contains(c))
    };
    if path.split('/').all(sound) {
        return Some(path.to_owned());
    }
    report.error(
        field,
        format!("`{}` is no path in Vault", shown(field.text())),
        "write the path as `vault secrets list` prints it, such as `transit` or `team/transit`",
    );
    None
}

/// `text` for a message: one line, not long.
pub(super) fn shown(text: &str) -> String {
    let mut line: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().count() > 80 {
        line.push('…');
    }
    line
}
