//! One cluster's policy: the paths that the daemon's token needs there, and why.

use std::collections::BTreeSet;
use std::fmt;

use crate::config::settings::{
    AuthSettings, ClusterName, ClusterSettings, KekSettings, SecretId, Settings,
};

/// What is to be written into one cluster, in the namespace of its login.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) cluster: ClusterName,
    /// Where the token and so its policies live; `None` is the root.
    namespace: Option<String>,
    /// Namespaces of keys that a token of this one cannot reach.
    unreachable: BTreeSet<String>,
    sections: Vec<Section>,
}

/// Paths for one purpose.
#[derive(Debug)]
struct Section {
    why: String,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    path: String,
    capability: &'static str,
}

/// The policies of all clusters that hold a key, in the file's order.
pub(super) fn documents(settings: &Settings) -> Vec<Document> {
    let keks = || settings.keyring.keks.iter();
    let of = |cluster: &ClusterSettings| {
        let here = keks().filter_map(|kek| {
            let n = kek.clusters.iter().position(|name| *name == cluster.name)?;
            Some(kek.in_cluster(n))
        });
        Document::new(cluster, &here.collect::<Vec<_>>())
    };
    settings.clusters.iter().map(|cluster| of(cluster)).collect()
}

// === impl Document ===

impl Document {
    fn new(cluster: &ClusterSettings, keks: &[KekSettings]) -> Self {
        let namespace = cluster.auth_namespace.clone();
        let mut document = Self {
            cluster: cluster.name.clone(),
            namespace,
            unreachable: BTreeSet::new(),
            sections: Vec::new(),
        };
        let mut looks = BTreeSet::new();
        for kek in keks {
            let wanted = kek.namespace.as_ref().or(cluster.namespace.as_ref());
            let Some(below) = below(document.namespace.as_deref(), wanted.map(String::as_str))
            else {
                document.unreachable.extend(wanted.cloned());
                continue;
            };
            document.sections.push(of_kek(kek, &below));
            looks.insert(rule(format!("{below}sys/capabilities-self"), "update"));
        }
        document.sections.extend(of_token(&cluster.auth));
        document.sections.push(Section {
            why:
                "Lets the daemon and `check --online` see a policy that is too narrow or too wide."
                    .to_owned(),
            rules: looks.into_iter().collect(),
        });
        document.without_repetition()
    }

