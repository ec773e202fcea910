//! One source's values for figment to merge, and the way back from a merged value to the
//! place where it was written.

use std::collections::HashMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::config::diagnostics::Place;
use crate::config::file::schema::join;
use crate::config::file::{Content, Node};

/// One source's values.
pub(in crate::config) struct Layer {
    name: &'static str,
    values: Dict,
    places: HashMap<String, Place>,
}

/// The merged values, each of which knows its layer.
pub(in crate::config) struct Merged<'a> {
    figment: &'a Figment,
    layers: &'a [Layer],
    root: Value,
}

/// A value of [`Merged`], with its key path. Its shape is what the schema says, so that
/// the readers below need no second check.
#[derive(Clone)]
pub(in crate::config) struct Field<'a> {
    merged: &'a Merged<'a>,
    path: String,
    value: &'a Value,
}

// === impl Layer ===

impl Layer {
    /// The values of `root`, which conforms to the schema.
    pub(in crate::config) fn new(name: &'static str, root: Option<Node>) -> Self {
        let mut places = HashMap::new();
        let values = match root.map(|root| value(root, "", &mut places)) {
            Some(Some(Value::Dict(_, values))) => values,
            _ => Dict::new(),
        };
        Self { name, values, places }
    }
}

fn value(node: Node, path: &str, places: &mut HashMap<String, Place>) -> Option<Value> {
    places.entry(path.to_owned()).or_insert(node.place);
    match node.content {
        Content::Text(text) => Some(Value::from(text)),
        Content::List(items) => {
            let numbered = items.into_iter().enumerate();
            let items = numbered.filter_map(|(n, i)| value(i, &format!("{path}[{n}]"), places));
            Some(Value::from(items.collect::<Vec<_>>()))
        }
        Content::Block(entries) => {
            let mut dict = Dict::new();
            for (key, node) in entries {
                let path = join(path, &key.name);
                // A block is found by its key, a value by itself.
                if !matches!(node.content, Content::Text(_)) {
                    places.insert(path.clone(), key.place);
                }
                if let Some(value) = value(node, &path, places) {
                    dict.insert(key.name, value);
                }
            }
            Some(Value::from(dict))
        }
        Content::Null | Content::Broken => None,
    }
}

impl Provider for &Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

// === impl Merged ===

impl<'a> Merged<'a> {
    /// What `figment` made of `layers`.
    pub(in crate::config) fn new(figment: &'a Figment, layers: &'a [Layer]) -> Self {
        // Only a provider can fail, and a layer never does.
        let root = figment.find_value("").unwrap_or_else(|_| Value::from(Dict::new()));
        Self { figment, layers, root }
    }

    /// The whole.
    pub(in crate::config) fn root(&self) -> Field<'_> {
        Field { merged: self, path: String::new(), value: &self.root }
    }
}

// === impl Field ===

impl<'a> Field<'a> {
    /// Its key path.
    pub(in crate::config) fn path(&self) -> &str {
        &self.path
    }

    /// Where it was written.
    pub(in crate::config) fn place(&self) -> Option<Place> {
        let layers = self.merged.layers;
        let place_in = |layer: &Layer| layer.places.get(&self.path).cloned();
        // Several sources may have written into a block: the first after the defaults.
        if self.is_block() {
            return layers.iter().skip(1).find_map(place_in);
        }
        let source = self.merged.figment.get_metadata(self.value.tag())?;
        layers.iter().find(|layer| layer.name == source.name).and_then(place_in)
    }

    /// Whether nobody wrote it.
    pub(in crate::config) fn is_default(&self) -> bool {
        matches!(self.place(), None | Some(Place::Default))
    }

    /// The value under `key`, when there is one.
    pub(in crate::config) fn get(&self, key: &str) -> Option<Self> {
        let value = self.value.as_dict()?.get(key)?;
        Some(Self { merged: self.merged, path: join(&self.path, key), value })
    }

    /// The value at the end of `path`, when there is one.
    pub(in crate::config) fn find(&self, path: &[&str]) -> Option<Self> {
        path.iter().try_fold(self.clone(), |field, key| field.get(key))
    }

    /// The text of a single value.
    pub(in crate::config) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    /// The items of a list; a single value is a list of one.
    pub(in crate::config) fn items(&self) -> Vec<Self> {
        let Some(items) = self.value.as_array() else { return vec![self.clone()] };
        let numbered = items.iter().enumerate();
        let item =
            |(n, value)| Self { merged: self.merged, path: format!("{}[{n}]", self.path), value };
        numbered.map(item).collect()
    }

    /// Whether it is a list.
    pub(in crate::config) fn is_list(&self) -> bool {
        self.value.as_array().is_some()
    }

    /// Whether it is a block.
    pub(in crate::config) fn is_block(&self) -> bool {
        self.value.as_dict().is_some()
    }

    /// The names in a block and what stands under them, in the file's order.
    pub(in crate::config) fn entries(&self) -> Vec<(&'a str, Self)> {
        let Some(dict) = self.value.as_dict() else { return Vec::new() };
        let mut entries: Vec<_> = dict
            .iter()
            .map(|(name, value)| {
                let path = join(&self.path, name);
                (name.as_str(), Self { merged: self.merged, path, value })
            })
            .collect();
        entries.sort_by_cached_key(|(_, field)| field.place());
        entries
    }
}
