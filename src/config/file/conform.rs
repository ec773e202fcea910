//! Makes a tree fit the schema: unknown and repeated keys, wrong shapes and empty values
//! are reported, and what is left is what [`super::super::resolve`] can read without
//! looking twice.

use super::schema::Shape::{Block, Named, Secret, Text, TextOrTexts, Texts, TextsOrBlocks};
use super::schema::{FILE, Key, Shape, closest, join};
use super::{Content, Key as Written, Node};
use crate::config::diagnostics::{Place, Problem};
use crate::config::load::FileForm;

/// Keys that people write and that are called or placed differently here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ca-cert", "write vaultCACert"),
    ("cacert", "write vaultCACert"),
    ("address", "write addr"),
    ("status.version", "write statusVersion, without a block around it"),
    ("socketFile", "write `socket: { path: … }`"),
    ("approle", "write `appRole` under `auth`, or roleID and secretIDFile beside addr"),
];

/// Keeps of `node` what `keys` describe and reports the rest.
pub(in crate::config) fn conform(
    node: Node,
    keys: &'static [Key],
    form: FileForm,
    problems: &mut Vec<Problem>,
) -> Node {
    Conform { form, problems }.block(node, keys, "")
}

struct Conform<'a> {
    form: FileForm,
    problems: &'a mut Vec<Problem>,
}

// === impl Conform ===

impl Conform<'_> {
    fn block(&mut self, node: Node, keys: &'static [Key], path: &str) -> Node {
        let Node { place, content: Content::Block(entries) } = node else { return node };
        let mut kept: Vec<(Written, Node)> = Vec::new();
        for (written, value) in entries {
            if written.name.is_empty() {
                continue; // reported by the parser
            }
            let Some(key) = self.known(keys, &written.name) else {
                self.unknown(&written, keys, path);
                continue;
            };
            let path = join(path, key.name);
            let written = Written { name: key.name.to_owned(), ..written };
            if let Some(earlier) = kept.iter().position(|(k, _)| k.name == key.name) {
                self.repeated(&path, &kept[earlier].0.place, &written.place);
                if self.form == FileForm::Ours {
                    continue;
                }
                kept.remove(earlier);
            }
            if let Some(value) = self.value(value, key.shape, &path, &written.place) {
                kept.push((written, value));
            }
        }
        Node { place, content: Content::Block(kept) }
    }

    fn known(&self, keys: &'static [Key], name: &str) -> Option<&'static Key> {
        match self.form {
            FileForm::Ours => keys.iter().find(|key| key.name == name),
            FileForm::Oracle => keys.iter().find(|key| key.name.eq_ignore_ascii_case(name)),
        }
    }

    /// `None` when nothing is left of it.
    fn value(&mut self, node: Node, shape: Shape, path: &str, key: &Place) -> Option<Node> {
        let Node { place, content } = node;
        let fitting = |content| Some(Node { place: place.clone(), content });
        match (content, shape) {
            (Content::Broken, _) => None,
            (Content::Null, Block(_) | Named(_)) => None,
            (Content::Null, _) => self.empty(path, key),
            (Content::Text(text), Text | Secret | TextOrTexts) if text.trim().is_empty() => {
                self.empty(path, key)
            }
            (content @ Content::Text(_), Text | Secret | TextOrTexts) => fitting(content),
            (Content::Text(text), Texts | TextsOrBlocks(_)) => {
                let item = Node::text(text, place.clone());
                let from_file = matches!(place, Place::Position { .. });
                if self.form == FileForm::Ours && from_file {
                    self.problems.push(Problem::error(
                        path,
                        Some(place.clone()),
                        "a list is wanted, and this is a single value",
                        "write each item after a dash, or all between `[` and `]`",
                    ));
                }
                self.value(Node { place, content: Content::List(vec![item]) }, shape, path, key)
            }
            (Content::List(items), Texts | TextOrTexts) => {
                let items = self.items(items, path, |this, item, path| {
                    let place = item.place.clone();
                    this.value(item, Text, path, &place)
                });
                fitting(Content::List(items))
            }
            (Content::List(items), TextsOrBlocks(keys)) => {
                let items = self.items(items, path, |this, item, path| {
                    let place = item.place.clone();
                    let is_block = matches!(item.content, Content::Block(_));
                    this.value(item, if is_block { Block(keys) } else { Text }, path, &place)
                });
                fitting(Content::List(items))
            }
            (content @ Content::Block(_), Block(keys)) => {
                Some(self.block(Node { place, content }, keys, path))
            }
            (Content::Block(entries), Named(keys)) => {
                fitting(Content::Block(self.named(entries, keys, path)))
            }
            (content, shape) => {
                self.problems.push(Problem::error(
                    path,
                    Some(place.clone()),
                    format!("{} is wanted, and this is {}", wanted(shape), found(&content)),
                    example(shape),
                ));
                None
            }
        }
    }

    fn items(
        &mut self,
        items: Vec<Node>,
        path: &str,
        each: impl Fn(&mut Self, Node, &str) -> Option<Node>,
    ) -> Vec<Node> {
        let numbered = items.into_iter().enumerate();
        numbered.filter_map(|(n, item)| each(self, item, &format!("{path}[{n}]"))).collect()
    }

    fn named(
        &mut self,
        entries: Vec<(Written, Node)>,
        keys: &'static [Key],
        path: &str,
    ) -> Vec<(Written, Node)> {
        let mut kept: Vec<(Written, Node)> = Vec::new();
        for (written, value) in entries {
            let path = join(path, &written.name);
            if let Some((earlier, _)) = kept.iter().find(|(k, _)| k.name == written.name) {
                let earlier = earlier.place.clone();
                self.repeated(&path, &earlier, &written.place);
                continue;
            }
            let value = match value.content {
                // Nothing under the name: everything that it needs is missing.
                Content::Null => Some(Node::block(value.place)),
                _ => self.value(value, Block(keys), &path, &written.place),
            };
            kept.extend(value.map(|value| (written, value)));
        }
        kept
    }

    /// The Oracle plugin takes an empty value for an absent one.
    fn empty(&mut self, path: &str, key: &Place) -> Option<Node> {
        if self.form == FileForm::Ours {
            self.problems.push(Problem::error(
                path,
                Some(key.clone()),
                "there is no value",
                "write one, or remove the key",
            ));
        }
        None
    }

    fn repeated(&mut self, path: &str, first: &Place, again: &Place) {
        let what = format!("the key stands here a second time; the first is at {first}");
        self.problems.push(match self.form {
            FileForm::Ours => {
                Problem::error(path, Some(again.clone()), what, "keep one of the two")
            }
            FileForm::Oracle => Problem::warning(
                path,
                Some(again.clone()),
                format!("{what}; this one counts"),
                "keep one of the two",
            ),
        });
    }

    fn unknown(&mut self, written: &Written, keys: &'static [Key], path: &str) {
        let full = join(path, &written.name);
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| name.eq_ignore_ascii_case(&full));
        let advice = if let Some((_, advice)) = elsewhere {
            (*advice).to_owned()
        } else if let Some(blocks) = homes_of(&written.name) {
            format!("it belongs into the block {blocks}")
        } else if let Some(known) = closest(keys, &written.name) {
            format!("did you mean `{known}`?")
        } else {
            let names: Vec<_> = keys.iter().map(|key| key.name).collect();
            format!("remove it; the keys here are {}", names.join(", "))
        };
        let place = Some(written.place.clone());
        self.problems.push(match self.form {
            FileForm::Ours => Problem::error(full, place, "there is no such key", advice),
            FileForm::Oracle => Problem::warning(
                full,
                place,
                "there is no such key; it is ignored, as the Oracle plugin ignores it",
                advice,
            ),
        });
    }
}

