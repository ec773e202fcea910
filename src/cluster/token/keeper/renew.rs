//! Renewals: as the lease plans them, and in place of a login that fails.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Keeper, Outlook};
use crate::cluster::auth::{AuthError, Source};
use crate::cluster::token::lease::{self, Grant, Lease};
use crate::cluster::{CallError, CallErrorKind, words};

/// How one renewal ended.
enum Renewal {
    Done,
    /// Vault answered that it does not renew this token, and why.
    Refused(String),
    /// Nobody knows whether the token can be renewed, and why.
    Failed(String),
    /// The token is gone.
    Dead,
}

impl Keeper {
    /// The renewal that the lease planned.
    pub(super) async fn renew(&mut self) -> Outlook {
        match self.try_renewal().await {
            Renewal::Done => Outlook::Lives,
            Renewal::Refused(why) => self.not_renewable(&why),
            Renewal::Failed(why) => {
                self.renewal_failed(&why);
                Outlook::Lives
            }
            Renewal::Dead => Outlook::Dead,
        }
    }

    /// A login failed with `error`: whether the token that is held could be renewed, so
    /// that no login is needed for now.
    pub(super) async fn renew_instead(&mut self, error: &AuthError) -> bool {
        if self.next_renewal().is_none() {
            return false;
        }
        match self.try_renewal().await {
            Renewal::Done => {}
            // Told already is why there is no other token, which matters more.
            Renewal::Refused(why) | Renewal::Failed(why) => {
                debug!(
                    cluster = %self.link.name(), error = why,
                    "Could not renew the token while logins fail."
                );
                return false;
            }
            Renewal::Dead => return false,
        }
        if !matches!(error, AuthError::Unreachable(_)) {
            let error = error.to_string();
            self.publish.modify(|current| current.rehearsal_error = Some(error));
        }
        // At its max ttl only another token helps.
        let is_enough = self.next_renewal().is_some();
        if is_enough {
            info!(cluster = %self.link.name(), "Renewed the token, because logins fail.");
        }
        is_enough
    }

    /// When the token that is held is worth another renewal, if it is. Never before Vault
    /// has accepted it.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        let is_in_use = !self.is_recalled && self.held().is_some();
        let pause = self.lease.filter(|_| is_in_use)?.renewal_pause()?;
        Some(Instant::now() + self.jitter.around(pause))
    }

    async fn try_renewal(&mut self) -> Renewal {
        let (Some(known), Some(held)) = (self.lease, self.held()) else { return Renewal::Dead };
        let request = lease::renew_request(&self.link, known.lease.granted);
        let answer = match self.send(request, Some(held.value)).await {
            Ok(answer) => answer,
            Err(CallError { kind: CallErrorKind::Agreed(answer), .. }) => *answer,
            Err(CallError { kind: CallErrorKind::TokenRefused, .. }) => {
                return match self.check().await {
                    Outlook::Lives => Renewal::Refused("its renewal is refused".to_owned()),
                    Outlook::Dead => Renewal::Dead,
                };
            }
            Err(error) => return Renewal::Failed(error.to_string()),
        };
        if !answer.status.is_success() {
            let said = words::shortened(&words::errors(&answer.body).unwrap_or_default());
            return Renewal::Refused(said);
        }
        let Some(Grant { lease, .. }) = lease::of_login(&answer.body) else {
            return Renewal::Failed("the answer holds no lease".to_owned());
        };
        self.renewed(lease, known.lease.granted);
        self.keep_cached().await;
        Renewal::Done
    }

    fn renewed(&mut self, renewed: Lease, granted: Duration) {
        // A tenth of slack: Vault rounds, and a moment passed.
        let is_capped = renewed.ttl.is_some_and(|ttl| ttl < granted * 9 / 10);
        let lease = Lease { granted, ..renewed };
        self.learn_lease(lease, is_capped);
        self.told = None;
        self.publish.modify(|current| current.last_error = None);
        debug!(cluster = %self.link.name(), ttl = ?renewed.ttl, "Renewed the token.");
        if is_capped {
            self.warn_of_its_end(renewed);
        }
    }

    fn renewal_failed(&mut self, why: &str) {
        let Some(known) = self.lease.as_mut() else { return };
        let left = known.renewal_failed(&self.jitter);
        let reason = format!("renewal failed: {why}");
        if self.is_news(&reason) {
            warn!(
                cluster = %self.link.name(), left = ?left, error = why,
                "Could not renew the token; it stays in use and the renewal is repeated."
            );
        }
        self.publish.modify(|current| current.last_error = Some(reason));
    }

    /// Vault answered that it does not renew this token. It may have said so for a reason
    /// that passes, so the lease stays as it is.
    fn not_renewable(&mut self, why: &str) -> Outlook {
        let Some(known) = self.lease.as_mut() else { return Outlook::Lives };
        let left = known.renewal_failed(&self.jitter);
        let lease = Lease { ttl: Some(left), renewable: false, ..known.lease };
        if self.is_news(&format!("not renewed: {why}")) {
            warn!(cluster = %self.link.name(), error = why, "Vault does not renew the token.");
        }
        self.publish.modify(|current| current.renewable = false);
        self.warn_of_its_end(lease);
        match self.method.source() {
            Source::Nowhere => Outlook::Lives,
            Source::File | Source::Login => Outlook::Dead, // as good as: get another now
        }
    }
}
