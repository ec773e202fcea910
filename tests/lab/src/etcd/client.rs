//! What is asked of etcd, as kube-apiserver asks it.

use tonic::transport::Channel;

use crate::proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcd::kv_client::KvClient;
use crate::proto::etcd::request_op::Request;
use crate::proto::etcd::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, TxnRequest,
};
use crate::{Context, Result};

/// How many changes etcd takes at once.
const AT_ONCE: usize = 128;

/// A client of the lab's etcd.
#[derive(Debug, Clone)]
pub struct EtcdClient(KvClient<Channel>);

/// What is stored under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredValue {
    /// The bytes.
    pub value: Vec<u8>,
    /// The store's revision of their last change.
    pub changed: i64,
}

// === impl EtcdClient ===

impl EtcdClient {
    pub(super) fn new(channel: Channel) -> Self {
        Self(KvClient::new(channel))
    }

    /// What is stored under a key, if anything.
    pub async fn get(&self, key: &str) -> Result<Option<StoredValue>> {
        let request = RangeRequest { key: key.into(), ..Default::default() };
        let mut answer = self.range(request).await?;
        let stored = |kv: crate::proto::etcd::KeyValue| StoredValue {
            value: kv.value,
            changed: kv.mod_revision,
        };
        Ok(answer.kvs.pop().map(stored))
    }

    /// All keys that begin with `prefix`, which must not be empty nor end with 0xff.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let mut end = prefix.as_bytes().to_vec();
        let last = end.last_mut().context("an empty prefix")?;
        *last += 1;
        let request = RangeRequest {
            key: prefix.into(),
            range_end: end,
            keys_only: true,
            ..Default::default()
        };
        let answer = self.range(request).await?;
        let keys = answer.kvs.into_iter().map(|kv| String::from_utf8(kv.key));
        Ok(keys.collect::<Result<_, _>>()?)
    }

    /// Stores values, many at once.
    pub async fn put_all(&self, values: &[(String, Vec<u8>)]) -> Result {
        for some in values.chunks(AT_ONCE) {
            let success = some.iter().map(|(key, value)| put(key, value)).collect();
            let request = TxnRequest { compare: Vec::new(), success };
            self.0.clone().txn(request).await.context("etcd's Txn")?;
        }
        Ok(())
    }

    /// Stores a value unless the key was changed after `seen` (0: unless it exists); answers
    /// whether it did.
    pub async fn put_if_unchanged(&self, key: &str, value: &[u8], seen: i64) -> Result<bool> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.into(),
            target_union: Some(TargetUnion::ModRevision(seen)),
        };
        let request = TxnRequest { compare: vec![compare], success: vec![put(key, value)] };
        let answer = self.0.clone().txn(request).await.context("etcd's Txn")?;
        Ok(answer.into_inner().succeeded)
    }

    /// Removes a key.
    pub async fn delete(&self, key: &str) -> Result {
        let delete = Request::RequestDeleteRange(DeleteRangeRequest { key: key.into() });
        let success = vec![RequestOp { request: Some(delete) }];
        let request = TxnRequest { compare: Vec::new(), success };
        self.0.clone().txn(request).await.context("etcd's Txn")?;
        Ok(())
    }

    /// The store's revision now.
    pub async fn revision(&self) -> Result<i64> {
        let request = RangeRequest { key: "/".into(), limit: 1, ..Default::default() };
        Ok(self.range(request).await?.header.context("no header")?.revision)
    }

    /// Drops all history before `revision`, as a kube-apiserver does every five minutes.
    pub async fn compact(&self, revision: i64) -> Result {
        let request = CompactionRequest { revision, physical: true };
        self.0.clone().compact(request).await.context("etcd's Compact")?;
        Ok(())
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        let mut client = self.0.clone().max_decoding_message_size(256 << 20);
        Ok(client.range(request).await.context("etcd's Range")?.into_inner())
    }
}

fn put(key: &str, value: &[u8]) -> RequestOp {
    let put = PutRequest { key: key.into(), value: value.to_vec() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}