/// The blocks at the top of the file that have a key of this name.
fn homes_of(name: &str) -> Option<String> {
    let has_it = |key: &&Key| match key.shape {
        Block(keys) => keys.iter().any(|k| k.name == name),
        _ => false,
    };
    let blocks = FILE.iter().filter(has_it).map(|key| format!("`{}`", key.name));
    Some(blocks.collect::<Vec<_>>().join(" or ")).filter(|blocks| !blocks.is_empty())
}

const fn wanted(shape: Shape) -> &'static str {
    match shape {
        Text | Secret => "a single value",
        Texts => "a list",
        TextOrTexts => "a value or a list of values",
        Block(_) => "a block of keys",
        Named(_) => "a block of names",
        TextsOrBlocks(_) => "a list of names or blocks",
    }
}

const fn found(content: &Content) -> &'static str {
    match content {
        Content::Null | Content::Broken => "nothing",
        Content::Text(_) => "a single value",
        Content::List(_) => "a list",
        Content::Block(_) => "a block of keys",
    }
}

const fn example(shape: Shape) -> &'static str {
    match shape {
        Text | Secret => "write `key: value` on one line",
        Texts | TextOrTexts => "write each item after a dash, or all between `[` and `]`",
        Block(_) => "write its keys on the lines below, indented",
        Named(_) => "write a name, a colon, and its keys on the lines below, indented",
        TextsOrBlocks(_) => "write each item after a dash",
    }
}
