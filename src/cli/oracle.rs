//! The command line of Oracle's plugin: `-socketFile PATH -vaultConfig FILE`, as Go's flag
//! package reads it (one dash or two, `=` or the next word), and the log flags that its
//! logging library added. Whoever swaps the binary under an old unit file gets a daemon.

use std::ffi::OsString;
use std::path::PathBuf;

use super::serve::Serve;

/// The log flags of the plugin's logging library: taken, and without effect. The second
/// field says whether the flag needs a value.
const LOG_FLAGS: [(&str, bool); 7] = [
    ("alsologtostderr", false),
    ("logtostderr", false),
    ("log_backtrace_at", true),
    ("log_dir", true),
    ("stderrthreshold", true),
    ("v", true),
    ("vmodule", true),
];

/// A command line that is Oracle's, but cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OracleFlagError {
    /// A flag without its value.
    #[error("-{0} needs a value")]
    NoValue(String),
    /// A flag that the plugin did not have.
    #[error(
        "`{0}` is not a flag of the Oracle plugin; beside -socketFile and -vaultConfig \
         write none, or use `vault-kms-proxy serve --help`"
    )]
    Unknown(String),
    /// One of the two is missing.
    #[error("-{0} is missing; the Oracle form needs both -socketFile and -vaultConfig")]
    Missing(&'static str),
}

/// Reads `arguments` (with the program's name first) as Oracle's; `None` when neither of
/// the two flags is there, so that the command line is our own.
///
/// # Errors
/// When it is Oracle's but incomplete or has another flag.
pub fn translate(arguments: &[OsString]) -> Result<Option<Serve>, OracleFlagError> {
    let words: Vec<&str> = arguments.iter().skip(1).map_while(|a| a.to_str()).collect();
    let is_oracles = |word: &&str| matches!(flag(word), Some(("socketFile" | "vaultConfig", _)));
    if !words.iter().any(is_oracles) {
        return Ok(None);
    }
    let (mut socket, mut config) = (None, None);
    let mut rest = words.into_iter();
    while let Some(word) = rest.next() {
        let (name, value) = flag(word).ok_or_else(|| OracleFlagError::Unknown(word.into()))?;
        let slot = match name {
            "socketFile" => Some(&mut socket),
            "vaultConfig" => Some(&mut config),
            _ => match LOG_FLAGS.iter().find(|(known, _)| *known == name) {
                Some((_, false)) => continue,
                Some((_, true)) => None,
                None => return Err(OracleFlagError::Unknown(word.into())),
            },
        };
        let value = value.or_else(|| rest.next()).filter(|v| !v.is_empty());
        let value = value.ok_or_else(|| OracleFlagError::NoValue(name.into()))?;
        if let Some(slot) = slot {
            *slot = Some(value.to_owned());
        }
    }
    let socket = socket.ok_or(OracleFlagError::Missing("socketFile"))?;
    let config = config.ok_or(OracleFlagError::Missing("vaultConfig"))?;
    Ok(Some(Serve::oracle(PathBuf::from(config), socket)))
}

/// Splits `-name`, `--name`, `-name=value` or `--name=value`.
fn flag(word: &str) -> Option<(&str, Option<&str>)> {
    let body = word.strip_prefix('-')?;
    let body = body.strip_prefix('-').unwrap_or(body);
    match body.split_once('=') {
        Some((name, value)) => Some((name, Some(value))),
        None if body.is_empty() => None,
        None => Some((body, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(words: &str) -> Result<Option<(String, String)>, OracleFlagError> {
        let arguments: Vec<OsString> =
            std::iter::once("vault-kms-proxy").chain(words.split(' ')).map(Into::into).collect();
        Ok(translate(&arguments)?.map(|s| (s.config_path(), s.socket_text())))
    }

    #[test]
    fn every_way_that_go_reads_a_flag_is_read() {
        let expected = Ok(Some(("/etc/v.yaml".to_owned(), "/run/k.sock".to_owned())));
        for words in [
            "-socketFile /run/k.sock -vaultConfig /etc/v.yaml",
            "--vaultConfig=/etc/v.yaml --socketFile=/run/k.sock",
            "-logtostderr -v=2 -socketFile=/run/k.sock -vaultConfig /etc/v.yaml",
            "-v 5 -socketFile=/run/k.sock -vaultConfig /etc/v.yaml",
        ] {
            assert_eq!(translated(words), expected, "{words}");
        }
    }

    #[test]
    fn our_own_command_line_is_left_alone() {
        assert_eq!(translated("serve --config /etc/v.yaml"), Ok(None));
    }

    #[test]
    fn half_of_oracles_command_line_is_an_error_that_names_the_other_half() {
        let message = |words| translated(words).unwrap_err().to_string();
        assert!(message("-socketFile /run/k.sock").starts_with("-vaultConfig is missing"));
        assert_eq!(message("-vaultConfig /etc/v.yaml -socketFile"), "-socketFile needs a value");
        assert!(message("-socketFile /a -vaultConfig /b -port 1").starts_with("`-port` is not"));
    }
}
