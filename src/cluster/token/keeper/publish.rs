//! What the task shows of its work: to callers, to the log, to the metrics.

use std::sync::Arc;

use opentelemetry::KeyValue;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Keeper;
use super::plan::KnownLease;
use crate::clock::node_time;
use crate::cluster::auth::{AuthError, Source};
use crate::cluster::token::lease::Lease;
use crate::cluster::token::{HeldToken, Lifetime};
use crate::telemetry::metrics::{self, Metric};

/// Where a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A login, just now.
    Login,
    /// The configuration, or a file that somebody else writes.
    Given,
    /// An earlier process.
    Recalled,
}

impl Keeper {
    pub(super) fn held(&self) -> Option<HeldToken> {
        self.publish.read(|current| current.token.clone())
    }

    /// Puts a token into use that Vault has accepted.
    pub(super) fn accept(&mut self, token: SecretString, lease: Option<Lease>, origin: Origin) {
        let issued = (origin == Origin::Login).then(Instant::now);
        let is_new = self.replace(token, issued);
        self.told = None;
        self.is_recalled = false;
        // Before the word that it is proven: whoever waits for that reads the ttl next.
        match lease {
            Some(lease) => self.learn_lease(lease, false),
            None => self.forget_lease(),
        }
        self.publish.modify(|current| {
            current.is_proven = true;
            current.last_error = None;
        });
        if origin != Origin::Recalled {
            self.note_good_login();
        }
        self.plan_rehearsal(origin);
        if origin == Origin::Recalled {
            info!(
                cluster = %self.link.name(), ttl = ?lease.and_then(|l| l.ttl),
                "Vault has accepted the token of an earlier run."
            );
        } else if is_new {
            info!(
                cluster = %self.link.name(), method = self.method.name(),
                ttl = ?lease.and_then(|l| l.ttl), renewable = lease.is_some_and(|l| l.renewable),
                "Vault has accepted the token."
            );
        } else {
            debug!(cluster = %self.link.name(), "The token is still the same.");
        }
        let Some(lease) = lease else { return };
        if lease.uses > 0 {
            warn!(
                cluster = %self.link.name(), uses = lease.uses,
                "The token ends after a number of uses, and each call is one; standbys pass its \
                 calls on to the active node. Set token_num_uses=0 for it."
            );
        }
        if is_new && !lease.renewable && lease.ttl.is_some() {
            self.warn_of_its_end(lease);
        }
    }

    /// A login works, or the token that stands for one.
    pub(super) fn note_good_login(&self) {
        let now = node_time();
        self.publish.modify(|current| {
            current.last_login = Some(now);
            current.rehearsal_error = None;
        });
        #[allow(clippy::cast_precision_loss)] // exact until the year 285 million
        metrics::set(Metric::LastLogin, now.0 as f64, &[self.cluster_label()]);
    }

    /// Puts a token into use that nobody has looked at yet, because nobody answers: calls
    /// then fail for the same reason as the lookup did, and go on with it at once.
    pub(super) fn offer_unproven(&mut self, token: SecretString) {
        self.replace(token, None);
        self.publish.modify(|current| current.is_proven = false);
        self.forget_lease();
    }

    /// Whether `token` is the one in use.
    pub(super) fn holds(&self, token: &SecretString) -> bool {
        self.held().is_some_and(|held| held.value.expose_secret() == token.expose_secret())
    }

    /// Makes `token` the current one; whether it was another before.
    fn replace(&mut self, token: SecretString, issued: Option<Instant>) -> bool {
        let is_new = !self.holds(&token);
        if is_new {
            self.serial += 1;
            let held = HeldToken { value: Arc::new(token), serial: self.serial, issued };
            self.publish.modify(|current| current.token = Some(held));
        }
        is_new
    }

    /// Takes a dead token out of use: calls wait for the next.
    pub(super) fn drop_token(&mut self) {
        self.publish.modify(|current| {
            current.token = None;
            current.is_proven = false;
        });
        self.forget_lease();
    }

