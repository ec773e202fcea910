//! Users and groups by name.
//!
//! Only the local files are read. A name service may sit behind a network that is not
//! there yet, or never answer; the control plane must start without it.

use std::path::Path;

use rustix::fs::{Gid, Uid};

use super::BindError;
use crate::config::settings::SocketSettings;

/// Who shall own the socket file; `None` leaves it as it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ownership {
    pub(super) user: Option<Uid>,
    pub(super) group: Option<Gid>,
}

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

// === impl Ownership ===

impl Ownership {
    /// Turns the configured names into numbers.
    pub(super) fn look_up(path: &Path, settings: &SocketSettings) -> Result<Self, BindError> {
        let number = |kind, name: &Option<String>, database| {
            let Some(name) = name else { return Ok(None) };
            // A file that cannot be read knows nobody.
            let entries = || std::fs::read_to_string(database).unwrap_or_default();
            match parse_number(name).or_else(|| number_of(name, &entries())) {
                Some(number) => Ok(Some(number)),
                None => Err(BindError::UnknownName {
                    path: path.to_owned(),
                    kind,
                    name: name.clone(),
                    database,
                }),
            }
        };
        let user = number("owner", &settings.owner, USERS)?.map(Uid::from_raw);
        let group = number("group", &settings.group, GROUPS)?.map(Gid::from_raw);
        Ok(Self { user, group })
    }
}

/// The number that `name` has in a file of the form of passwd(5) or group(5).
fn number_of(name: &str, entries: &str) -> Option<u32> {
    entries.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name) && !name.is_empty();
        fields.nth(1).filter(|_| found).and_then(parse_number)
    })
}

/// A user's or group's number. The highest of all means "leave as it is" to chown(2).
fn parse_number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX && !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_the_form_of_passwd_and_group() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nkube:x:998:997::/:/bin/false\n";
        assert_eq!(number_of("kube", passwd), Some(998));
        assert_eq!(number_of("root", passwd), Some(0));
        assert_eq!(number_of("broken", passwd), None);
        assert_eq!(number_of("", passwd), None);
        assert_eq!(number_of("kube", "kube-apiserver:x:7:\nkube:!:12:a,b"), Some(12));
    }

    #[test]
    fn minus_one_is_no_number() {
        assert_eq!(parse_number("4294967295"), None);
        assert_eq!(parse_number("-1"), None);
        assert_eq!(parse_number("+1"), None);
        assert_eq!(parse_number("65534"), Some(65_534));
    }
}
