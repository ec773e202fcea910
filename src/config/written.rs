//! What the file says, in a form that can be kept for a later start: the same keys and
//! values, without comments, as YAML.

use super::file::schema::{FILE, Key, Shape};
use super::file::{Content, Node};

/// A configuration file's content.
#[derive(Clone)]
pub struct Written {
    yaml: String,
    has_secret: bool,
}

// === impl Written ===

impl Written {
    /// What `root` says, which conforms to the schema.
    pub(super) fn of(root: &Node) -> Self {
        let mut yaml = String::new();
        for (key, node) in entries(root) {
            let mut value = String::new();
            write(node, &mut value);
            yaml.push_str(&format!("{}: {value}\n", quoted(key)));
        }
        Self { yaml, has_secret: has_secret(root, FILE) }
    }

    /// The text; `None` when a secret stands in it, which is kept nowhere else than where
    /// somebody has put it.
    pub fn without_secret(&self) -> Option<&str> {
        (!self.has_secret).then_some(self.yaml.as_str())
    }
}

/// Shows no value: there may be a secret among them.
impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Written").field("has_secret", &self.has_secret).finish_non_exhaustive()
    }
}

fn entries(node: &Node) -> impl Iterator<Item = (&str, &Node)> {
    let entries = match &node.content {
        Content::Block(entries) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|(key, node)| (key.name.as_str(), node))
}

/// In YAML's flow form, which is JSON's; the order is the file's, for it means something.
fn write(node: &Node, out: &mut String) {
    match &node.content {
        Content::Null | Content::Broken => out.push_str("null"),
        Content::Text(text) => out.push_str(&quoted(text)),
        Content::List(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { ", " });
                write(item, out);
            }
            out.push(']');
        }
        Content::Block(_) => {
            out.push_str("{ ");
            for (n, (key, value)) in entries(node).enumerate() {
                out.push_str(if n == 0 { "" } else { ", " });
                out.push_str(&quoted(key));
                out.push_str(": ");
                write(value, out);
            }
            out.push_str(" }");
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn has_secret(node: &Node, keys: &'static [Key]) -> bool {
    entries(node).any(|(name, value)| {
        let Some(key) = keys.iter().find(|key| key.name == name) else { return false };
        match key.shape {
            Shape::Secret => !matches!(value.content, Content::Null),
            Shape::Block(keys) => has_secret(value, keys),
            Shape::Named(keys) => entries(value).any(|(_, block)| has_secret(block, keys)),
            Shape::TextsOrBlocks(keys) => match &value.content {
                Content::List(items) => items.iter().any(|item| has_secret(item, keys)),
                _ => has_secret(value, keys),
            },
            Shape::Text | Shape::Texts | Shape::TextOrTexts => false,
        }
    })
}
