//! From another plugin to this one, on its socket path, and on to another key.

use std::path::Path;

use serde_json::json;

use super::Told;
use super::plane::{Apiservers, Census, OBJECTS, PATIENCE, Plane};
use crate::other_plugin::OtherPlugin;
use crate::process::temporary_folder;
use crate::{Callers, Daemon, DevNode, Etcd, Kms, Result};

/// What that plugin calls its key by itself.
const OLD: &str = "kms";
const NEW: &str = "kube-2026";
const ONE: &str = "/registry/secrets/default/before-00";

pub(super) async fn walk(daemon: &Path) -> Result<Told> {
    let (bao, etcd) = tokio::try_join!(DevNode::start(), Etcd::start())?;
    bao.create_keys(&[OLD, NEW]).await?;
    let config = bao.config(&[OLD, NEW]).await?;
    let told = Told::of(&[("bao", &bao, &config)]);
    let folder = temporary_folder("plugin-")?;
    let socket = folder.path().join("vaultkms.socket");

    // What the other plugin leaves behind.
    let other = OtherPlugin::start(bao.admin(), OLD, &socket)?;
    let mut apiservers = Apiservers::start(&etcd, &Kms::new(&socket));
    apiservers.create("before").await?;
    other.stop().await;
    let old = bao.admin().encrypt(OLD, &[7; 32]).await?;

    // The apiservers go on, and dial the path anew.
    let builder = Daemon::builder(daemon).config(&config).config_name("vault-plugin.yaml");
    let started = builder.socket(&socket).start().await?;
    let mut plane = Plane::take_over(daemon, etcd, started, apiservers, told).await?;
    let callers = Callers::start(&plane.daemon.kms(), 4, &[(old.into_bytes(), vec![7; 32])]);
    callers.more(50, PATIENCE).await?;
    plane.read(&["before"]).await?;
    plane.told.step("the other plugin is stopped, and this daemon started on its socket path");
    plane.inspect(ONE).await?;
    plane.run(&["census"], 0).await?;
    let all = 2 * OBJECTS;
    // Nothing names its key, so nothing passes.
    for key in [OLD, NEW] {
        counted(&plane.count(key, false).await?, [all, 0, 0])?;
    }

    plane.told.step("kube-2026 is moved first");
    plane.reload(&config.clone().keys(&[NEW, OLD]), false).await?;
    plane.apiservers.create("between").await?;
    plane.read(&["before", "between"]).await?;
    plane.run(&["census", "--require-none-on", OLD], 2).await?;
    counted(&plane.count(OLD, false).await?, [all, 0, all])?;
    callers.more(50, PATIENCE).await?;

    plane.told.step("the objects are written anew, by the commands that census has named");
    let written = plane.apiservers.rewrite().await?;
    demand!(written == (OBJECTS, all), "{written:?} were written anew");
    plane.run(&["census", "--require-none-on", OLD], 0).await?;
    counted(&plane.count(OLD, true).await?, [0, 0, 2 * all])?;
    plane.inspect(ONE).await?;
    callers.more(50, PATIENCE).await?;
    let seen = callers.finish().await;
    demand!(seen.failures.is_empty(), "{}", seen.failures_told());

    plane.told.step("kms is retired");
    plane.reload(&config.keys(&[NEW]).with("retired", json!([OLD])), false).await?;
    bao.admin().delete_key(OLD).await?;
    plane.read(&["before", "between"]).await?;
    plane.end().await
}

/// How many objects name no key, how many the old one, and how many the new one.
fn counted(census: &Census, expected: [usize; 3]) -> Result {
    let unnamed = census.of("kek_is", "unnamed");
    let counted = [unnamed, census.of("kek", OLD), census.of("kek", NEW)];
    demand!(counted == expected, "{expected:?}: {:#}", census.0);
    Ok(())
}
