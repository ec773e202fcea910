//! YAML into a tree, from the events of the parser that serde-saphyr is built on: they
//! carry places, keep repeated keys and show scalars as they were written, none of which
//! survives serde.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span, Tag, options};

use super::{Content, Key, Node};
use crate::config::diagnostics::{Place, Problem};

/// The deepest block of a valid file has 4 levels.
const MAX_DEPTH: usize = 16;

/// A list or block that has not ended yet.
enum Open {
    List(Place, Vec<Node>),
    Block(Place, Vec<(Key, Node)>, Option<Key>),
}

/// Reads one YAML document; `at` makes a place of a line and a column, both from 1.
pub(super) fn parse(
    text: &str,
    at: impl Fn(usize, usize) -> Place,
    problems: &mut Vec<Problem>,
) -> Option<Node> {
    let options = options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match event {
            Ok(parsed) => parsed,
            Err(error) => {
                let place = at(error.marker().line(), error.marker().col() + 1);
                problems.push(Problem::error(
                    "",
                    Some(place),
                    format!("this is not YAML: {}", error.info()),
                    "correct this line or the one above it; indent with spaces, and put text \
                     with special characters in quotes",
                ));
                return None;
            }
        };
        let place = start(&span, &at);
        if event.tag().is_some_and(|tag| !is_text_tag(tag)) {
            problems.push(Problem::error(
                "",
                Some(place.clone()),
                "tags (`!name`) have no meaning here",
                "write the value without a tag; put text that begins with `!` in quotes",
            ));
        }
        let node = match event {
            Event::Scalar(text, style, ..) => Some(Node { place, content: scalar(&text, style) }),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                problems.push(Problem::error(
                    "",
                    Some(place.clone()),
                    "aliases (`*name`) are not read",
                    "write the value out; put text that begins with `*` in quotes",
                ));
                Some(Node { place, content: Content::Broken })
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(place, Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Block(place, Vec::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(Open::close),
            Event::DocumentStart(..) if root.is_some() => {
                problems.push(Problem::error(
                    "",
                    Some(place),
                    "a second document begins here",
                    "write everything in one document, without `---` in between",
                ));
                return None;
            }
            _ => None,
        };
        if let Some(node) = node {
            match open.last_mut() {
                Some(parent) => parent.add(node, problems),
                None => root = Some(node),
            }
        }
    }
    Some(root.unwrap_or(Node { place: at(1, 1), content: Content::Null }))
}

fn start(span: &Span, at: &impl Fn(usize, usize) -> Place) -> Place {
    at(span.start.line(), span.start.col() + 1)
}

fn is_text_tag(tag: &Tag) -> bool {
    tag.is_yaml_core_schema_tag("str")
}

fn scalar(text: &str, style: ScalarStyle) -> Content {
    let is_null = matches!(text, "" | "~" | "null" | "Null" | "NULL");
    if is_null && style == ScalarStyle::Plain {
        Content::Null
    } else {
        Content::Text(text.to_owned())
    }
}

// === impl Open ===

impl Open {
    fn add(&mut self, node: Node, problems: &mut Vec<Problem>) {
        match self {
            Self::List(_, items) => items.push(node),
            Self::Block(_, _, key @ None) => {
                let name = match node.content {
                    Content::Text(name) => name,
                    Content::Null => "null".to_owned(),
                    Content::List(_) | Content::Block(_) | Content::Broken => {
                        problems.push(Problem::error(
                            "",
                            Some(node.place.clone()),
                            "a key must be text",
                            "write `key: value`",
                        ));
                        String::new()
                    }
                };
                *key = Some(Key { name, place: node.place });
            }
            Self::Block(_, entries, key) => {
                if let Some(key) = key.take() {
                    entries.push((key, node));
                }
            }
        }
    }

    fn close(self) -> Node {
        match self {
            Self::List(place, items) => Node { place, content: Content::List(items) },
            Self::Block(place, entries, _) => Node { place, content: Content::Block(entries) },
        }
    }
}