    /// Two KEKs may be one key, and Vault refuses a path that stands twice.
    fn without_repetition(mut self) -> Self {
        let mut seen = BTreeSet::new();
        for section in &mut self.sections {
            section.rules.retain(|rule| seen.insert(rule.clone()));
        }
        self.sections.retain(|section| !section.rules.is_empty());
        self
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "# cluster {}", self.cluster)?;
        let mut option = String::new();
        if let Some(namespace) = &self.namespace {
            write!(f, ", namespace {namespace}")?;
            option = format!("-namespace={namespace} ");
        }
        writeln!(
            f,
            "\n#\n\
             # The least policy that vault-kms-proxy works with; it prints it. To write it:\n#\n\
             #   vault policy write {option}vault-kms-proxy FILE\n#\n\
             # It never grants `create`: with that, an encrypt with a misspelt name makes a new\n\
             # key. Give the login a token_period (or ttl) that outlasts the longest outage to be\n\
             # survived: nodes without a quorum encrypt and decrypt, but they log nobody in."
        )?;
        for namespace in &self.unreachable {
            let from = self.namespace.as_deref().unwrap_or("the root");
            writeln!(
                f,
                "#\n# A token of namespace {from} cannot reach the keys in namespace {namespace}: log \
                 in\n# where both are below, with auth.namespace."
            )?;
        }
        self.sections.iter().try_for_each(|section| write!(f, "\n{section}"))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::from("#");
        for word in self.why.split(' ') {
            if line.len() + 1 + word.len() > 90 {
                writeln!(f, "{line}")?;
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        writeln!(f, "{line}")?;
        for Rule { path, capability } in &self.rules {
            let path = path.replace('\\', "\\\\").replace('"', "\\\"");
            writeln!(f, "path \"{path}\" {{\n  capabilities = [\"{capability}\"]\n}}")?;
        }
        Ok(())
    }
}

fn rule(path: String, capability: &'static str) -> Rule {
    Rule { path, capability }
}

/// `update` and never `create` for encrypt: with `create`, an encrypt with a misspelt name
/// would make a key.
fn of_kek(kek: &KekSettings, below: &str) -> Section {
    let KekSettings { name, mount, transit_key: key, .. } = kek;
    let path = |verb: &str| format!("{below}{mount}/{verb}/{key}");
    Section {
        why: format!("KEK {name}: encrypt, decrypt, and see which versions there are."),
        rules: vec![
            rule(path("encrypt"), "update"),
            rule(path("decrypt"), "update"),
            rule(path("keys"), "read"),
        ],
    }
}

fn of_token(auth: &AuthSettings) -> Vec<Section> {
    let mut sections = vec![Section {
        why: "The token's own life. Vault's `default` policy grants it too; it stands here for \
              tokens without that."
            .to_owned(),
        rules: vec![
            rule("auth/token/lookup-self".into(), "read"),
            rule("auth/token/renew-self".into(), "update"),
        ],
    }];
    if !matches!(auth, AuthSettings::Token(_) | AuthSettings::TokenFile(_)) {
        sections.push(Section {
            why: "Gives back the token of a rehearsed login at once.".to_owned(),
            rules: vec![rule("auth/token/revoke-self".into(), "update")],
        });
    }
    if let AuthSettings::AppRole(role) = auth
        && !matches!(role.secret_id, SecretId::None)
    {
        sections.push(Section {
            why: "Shows, before a login is rehearsed, that it costs no use of a limited secret \
                  ID. Only who knows a secret ID can ask about it."
                .to_owned(),
            rules: vec![rule(format!("auth/{}/role/+/secret-id/lookup", role.mount), "update")],
        });
    }
    sections
}

/// How a policy of namespace `home` writes a path in `wanted`: with what lies between them
/// before it. `None` when `wanted` is not below `home`.
fn below(home: Option<&str>, wanted: Option<&str>) -> Option<String> {
    let parts = |namespace: Option<&str>| {
        let parts = namespace.unwrap_or_default().split('/').filter(|part| !part.is_empty());
        parts.filter(|part| *part != "root").map(str::to_owned).collect::<Vec<_>>()
    };
    let (home, wanted) = (parts(home), parts(wanted));
    let rest = wanted.strip_prefix(home.as_slice())?;
    Some(rest.iter().map(|part| format!("{part}/")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_from_the_namespace_of_the_token() {
        let prefix = |home, wanted| below(home, wanted);
        assert_eq!(prefix(None, None).as_deref(), Some(""));
        assert_eq!(prefix(None, Some("root")).as_deref(), Some(""));
        assert_eq!(prefix(None, Some("a/b/")).as_deref(), Some("a/b/"));
        assert_eq!(prefix(Some("/a"), Some("a/b")).as_deref(), Some("b/"));
        assert_eq!(prefix(Some("a"), Some("a")).as_deref(), Some(""));
        assert_eq!(prefix(Some("a"), Some("ab")), None);
        assert_eq!(prefix(Some("a"), None), None);
    }

    #[test]
    fn a_long_reason_is_broken_and_a_quote_does_not_end_the_path() {
        let section = Section {
            why: "word ".repeat(40).trim_end().to_owned(),
            rules: vec![rule("a\"b/*".into(), "read")],
        };
        let text = section.to_string();
        assert!(text.lines().all(|line| line.len() <= 90), "{text}");
        assert!(text.ends_with("path \"a\\\"b/*\" {\n  capabilities = [\"read\"]\n}\n"), "{text}");
    }
}
