//! The examples load, and the reference names every key.

use super::*;
use crate::config::file::schema::{FILE, Key, Shape};

const EXAMPLE: &str = include_str!("../../../config/vault-plugin.yaml");
const SEVERAL: &str = include_str!("../../../config/several-clusters.yaml");
const REFERENCE: &str = include_str!("../../../docs/configuration.md");

/// Every key path that the reference must name.
fn paths(keys: &[Key], above: &str) -> Vec<String> {
    let mut found = Vec::new();
    for key in keys {
        let path = format!("{above}{}", key.name);
        found.push(path.clone());
        found.extend(match key.shape {
            Shape::Block(keys) => paths(keys, &format!("{path}.")),
            Shape::Named(keys) => paths(keys, &format!("{path}.<name>.")),
            Shape::TextsOrBlocks(keys) => paths(keys, &format!("{path}[].")),
            Shape::Text | Shape::Secret | Shape::Texts | Shape::TextOrTexts => Vec::new(),
        });
    }
    found
}

#[test]
fn the_annotated_example_loads_without_a_problem() {
    let case = Case::yaml(EXAMPLE);
    assert_eq!(case.warnings(), Vec::<String>::new());
    assert_eq!(case.accepted().settings.keyring.keks.len(), 2);
}

#[test]
fn the_example_of_several_clusters_warns_of_its_pin_only() {
    let case = Case::yaml(SEVERAL);
    let warnings = case.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("activeVersion"), "{warnings:?}");
    assert_eq!(case.accepted().settings.clusters.len(), 2);
}

#[test]
fn the_example_says_what_the_defaults_are() {
    let defaults = crate::config::load::DEFAULTS;
    for line in defaults.lines().filter(|line| !line.starts_with('#')) {
        assert!(EXAMPLE.contains(line), "`{line}` is not in the example");
        if let Some((_, value)) = line.split_once(": ") {
            let shown = format!("`{}`", value.trim_matches('"'));
            assert!(REFERENCE.contains(&shown), "{shown} is not in the reference");
        }
    }
}

#[test]
fn the_reference_names_every_key_and_the_examples_show_it() {
    for path in paths(FILE, "") {
        // The ways to log in are told once, for both places.
        let path = match path.strip_prefix("clusters.<name>.") {
            Some(in_cluster) if in_cluster.starts_with("auth.") => in_cluster.to_owned(),
            _ => path,
        };
        assert!(REFERENCE.contains(&format!("| `{path}` |")), "`{path}` is not in the reference");
        let name = path.rsplit('.').next().unwrap();
        assert!(EXAMPLE.contains(name) || SEVERAL.contains(name), "no example shows `{path}`");
    }
}

#[test]
fn the_reference_shows_what_is_printed() {
    let mut blocks = REFERENCE.split("```");
    let file = blocks.find(|block| block.contains("mod: '0660'")).unwrap();
    let printed = blocks.find(|block| block.starts_with("text\n")).unwrap();
    let file = file.strip_prefix("yaml\n").unwrap();
    assert_eq!(Case::yaml(file).refused(), printed.strip_prefix("text\n").unwrap().trim_end());
}

#[test]
fn a_file_that_was_written_again_says_the_same() {
    for text in [EXAMPLE, SEVERAL] {
        let first = Case::yaml(text).accepted();
        let kept = first.written.as_ref().and_then(|written| written.without_secret()).unwrap();
        assert!(!kept.contains('#'), "a comment may hold what is no longer used: {kept}");
        let again = Case::yaml(kept).accepted();
        assert_eq!(format!("{:?}", again.settings), format!("{:?}", first.settings));
        assert_eq!(again.warnings.len(), first.warnings.len());
    }
}

#[test]
fn a_secret_is_not_written_again() {
    let clusters =
        "clusters: { a: { addr: https://a, auth: { userpass: { username: u, password: p } } } }";
    for text in [
        "keyNames: [kube]\naddr: https://v\ntoken: s.x\n".to_owned(),
        "keyNames: [kube]\naddr: https://v\nroleID: r\nsecretID: s\n".to_owned(),
        format!("keyNames: [kube]\n{clusters}\n"),
    ] {
        let written = Case::yaml(&text).accepted().written.unwrap();
        assert_eq!(written.without_secret(), None, "{text}");
    }
    let token = Case::yaml("keyNames: [kube]\naddr: https://v\n").env("VAULT_TOKEN", "s.x");
    let written = token.accepted().written.unwrap();
    assert!(!written.without_secret().unwrap().contains("s.x"));
}
