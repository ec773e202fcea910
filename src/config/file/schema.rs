//! Which keys there are and what shape each takes.

/// One key that may be written.
#[derive(Debug)]
pub(in crate::config) struct Key {
    /// Its name.
    pub(in crate::config) name: &'static str,
    /// What it takes.
    pub(in crate::config) shape: Shape,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum Shape {
    /// One value.
    Text,
    /// One value that no message shows.
    Secret,
    /// A list of values.
    Texts,
    /// One value or a list of them.
    TextOrTexts,
    /// Keys.
    Block(&'static [Key]),
    /// Names of the operator's choice, with a block under each.
    Named(&'static [Key]),
    /// A list whose items are values or blocks.
    TextsOrBlocks(&'static [Key]),
}

use Shape::{Block, Named, Secret, Text, TextOrTexts, Texts, TextsOrBlocks};

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape }
}

/// Every key of the file.
pub(in crate::config) const FILE: &[Key] = &[
    key("keyNames", TextsOrBlocks(KEK)),
    // One cluster, called `default`.
    key("addr", TextOrTexts),
    key("namespace", Text),
    key("transitPath", Text),
    key("vaultCACert", Text),
    key("clientCert", Text),
    key("clientKey", Text),
    key("tlsServerName", Text),
    key("allowPlaintext", Text),
    key("tokenCache", Text),
    key("token", Secret),
    key("tokenFile", Text),
    key("roleID", Text),
    key("roleIDFile", Text),
    key("secretID", Secret),
    key("secretIDFile", Text),
    key("authPath", Text),
    key("auth", Block(AUTH)),
    // Any number of clusters.
    key("clusters", Named(CLUSTER)),
    key("dns", Block(&[key("servers", Texts)])),
    key("socket", Block(SOCKET)),
    key("rotation", Block(&[key("refresh", Text), key("activationDelay", Text)])),
    key("verifyEncrypt", Text),
    key("write", Block(&[key("format", Text)])),
    key("statusVersion", Text),
    key("status", Block(&[key("grace", Text), key("onOutage", Text)])),
    key("legacy", Block(&[key("key", Text), key("baoKmsProvider", Block(BAO_KMS_PROVIDER))])),
    key("calls", Block(&[key("maxConcurrent", Text), key("defaultDeadline", Text)])),
    key("admin", Block(&[key("listen", Text)])),
    key("log", Block(&[key("level", Text), key("format", Text)])),
    key("traces", Block(&[key("endpoint", Text), key("protocol", Text), key("sampleRatio", Text)])),
    key("shutdownGrace", Text),
    key("reloadTimeout", Text),
    key("reload", Block(&[key("strict", Text)])),
    key("watchConfig", Text),
    key("retired", Texts),
    key("stateDir", Text),
];

const KEK: &[Key] = &[
    key("name", Text),
    key("transitKey", Text),
    key("mount", Text),
    key("transitPath", Text),
    key("namespace", Text),
    key("cluster", Text),
    key("clusters", TextOrTexts),
    key("epoch", Text),
    key("activeVersion", Text),
];

const CLUSTER: &[Key] = &[
    key("addr", TextOrTexts),
    key("namespace", Text),
    key("transitPath", Text),
    key("vaultCACert", Text),
    key("clientCert", Text),
    key("clientKey", Text),
    key("tlsServerName", Text),
    key("allowPlaintext", Text),
    key("tokenCache", Text),
    key("auth", Block(AUTH)),
];

const AUTH: &[Key] = &[
    key("namespace", Text),
    key("token", Secret),
    key("tokenFile", Text),
    key("appRole", Block(APP_ROLE)),
    key("kubernetes", Block(SIGNED_TOKEN)),
    key("jwt", Block(SIGNED_TOKEN)),
    key("cert", Block(&[key("role", Text), key("mount", Text)])),
    key("userpass", Block(USERPASS)),
];

const APP_ROLE: &[Key] = &[
    key("roleID", Text),
    key("roleIDFile", Text),
    key("secretID", Secret),
    key("secretIDFile", Text),
    key("wrappedSecretID", Secret),
    key("wrappedSecretIDFile", Text),
    key("mount", Text),
];

/// Of a login with a signed token in a file.
const SIGNED_TOKEN: &[Key] = &[key("role", Text), key("tokenFile", Text), key("mount", Text)];

const USERPASS: &[Key] = &[
    key("username", Text),
    key("password", Secret),
    key("passwordFile", Text),
    key("mount", Text),
];

const BAO_KMS_PROVIDER: &[Key] =
    &[key("providerName", Text), key("clusterId", Text), key("instanceId", Text)];

const SOCKET: &[Key] = &[
    key("path", Text),
    key("mode", Text),
    key("owner", Text),
    key("group", Text),
    key("allowedUids", Texts),
];

/// The key of `keys` that `name` means when case, `_` and `-` do not count.
pub(in crate::config) fn find_loosely(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    let wanted = loose(name);
    keys.iter().find(|key| loose(key.name) == wanted)
}

/// The key of `keys` that `name` most likely was meant to be.
pub(in crate::config) fn closest(keys: &'static [Key], name: &str) -> Option<&'static str> {
    let wanted = loose(name);
    keys.iter()
        .map(|key| (strsim::damerau_levenshtein(&loose(key.name), &wanted), key.name))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

/// The path of `name` under the path of its block.
pub(in crate::config) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn loose(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect()
}
