//! From one version of a key to the next.

use std::path::Path;

use super::Told;
use super::plane::{OBJECTS, PATIENCE, Plane};
use crate::{Callers, DevNode, Result};

const KEY: &str = "kube";

pub(super) async fn walk(daemon: &Path) -> Result<Told> {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let config = bao.config(&[KEY]).await?;
    let told = Told::of(&[("bao", &bao, &config)]);
    let mut plane = Plane::start(daemon, &config, told).await?;
    plane.apiservers.create("before").await?;
    let v2 = plane.daemon.kms().v2();
    let before = v2.status().await?.key_id;
    let callers = Callers::start(&plane.daemon.kms(), 4, &[]);
    callers.more(50, PATIENCE).await?;

    plane.told.step("bao write -f transit/keys/kube/rotate");
    bao.admin().rotate(KEY).await?;
    v2.wait_other_key_id(&before, PATIENCE).await?;
    callers.more(50, PATIENCE).await?;
    plane.apiservers.create("between").await?;
    plane.read(&["before", "between"]).await?;
    plane.run(&["census", "--require-none-on", "kube:v1"], 2).await?;
    let census = plane.count("kube:v1", false).await?;
    let said = "on versions of kube before v2";
    demand!(census.of("kek", KEY) == 4 * OBJECTS && census.says(said), "{:#}", census.0);

    plane.told.step("the objects are written anew, by the commands that census has named");
    let written = plane.apiservers.rewrite().await?;
    demand!(written == (OBJECTS, 2 * OBJECTS), "{written:?} were written anew");
    callers.more(50, PATIENCE).await?;
    plane.run(&["census", "--require-none-on", "kube:v1"], 0).await?;
    let seen = callers.finish().await;
    demand!(seen.failures.is_empty(), "{}", seen.failures_told());

    plane.told.step("bao write transit/keys/kube/config min_decryption_version=2");
    bao.admin().set_min_decryption_version(KEY, 2).await?;
    plane.read(&["before", "between"]).await?;
    plane.inspect("/registry/configmaps/default/before-00").await?;
    plane.end().await
}
