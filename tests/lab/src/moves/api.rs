//! From KMS v1 to KMS v2 of this daemon, over one socket: only the EncryptionConfiguration
//! changes, of one kube-apiserver after the other.

use std::path::Path;

use super::Told;
use super::plane::{OBJECTS, PATIENCE, Plane, SECRETS, objects};
use crate::apiserver::{Provider, Registry, v1, v2};
use crate::{Callers, DevNode, Kms, Result};

const V1: &str = "k8s:enc:kms:v1";
const ONE: &str = "/registry/secrets/default/before-00";

/// Two kube-apiservers of one control plane.
struct Pair<'a> {
    kms: &'a Kms,
    first: Registry,
    second: Registry,
}

pub(super) async fn walk(daemon: &Path) -> Result<Told> {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?;
    let told = Told::of(&[("bao", &bao, &config)]);
    let mut plane = Plane::start(daemon, &config, told).await?;
    let kms = plane.daemon.kms();
    let registry = || Registry::new(plane.etcd.client(), Vec::new());
    let mut pair = Pair { kms: &kms, first: registry(), second: registry() };
    pair.first.configure(pair.list(&["v1"]));
    pair.second.configure(pair.list(&["v1"]));
    create(&mut pair.first, "before").await?;
    let callers = Callers::start(&kms, 4, &[]);
    callers.more(50, PATIENCE).await?;
    plane.told.step("encryption-v1.yaml");
    plane.inspect(ONE).await?;

    // At each step one apiserver is ahead of the other, and each reads what the other writes.
    plane.told.step("encryption-v1-to-v2-step-1.yaml on every node");
    pair.first.configure(pair.list(&["v1", "v2"]));
    create(&mut pair.first, "ahead-1").await?;
    read(&mut pair.second, &["before", "ahead-1"]).await?;
    pair.second.configure(pair.list(&["v1", "v2"]));

    plane.told.step("encryption-v1-to-v2-step-2.yaml on every node");
    pair.first.configure(pair.list(&["v2", "v1"]));
    create(&mut pair.first, "ahead-2").await?;
    let made = ["before", "ahead-1", "ahead-2"];
    read(&mut pair.second, &made).await?;
    pair.second.configure(pair.list(&["v2", "v1"]));
    plane.run(&["census", "--require-none-on", V1], 2).await?;
    let census = plane.count(V1, false).await?;
    let counted = (census.of("api", "v1"), census.of("api", "v2"));
    demand!(counted == (2 * OBJECTS, OBJECTS), "{:#}", census.0);
    demand!(census.says("KMS v1 stores 40 and KMS v2 20"), "{:#}", census.0);
    callers.more(50, PATIENCE).await?;

    plane.told.step("kubectl get secrets --all-namespaces -o json | kubectl replace -f -");
    pair.first.probe().await?;
    let written = pair.first.replace_all(SECRETS).await?;
    demand!(written == 2 * OBJECTS, "{written} were written anew");
    plane.run(&["census", "--require-none-on", V1], 0).await?;
    plane.inspect(ONE).await?;
    callers.more(50, PATIENCE).await?;

    plane.told.step("the v1 provider goes, on every node");
    for apiserver in [&mut pair.first, &mut pair.second] {
        let v2 = Provider::V2(v2::Server::new(kms.fresh().v2(), "vault-v2"));
        apiserver.configure(vec![v2, Provider::Identity]);
        read(apiserver, &made).await?;
    }
    let seen = callers.finish().await;
    demand!(seen.failures.is_empty(), "{}", seen.failures_told());
    plane.end().await
}

async fn create(apiserver: &mut Registry, some: &str) -> Result {
    apiserver.probe().await?;
    for (key, value) in objects(SECRETS, some) {
        apiserver.create(&key, &value).await?;
    }
    Ok(())
}

async fn read(apiserver: &mut Registry, made: &[&str]) -> Result {
    for (key, value) in made.iter().flat_map(|some| objects(SECRETS, some)) {
        let read = apiserver.get(&key).await?;
        demand!(read == value, "{key} is read as another object");
    }
    Ok(())
}

// === impl Pair ===

impl Pair<'_> {
    /// An EncryptionConfiguration with these providers and `identity`, for an apiserver that
    /// starts with it.
    fn list(&self, apis: &[&str]) -> Vec<Provider> {
        let kms = self.kms.fresh();
        let provider = |api: &&str| match *api {
            "v1" => Provider::V1(v1::Server::new(kms.v1(), "vault")),
            _ => Provider::V2(v2::Server::new(kms.v2(), "vault-v2")),
        };
        apis.iter().map(provider).chain([Provider::Identity]).collect()
    }
}
