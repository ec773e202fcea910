//! TOML into the same tree.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Content, Key, Node};
use crate::config::diagnostics::{Place, Problem};

/// Reads a TOML document; `at` makes a place of a line and a column, both from 1.
pub(super) fn parse(
    text: &str,
    at: impl Fn(usize, usize) -> Place,
    problems: &mut Vec<Problem>,
) -> Option<Node> {
    let at_offset = |offset: usize| {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        at(before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    };
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let place = at(1, 1);
        return Some(Node { place, content: block(root.get_ref(), &at_offset) });
    }
    problems.extend(errors.iter().map(|error| {
        let place = error.span().map(|span| at_offset(span.start));
        Problem::error(
            "",
            place,
            format!("this is not TOML: {}", error.message()),
            "correct this line; text stands in quotes, and a key stands once",
        )
    }));
    None
}

fn node(value: &Spanned<DeValue<'_>>, at: &impl Fn(usize) -> Place) -> Node {
    let content = match value.get_ref() {
        DeValue::String(text) => Content::Text(text.to_string()),
        DeValue::Integer(number) => Content::Text(number.to_string()),
        DeValue::Float(number) => Content::Text(number.to_string()),
        DeValue::Boolean(flag) => Content::Text(flag.to_string()),
        DeValue::Datetime(moment) => Content::Text(moment.to_string()),
        DeValue::Array(items) => Content::List(items.iter().map(|i| node(i, at)).collect()),
        DeValue::Table(table) => block(table, at),
    };
    Node { place: at(value.span().start), content }
}

/// The table's map is sorted by name; the file's order is that of the places.
fn block(table: &DeTable<'_>, at: &impl Fn(usize) -> Place) -> Content {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        (Key { name: name.to_string(), place: at(key.span().start) }, node(value, at))
    };
    Content::Block(entries.into_iter().map(entry).collect())
}