    /// Takes over what Vault just said of the token. The next step is due after two
    /// thirds of its ttl.
    pub(super) fn learn_lease(&mut self, lease: Lease, capped: bool) {
        self.know(KnownLease::new(lease, capped, &self.jitter));
    }

    /// Takes over what Vault says of the token when it is only looked at.
    pub(super) fn see_lease(&mut self, lease: Lease) {
        self.know(match self.lease {
            Some(known) => known.seen_again(lease, &self.jitter),
            None => KnownLease::new(lease, false, &self.jitter),
        });
    }

    fn know(&mut self, known: KnownLease) {
        self.lease = Some(known);
        let lease = known.lease;
        // A token from elsewhere may be renewed by somebody else, too.
        let is_ours = self.method.source() == Source::Login;
        let ends = lease.ttl.filter(|_| is_ours).map(|ttl| known.learnt() + ttl);
        self.publish.modify(|current| {
            current.ends = ends;
            current.renewable = lease.renewable;
            current.lifetime = lease.ttl.map_or(Lifetime::Unlimited, |ttl| Lifetime::Limited {
                ttl,
                expires: known.learnt() + ttl,
            });
        });
        if let Some(ttl) = lease.ttl {
            metrics::set(Metric::TokenTtl, ttl.as_secs_f64(), &[self.cluster_label()]);
        }
    }

    fn forget_lease(&mut self) {
        self.lease = None;
        self.publish.modify(|current| {
            current.ends = None;
            current.renewable = false;
            current.lifetime = Lifetime::Unknown;
        });
    }

    /// Says once that this token ends and that nothing here can prevent it.
    pub(super) fn warn_of_its_end(&mut self, lease: Lease) {
        // With a login, the next one comes in time.
        if self.method.source() == Source::Login || self.foretold == self.serial {
            return;
        }
        self.foretold = self.serial;
        let (cluster, left) = (self.link.name(), lease.ttl);
        if self.method.source() == Source::Nowhere {
            error!(
                %cluster, ?left,
                "The configured token will end and cannot be renewed beyond that; put another \
                 into the configuration and reload, or use AppRole."
            );
        } else {
            warn!(%cluster, ?left, "The token in the file will end; it must be replaced by then.");
        }
    }

    /// A try that brought no token: one line per reason.
    pub(super) fn tell_failure(&mut self, error: &AuthError) {
        let reason = error.to_string();
        // While nobody answers, the words change from try to try.
        let is_unreachable = matches!(error, AuthError::Unreachable(_));
        let is_news = self.is_news(if is_unreachable { "unreachable" } else { &reason });
        let (cluster, method) = (self.link.name(), self.method.name());
        if is_news && is_unreachable {
            warn!(
                %cluster, method, error = %reason,
                "Could not get a token, because no address answers; it is tried again."
            );
        } else if is_news {
            error!(%cluster, method, error = %reason, "Could not get a token.");
        }
        self.publish.modify(|current| current.last_error = Some(reason));
    }

    /// Whether `reason` differs from what was told last; it is from now on.
    pub(super) fn is_news(&mut self, reason: &str) -> bool {
        let is_news = self.told.as_deref() != Some(reason);
        self.told = Some(reason.to_owned());
        is_news
    }

    pub(super) fn count(&self, outcome: &Result<(), AuthError>) {
        let result = match outcome {
            Ok(()) => "ok",
            Err(AuthError::Unreachable(_)) => "unreachable",
            Err(_) => "refused",
        };
        let method = KeyValue::new("method", self.method.name());
        let result = KeyValue::new("result", result);
        metrics::add(Metric::Logins, 1, &[self.cluster_label(), method, result]);
    }

    /// What an operator does about a token that is dead.
    pub(super) fn remedy(&self) -> &'static str {
        match self.method.source() {
            Source::Nowhere => "put another into the configuration and reload",
            Source::File => "have whoever writes the token file write another",
            Source::Login => "another login follows",
        }
    }

    pub(super) fn cluster_label(&self) -> KeyValue {
        KeyValue::new("cluster", self.link.name().as_str().to_owned())
    }
}
