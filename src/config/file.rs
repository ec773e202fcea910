//! What an operator writes: a tree of texts, lists and blocks in which every node knows
//! its place. YAML and TOML are read into the same tree.
//!
//! A scalar stays the text that was written, quotes or none: `mode: 0660`, a key called
//! `2026` or a role id of digits only lose nothing on their way through a number. What a
//! key wants is decided where its value is used.

pub(super) mod conform;
pub(super) mod schema;
mod toml;
mod yaml;

use std::path::Path;
use std::sync::Arc;

use super::diagnostics::{Place, Problem};

/// One node of what was written.
#[derive(Clone)]
pub(super) struct Node {
    /// Where it begins.
    pub(super) place: Place,
    /// What it is.
    pub(super) content: Content,
}

/// What a node is.
#[derive(Clone)]
pub(super) enum Content {
    /// Nothing was written, or `null`.
    Null,
    /// A scalar, as written.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A block; keys in the file's order, repeated ones included.
    Block(Vec<(Key, Node)>),
    /// Something that was reported already.
    Broken,
}

/// A key of a block.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// As written.
    pub(super) name: String,
    /// Where it stands.
    pub(super) place: Place,
}

/// A configuration has a few kilobytes; anything larger is some other file.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Turns the file's bytes into a tree; what cannot be read is reported.
pub(super) fn parse(file: &Path, bytes: &[u8], problems: &mut Vec<Problem>) -> Option<Node> {
    let file: Arc<Path> = file.into();
    let whole = Place::File(file.clone());
    let mut refuse = |what: String, advice: &str| {
        problems.push(Problem::error("", Some(whole.clone()), what, advice));
        None
    };
    if bytes.len() > MAX_BYTES {
        return refuse(
            format!("the file has {} bytes, more than a configuration can have", bytes.len()),
            "name the configuration file, not some other one",
        );
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text.strip_prefix('\u{feff}').unwrap_or(text),
        _ => {
            return refuse(
                "the file is binary, not text".to_owned(),
                "write YAML (or TOML in a file whose name ends in .toml), encoded in UTF-8",
            );
        }
    };
    let is_toml = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
    let at = |line, column| Place::Position { file: file.clone(), line, column };
    let root =
        if is_toml { toml::parse(text, at, problems) } else { yaml::parse(text, at, problems) }?;
    match root.content {
        Content::Block(ref entries) if !entries.is_empty() => Some(root),
        Content::Null | Content::Block(_) => {
            problems.push(Problem::error(
                "",
                Some(whole),
                "the file is empty",
                "write at least keyNames, addr and a way to log in; see config/vault-plugin.yaml",
            ));
            None
        }
        Content::Text(_) | Content::List(_) => {
            problems.push(Problem::error(
                "",
                Some(root.place),
                "the file does not begin with a key",
                "write lines of the form `key: value`; see config/vault-plugin.yaml",
            ));
            None
        }
        Content::Broken => None,
    }
}

/// Reads a value in YAML's flow form (`[a, b]`), all of which stands at `place`.
pub(super) fn parse_flow(text: &str, place: &Place, problems: &mut Vec<Problem>) -> Option<Node> {
    yaml::parse(text, |_, _| place.clone(), problems)
}

// === impl Node ===

impl Node {
    /// A scalar.
    pub(super) fn text(text: impl Into<String>, place: Place) -> Self {
        Self { place, content: Content::Text(text.into()) }
    }

    /// An empty block.
    pub(super) fn block(place: Place) -> Self {
        Self { place, content: Content::Block(Vec::new()) }
    }

    /// Puts `value` under the keys of `path`, making the blocks on the way.
    pub(super) fn insert(&mut self, path: &[String], value: Self) {
        let Content::Block(entries) = &mut self.content else { return };
        let Some((first, rest)) = path.split_first() else { return };
        let place = value.place.clone();
        if rest.is_empty() {
            entries.push((Key { name: first.clone(), place }, value));
        } else if let Some((_, block)) = entries.iter_mut().find(|(key, _)| key.name == *first) {
            block.insert(rest, value);
        } else {
            let mut block = Self::block(place.clone());
            block.insert(rest, value);
            entries.push((Key { name: first.clone(), place }, block));
        }
    }
}
