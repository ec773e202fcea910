//! The token of an earlier process: offered at once, believed when Vault accepts it.

use std::sync::Arc;

use tracing::{info, warn};

use super::Keeper;
use super::look::Checked;
use super::plan::KnownLease;
use super::publish::Origin;
use crate::cluster::auth::AuthError;
use crate::cluster::token::cache::BelongsTo;

impl Keeper {
    /// Offers the cached token to callers, if there is one: nobody need wait for a login
    /// that may not be possible now.
    pub(super) async fn recall(&mut self) {
        let Some(cache) = &self.cache else { return };
        if !cache.is_in_memory().await {
            warn!(
                cluster = %self.link.name(), file = %cache.path().display(),
                "tokenCache is on a disk, where the token outlives this boot; put it on tmpfs, \
                 such as a folder below /run."
            );
        }
        let owner = match self.method.identity().await {
            Ok(login) => cache.belongs_to(&login),
            Err(error) => {
                info!(
                    cluster = %self.link.name(), file = %cache.path().display(), %error,
                    "The token of an earlier run is not used, for nobody can tell whose it is."
                );
                return;
            }
        };
        match cache.read(owner.clone()).await {
            Ok(Some(cached)) => {
                self.offer_unproven(cached.token);
                self.learn_lease(cached.lease, false);
                self.is_recalled = true;
                self.owner = Some(owner);
            }
            Ok(None) => {}
            Err(error) => info!(
                cluster = %self.link.name(), file = %cache.path().display(), error,
                "The token of an earlier run is not used."
            ),
        }
    }

    /// Has Vault look at the cached token. `None` when there is none, or it is of no use.
    pub(super) async fn take_recalled(&mut self) -> Option<Result<(), AuthError>> {
        if !self.is_recalled {
            return None;
        }
        let Some(held) = self.held() else {
            self.is_recalled = false; // callers found it dead
            return None;
        };
        if self.lease.is_some_and(|known| known.rest().is_none()) {
            return self.outlived_recalled().await;
        }
        let token = (*held.value).clone();
        match self.look_up(&Arc::clone(&held.value)).await {
            Checked::Lives(lease) => self.accept(token, Some(lease), Origin::Recalled),
            // The answer may have come late, and says nothing of how long the token lives.
            Checked::LivesUnseen => match self.lease.and_then(KnownLease::rest) {
                Some(rest) => self.accept(token, Some(rest), Origin::Recalled),
                None => return self.outlived_recalled().await,
            },
            // A login is the better question then; until it succeeds this one may serve.
            Checked::Odd(_) => return None,
            Checked::Unanswered(error) => return Some(Err(AuthError::Unreachable(error))),
            Checked::Dead => {
                info!(
                    cluster = %self.link.name(),
                    "Vault does not accept the token of an earlier run; a login follows."
                );
                self.give_up_recalled().await;
                return None;
            }
        }
        self.keep_cached().await;
        Some(Ok(()))
    }

    /// Its time is up, by what was known of it: whatever Vault says or does not say now, a
    /// login is the better question.
    async fn outlived_recalled(&mut self) -> Option<Result<(), AuthError>> {
        info!(
            cluster = %self.link.name(),
            "The time of the token of an earlier run is up; a login follows."
        );
        self.give_up_recalled().await;
        None
    }

    async fn give_up_recalled(&mut self) {
        self.is_recalled = false;
        self.drop_token();
        self.forget_cached().await;
    }

    /// Whose token a login brings now, for the cache, if there is one and anybody can tell.
    pub(super) async fn owner_now(&self) -> Option<BelongsTo> {
        let cache = self.cache.as_ref()?;
        let login = self.method.identity().await.ok()?;
        Some(cache.belongs_to(&login))
    }

    /// Keeps the token for a later process.
    pub(super) async fn keep_cached(&mut self) {
        let (Some(cache), Some(held)) = (&self.cache, self.held()) else { return };
        let Some(owner) = self.owner.clone() else { return };
        let lease = self.lease.map(|known| known.lease);
        match cache.write(owner, &held.value, lease).await {
            Ok(()) => self.cache_fails = false,
            Err(error) => {
                if !self.cache_fails {
                    warn!(
                        cluster = %self.link.name(), file = %cache.path().display(), error,
                        "The token could not be kept in tokenCache; a restart has to log in."
                    );
                }
                self.cache_fails = true;
            }
        }
    }

    /// The token is dead, so nothing is to be kept.
    pub(super) async fn forget_cached(&self) {
        if let Some(cache) = &self.cache {
            cache.remove().await;
        }
    }
}
