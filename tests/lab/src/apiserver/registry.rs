//! A kube-apiserver's storage: a list of providers, over a real etcd.

use super::{Object, v1, v2};
use crate::etcd::EtcdClient;
use crate::{Context, Result, fail};

/// One kube-apiserver: its EncryptionConfiguration, and what it stores.
#[derive(Debug)]
pub struct Registry {
    etcd: EtcdClient,
    providers: Vec<Provider>,
}

/// An entry of `providers` in an EncryptionConfiguration.
#[derive(Debug)]
pub enum Provider {
    /// A KMS v1 plugin.
    V1(v1::Server),
    /// A KMS v2 plugin.
    V2(v2::Server),
    /// Plain text.
    Identity,
}

// === impl Registry ===

impl Registry {
    /// One that writes with the first of `providers` and reads with whichever wrote.
    pub fn new(etcd: &EtcdClient, providers: Vec<Provider>) -> Self {
        Self { etcd: etcd.clone(), providers }
    }

    /// Reads another EncryptionConfiguration, as a restarted apiserver does.
    pub fn configure(&mut self, providers: Vec<Provider>) {
        self.providers = providers;
    }

    /// Asks each KMS v2 plugin for its status, as happens every minute; answers the key_id of
    /// the first provider, if it is one.
    pub async fn probe(&mut self) -> Result<Option<String>> {
        let mut first = None;
        for (n, provider) in self.providers.iter_mut().enumerate() {
            if let Provider::V2(server) = provider {
                let key_id = server.probe().await?;
                first = if n == 0 { Some(key_id) } else { first };
            }
        }
        Ok(first)
    }

    /// Stores a new object.
    pub async fn create(&mut self, etcd_key: &str, value: &[u8]) -> Result {
        let stored = self.transform_to_storage(etcd_key, value).await?;
        if !self.etcd.put_if_unchanged(etcd_key, &stored, 0).await? {
            fail!("{etcd_key} exists already");
        }
        Ok(())
    }

    /// Reads an object.
    pub async fn get(&mut self, etcd_key: &str) -> Result<Vec<u8>> {
        Ok(self.read(etcd_key).await?.0.value)
    }

    /// Stores what is there anew, for each object below `prefix`, and answers how many were
    /// written: those that are stale. A write that changes nothing else is left out, as an
    /// apiserver does with what `kubectl replace` sends.
    pub async fn replace_all(&mut self, prefix: &str) -> Result<usize> {
        self.rewrite(prefix, false).await
    }

    /// The same with a change in each object, as `kubectl annotate --all` makes one: all are
    /// written.
    pub async fn annotate_all(&mut self, prefix: &str) -> Result<usize> {
        self.rewrite(prefix, true).await
    }

    async fn rewrite(&mut self, prefix: &str, changed: bool) -> Result<usize> {
        let mut written = 0;
        for etcd_key in self.etcd.keys(prefix).await? {
            loop {
                let (object, seen) = self.read(&etcd_key).await?;
                if !changed && !object.stale {
                    break;
                }
                let stored = self.transform_to_storage(&etcd_key, &object.value).await?;
                if self.etcd.put_if_unchanged(&etcd_key, &stored, seen).await? {
                    written += 1;
                    break;
                }
            }
        }
        Ok(written)
    }

    /// The object, and the revision of its last change.
    async fn read(&mut self, etcd_key: &str) -> Result<(Object, i64)> {
        let stored = self.etcd.get(etcd_key).await?;
        let stored = stored.context(format!("etcd has no {etcd_key}"))?;
        let writer = self.providers.iter().position(|provider| provider.wrote(&stored.value));
        let Some(writer) = writer else {
            fail!("no provider wrote what is stored under {etcd_key}");
        };
        let mut object = match &mut self.providers[writer] {
            Provider::V1(server) => server.transform_from_storage(etcd_key, &stored.value).await?,
            Provider::V2(server) => server.transform_from_storage(etcd_key, &stored.value).await?,
            Provider::Identity => Object { value: stored.value, stale: false },
        };
        object.stale |= writer != 0;
        Ok((object, stored.changed))
    }

    async fn transform_to_storage(&mut self, etcd_key: &str, value: &[u8]) -> Result<Vec<u8>> {
        match self.providers.first_mut() {
            Some(Provider::V1(server)) => server.transform_to_storage(etcd_key, value).await,
            Some(Provider::V2(server)) => server.transform_to_storage(etcd_key, value).await,
            Some(Provider::Identity) => Ok(value.to_vec()),
            None => fail!("an EncryptionConfiguration without a provider"),
        }
    }
}

// === impl Provider ===

impl Provider {
    fn wrote(&self, stored: &[u8]) -> bool {
        match self {
            Self::V1(server) => stored.starts_with(server.prefix().as_bytes()),
            Self::V2(server) => stored.starts_with(server.prefix().as_bytes()),
            Self::Identity => !stored.starts_with(b"k8s:enc:"),
        }
    }
}
