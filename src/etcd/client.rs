//! Asks one member after the other.

use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::Request;
use tonic::body::Body;

use super::failure::{Verdict, judge};
use super::{Entry, EtcdError, EtcdSettings, Page, Range, Revision, end_of};
use crate::cluster::tls::LoadedTls;
use crate::proto::etcd::etcdserverpb::kv_client::KvClient;
use crate::proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};

/// The largest answer that is taken. A value has 1.5 MiB at most, unless etcd is told
/// otherwise, and whoever asks for many chooses the limit so that they fit.
const MAX_ANSWER: usize = 32 << 20;

/// How long it waits before all members are asked once more: an election takes a second or two.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(750), Duration::from_millis(1500)];

type Http = Client<HttpsConnector<HttpConnector>, Body>;

/// A client of one etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// The one that answered last.
    current: usize,
    /// The number of the etcd cluster that has answered, and the member that did.
    cluster: Option<(u64, String)>,
    timeout: Duration,
}

#[derive(Debug)]
struct Member {
    name: String,
    kv: KvClient<Http>,
    /// It speaks TLS, and we show it no certificate.
    anonymous: bool,
}

// === impl Etcd ===

impl Etcd {
    /// Reads the certificates; nothing is dialled before the first question.
    ///
    /// # Errors
    /// When there is no member, or a file cannot be used.
    pub fn try_new(settings: &EtcdSettings) -> Result<Self, EtcdError> {
        if settings.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let tls = if settings.endpoints.iter().any(|uri| uri.scheme_str() == Some("https")) {
            LoadedTls::read(&settings.tls)?
        } else {
            LoadedTls::read(&Default::default())?
        };
        let http = client(&tls, settings.timeout);
        let named = settings.tls.client.is_some();
        let members = settings.endpoints.iter().map(|uri| Member::new(uri, &http, named));
        let members = members.collect();
        Ok(Self { members, current: 0, cluster: None, timeout: settings.timeout })
    }

    /// Reads a range. When a member does not answer, the next one is asked, and all of them
    /// again after a short while.
    ///
    /// # Errors
    /// Which members were asked and what each said; that the revision is compacted away; that
    /// the answer is too large.
    pub async fn range(&mut self, range: Range<'_>) -> Result<Page, EtcdError> {
        let request = RangeRequest {
            key: range.from.unwrap_or(range.prefix).to_vec(),
            range_end: end_of(range.prefix),
            limit: range.limit.into(),
            revision: range.revision.map_or(0, |revision| revision.0),
        };
        // An empty first key would be refused: the lowest key that there can be is one zero.
        let request = match request.key.is_empty() {
            true => RangeRequest { key: vec![0], ..request },
            false => request,
        };
        self.ask(request).await.map(Page::from)
    }

    /// Reads one key; `None` when etcd has no such key.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Entry>, EtcdError> {
        let request = RangeRequest { key: key.to_vec(), limit: 1, ..Default::default() };
        Ok(Page::from(self.ask(request).await?).entries.pop())
    }

    /// Asks every member once, so that two etcd clusters are not taken for one: of the second
    /// nothing would be read. A member that does not answer is passed over. `prefix` is what
    /// may be read.
    ///
    /// # Errors
    /// When two members belong to different clusters.
    pub async fn check_members(&mut self, prefix: &[u8]) -> Result<(), EtcdError> {
        for index in 0..self.members.len() {
            // It is about what comes with the answer; nobody has a key that is called so.
            let request = RangeRequest { key: prefix.to_vec(), limit: 1, ..Default::default() };
            let member = &mut self.members[index];
            if let Ok(answer) = member.ask(request, self.timeout).await {
                let name = member.name.clone();
                self.check_cluster(name, &answer)?;
            }
        }
        Ok(())
    }

    /// What speaks for etcd without being it may give no number, and then it is not looked at.
    fn check_cluster(&mut self, member: String, answer: &RangeResponse) -> Result<(), EtcdError> {
        let id = answer.header.map_or(0, |header| header.cluster_id);
        match &self.cluster {
            _ if id == 0 => Ok(()),
            Some((known, _)) if *known == id => Ok(()),
            Some((_, other)) => Err(EtcdError::TwoClusters { member, other: other.clone() }),
            None => {
                self.cluster = Some((id, member));
                Ok(())
            }
        }
    }

    async fn ask(&mut self, request: RangeRequest) -> Result<RangeResponse, EtcdError> {
        let mut pauses = PAUSES.iter();
        loop {
            let mut said = Vec::new();
            for n in 0..self.members.len() {
                let index = (self.current + n) % self.members.len();
                let member = &mut self.members[index];
                match member.ask(request.clone(), self.timeout).await {
                    Ok(answer) => {
                        let name = member.name.clone();
                        self.check_cluster(name, &answer)?;
                        self.current = index;
                        return Ok(answer);
                    }
                    Err(Verdict::Final(error)) => return Err(error),
                    Err(Verdict::AskAnother(why)) => said.push(format!("{}: {why}", member.name)),
                }
            }
            match pauses.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(EtcdError::NoAnswer(said.join("; "))),
            }
        }
    }
}

fn client(tls: &LoadedTls, timeout: Duration) -> Http {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false); // TLS is put over it
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(timeout));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.snapshot().config().as_ref().clone())
        .https_or_http()
        .enable_http2()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new()).http2_only(true).build(connector)
}

// === impl Member ===

impl Member {
    fn new(uri: &Uri, http: &Http, named: bool) -> Self {
        let kv = KvClient::with_origin(http.clone(), uri.clone());
        let name = uri.to_string().trim_end_matches('/').to_owned();
        let anonymous = !named && uri.scheme_str() == Some("https");
        Self { name, kv: kv.max_decoding_message_size(MAX_ANSWER), anonymous }
    }

    async fn ask(
        &mut self,
        request: RangeRequest,
        timeout: Duration,
    ) -> Result<RangeResponse, Verdict> {
        let asked = (request.revision, request.limit);
        let mut request = Request::new(request);
        request.set_timeout(timeout);
        match tokio::time::timeout(timeout, self.kv.range(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(judge(&self.name, &status, asked, self.anonymous)),
            Err(_) => Err(Verdict::AskAnother(format!("no answer within {timeout:?}"))),
        }
    }
}

// === impl Page ===

impl From<RangeResponse> for Page {
    fn from(answer: RangeResponse) -> Self {
        let entries = answer.kvs.into_iter().map(|kv| Entry {
            key: kv.key,
            value: kv.value,
            changed: Revision(kv.mod_revision),
        });
        Self {
            entries: entries.collect(),
            more: answer.more,
            count: answer.count.try_into().unwrap_or(0),
            revision: Revision(answer.header.map_or(0, |header| header.revision)),
        }
    }
}
