//! The daemon's Vault side without the daemon: a cluster of addresses, and a key in it. Several
//! test files take this in as a module.

use std::path::Path;
use std::sync::Arc;

use vault_kms_proxy::clock::Jitter;
use vault_kms_proxy::cluster::tls::LoadedTls;
use vault_kms_proxy::cluster::{Cluster, Stack};
use vault_kms_proxy::config::settings::{
    AuthSettings, ClusterName, ClusterSettings, KekName, KekSettings, TlsSettings,
};
use vault_kms_proxy::transit::{HttpTransitKey, TransitVerdicts};

/// The Vault at these addresses, which this CA proves.
pub(crate) fn cluster_at(addresses: &[&str], ca: &Path, auth: AuthSettings) -> Arc<Cluster> {
    let settings = ClusterSettings {
        name: ClusterName::try_new("bao").unwrap(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        dns_servers: Vec::new(),
        namespace: None,
        auth_namespace: None,
        tls: TlsSettings { ca_file: Some(ca.to_owned()), ..TlsSettings::default() },
        auth,
        allow_plaintext: false,
        token_cache: None,
    };
    let tls = LoadedTls::read(&settings.tls).unwrap();
    let jitter = Arc::new(Jitter::from_entropy());
    let verdicts = Arc::new(TransitVerdicts);
    let stack = Stack::try_new(&settings, &tls, verdicts, Arc::clone(&jitter)).unwrap();
    Cluster::new(Arc::new(settings), Arc::new(stack), jitter)
}

/// A key of it.
pub(crate) fn key_in(cluster: &Arc<Cluster>, mount: &str, key: &str) -> HttpTransitKey {
    let kek = KekSettings {
        name: KekName::try_new("kube-2026").unwrap(),
        transit_key: key.to_owned(),
        mount: mount.to_owned(),
        namespace: None,
        clusters: vec![cluster.name().clone()],
        replicas: Vec::new(),
        epoch: None,
        active_version: None,
    };
    HttpTransitKey::new(Arc::clone(cluster), &kek)
}
