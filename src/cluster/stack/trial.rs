//! Tries a TLS configuration at the addresses of a cluster.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tower::ServiceExt as _;

use super::ToOneAddress;
use crate::cluster::address::Address;
use crate::cluster::error::Fault;
use crate::cluster::http::Http;
use crate::cluster::pool::members::Members;
use crate::cluster::probe;
use crate::cluster::resolve::Kind;
use crate::cluster::tls::trial::{Ask, Word};
use crate::cluster::tls::{LoadedTls, TlsSnapshot};

/// How long an address may take, its connection included.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks `sys/health` over connections that serve for nothing else, past the breakers, and
/// tells these nothing. Any HTTP answer will do, but that of a node that is sealed. It takes more than a handshake, for a
/// server may refuse a client's certificate after it.
pub(super) struct Trial(pub(super) Members<ToOneAddress>);

// === impl Trial ===

impl Ask for Trial {
    fn ask(&self, tls: Arc<TlsSnapshot>) -> BoxFuture<'_, Word> {
        Box::pin(async move {
            let tls = LoadedTls::fixed(tls);
            let roster = self.0.roster();
            let addresses = roster.iter().map(|endpoint| &endpoint.address);
            let over_tls: Vec<&Address> =
                addresses.filter(|address| address.url.scheme_str() != Some("http")).collect();
            if over_tls.is_empty() {
                return Word::Accepted;
            }
            let known = |a: &&&Address| a.peer.is_some() || Kind::of(&a.url) == Kind::Address;
            let words = over_tls.iter().filter(known).map(|address| ask_one(address, &tls));
            let words = join_all(words).await;
            let refusal = words.iter().find(|word| matches!(word, Word::Refused(_)));
            match words.contains(&Word::Accepted) {
                true => Word::Accepted,
                false => refusal.cloned().unwrap_or(Word::Silent),
            }
        })
    }
}

async fn ask_one(address: &Address, tls: &LoadedTls) -> Word {
    let asked = Http::new(address.clone(), tls).oneshot(probe::question(PATIENCE));
    match asked.await {
        // One that waits to be unsealed cannot take the place of those that serve.
        Ok(answer) if matches!(answer.status.as_u16(), 501 | 503) => Word::Silent,
        Ok(_) => Word::Accepted,
        Err(error) => match error.fault {
            Fault::Tls(why) => Word::Refused(format!("{}: {why}", error.address)),
            _ => Word::Silent,
        },
    }
}
