//! What an operator types and sees.

use std::fmt;

use crate::{Config, DevNode};

/// Where lines are broken.
const WIDTH: usize = 98;

/// Commands and what they printed. The lab's paths and addresses are shown as those of an
/// installation, and long lines are broken; nothing else is changed.
#[derive(Debug, Clone, Default)]
pub struct Told {
    lines: Vec<String>,
    // The longest first: one may begin with another.
    places: Vec<(String, String)>,
}

// === impl Told ===

impl Told {
    /// An empty one that knows these Vaults.
    pub(super) fn of(vaults: &[(&str, &DevNode, &Config)]) -> Self {
        let mut told = Self::default();
        for (name, vault, config) in vaults {
            let several = if vaults.len() > 1 { format!("{name}-") } else { String::new() };
            let file = |file: &str| format!("/etc/vault-kms-proxy/{several}{file}");
            told.place(vault.address(), &format!("https://{name}.example:8200"));
            for (key, shown) in [("secretIDFile", "secret-id"), ("vaultCACert", "ca.pem")] {
                if let Some(path) = config.get(key).and_then(serde_json::Value::as_str) {
                    told.place(path, &file(shown));
                }
            }
        }
        told
    }

    /// Shows `lab` as `installed` from now on.
    pub(super) fn place(&mut self, lab: &str, installed: &str) {
        self.places.push((lab.to_owned(), installed.to_owned()));
        self.places.sort_by_key(|(lab, _)| std::cmp::Reverse(lab.len()));
    }

    /// What happens next, in words.
    pub(super) fn step(&mut self, words: &str) {
        self.lines.push(String::new());
        self.lines.push(format!("# {words}"));
    }

    /// A command and what it printed.
    pub(super) fn command(&mut self, command: &str, printed: &str) {
        self.lines.push(format!("$ {}", self.installed(command)));
        for line in self.installed(printed.trim_end()).lines() {
            self.lines.extend(broken(line));
        }
    }

    fn installed(&self, text: &str) -> String {
        let replace =
            |text: String, (lab, installed): &(String, String)| text.replace(lab, installed);
        self.places.iter().fold(text.to_owned(), replace)
    }

    /// The first line of a page's section that this does not have, after the lines before it:
    /// of its blocks of text, without `[…]`, and whatever the hashes, times and process ids.
    pub fn differs_from(&self, section: &str) -> Option<String> {
        let mut ours = self.lines.iter().map(|line| lasting(line));
        let mut is_text = false;
        for line in section.lines().map(str::trim_start) {
            if line.starts_with("```") {
                is_text = line == "```text";
            } else if is_text && line != "[…]" && !ours.any(|ours| ours == lasting(line)) {
                return Some(line.to_owned());
            }
        }
        None
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// A line as several that are not too long, the later ones further in.
fn broken(line: &str) -> Vec<String> {
    let indent = line.len() - line.trim_start().len();
    let mut lines = Vec::new();
    let mut rest = line.to_owned();
    while rest.chars().count() > WIDTH {
        let end = rest.char_indices().nth(WIDTH).map_or(rest.len(), |(at, _)| at);
        let text = rest.len() - rest.trim_start().len();
        let Some(at) = rest[..end].rfind(' ').filter(|at| *at > text) else { break };
        let next = format!("{}{}", " ".repeat(indent + 2), &rest[at + 1..]);
        rest.truncate(at);
        lines.push(std::mem::replace(&mut rest, next));
    }
    lines.push(rest);
    lines
}

/// A line without what is another one each time: hashes, times, process ids.
fn lasting(line: &str) -> String {
    let mut out = String::new();
    for word in line.split_whitespace() {
        let bare = word.trim_end_matches([',', ')', ';', '"']);
        let is_number = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let unit = ["(pid", "in"].iter().any(|before| out.ends_with(&format!("{before} ")));
        let hash = bare
            .rsplit_once(':')
            .filter(|(_, hash)| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
        match hash {
            Some((name, _)) => out.push_str(&word.replace(bare, name)),
            None if is_number && unit => out.push('N'),
            None if word == "ms" || word == "ms," => {
                // What came before it was the time.
                let at = out.trim_end().rfind(' ').map_or(0, |at| at + 1);
                out.replace_range(at.., "N ms");
            }
            None => out.push_str(word),
        }
        out.push(' ');
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Told {
        Told { lines: text.lines().map(str::to_owned).collect(), places: Vec::new() }
    }

    #[test]
    fn a_page_may_leave_lines_out_but_not_say_what_was_not_said() {
        let told = told("$ a\n40 objects, in 0.1 s\nkube:v1:0123456789abcdef\nlast");
        let page = |block: &str| format!("words\n```text\n{block}\n```\nmore\n```\nb\n```\n");
        for good in ["$ a\n   […]\nlast", "40 objects, in 9.0 s\n[…]\nkube:v1:ffff456789abcdef"]
        {
            assert_eq!(told.differs_from(&page(good)), None, "{good}");
        }
        for bad in ["41 objects, in 0.1 s", "last\n$ a", "kube:v2:0123456789abcdef"] {
            assert!(told.differs_from(&page(bad)).is_some(), "{bad}");
        }
        assert_eq!(
            lasting("x (pid 12, generation 1) took 3 ms"),
            "x (pid N generation 1) took N ms"
        );
    }

    #[test]
    fn a_long_line_is_broken_between_words() {
        let line = format!("  {}", "word ".repeat(30));
        let lines = broken(line.trim_end());
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() <= WIDTH), "{lines:?}");
        assert!(lines[1].starts_with("    word"), "{lines:?}");
    }

    #[test]
    fn places_are_shown_as_installed() {
        let mut told = Told::default();
        told.place("/tmp/a", "/etc/b");
        told.place("/tmp/a/kms.sock", "/run/kms.sock");
        told.command("x --config /tmp/a/c", "/tmp/a/kms.sock\n");
        assert_eq!(told.to_string(), "$ x --config /etc/b/c\n/run/kms.sock\n");
    }
}
