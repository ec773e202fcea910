//! Looks at a token that somebody doubts.

use std::sync::Arc;

use http::StatusCode;
use secrecy::SecretString;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{Keeper, Outlook, SHORT_LIFE, SPACING};
use crate::cluster::token::lease::{self, Lease};
use crate::cluster::{Answer, CallError, CallErrorKind};

/// What Vault says about a token.
pub(super) enum Checked {
    Lives(Lease),
    /// It lives, but its policy does not let it look at itself.
    LivesUnseen,
    Dead,
    Unanswered(CallError),
    Odd(Box<Answer>),
}

impl Keeper {
    /// Looks into reports that the token was refused.
    pub(super) async fn settle(&mut self) -> Outlook {
        let is_about_this_one = |keeper: &mut Self| {
            let report = *keeper.reports.borrow_and_update();
            (report.number, report.serial == keeper.serial && keeper.held().is_some())
        };
        let (mut number, mut is_about_it) = is_about_this_one(self);
        if let (true, Some(last)) = (is_about_it, self.last_lookup) {
            sleep_until(last + SPACING).await;
            (number, is_about_it) = is_about_this_one(self);
        }
        let fate = if is_about_it { self.check().await } else { Outlook::Lives };
        self.publish.modify(|current| current.settled = number);
        fate
    }

    /// Asks Vault whether the token lives, and gives it up when it does not.
    pub(super) async fn check(&mut self) -> Outlook {
        let Some(held) = self.held() else { return Outlook::Dead };
        match self.look_up(&held.value).await {
            Checked::Dead => {
                let is_young = held.issued.is_some_and(|at| at.elapsed() < SHORT_LIFE);
                self.short_lives = if is_young { self.short_lives + 1 } else { 0 };
                warn!(cluster = %self.link.name(), "Vault no longer accepts the token.");
                self.drop_token();
                self.forget_cached().await;
                Outlook::Dead
            }
            Checked::Lives(lease) => {
                self.see_lease(lease);
                Outlook::Lives
            }
            Checked::LivesUnseen | Checked::Unanswered(_) | Checked::Odd(_) => Outlook::Lives,
        }
    }

    pub(super) async fn look_up(&mut self, token: &Arc<SecretString>) -> Checked {
        self.last_lookup = Some(Instant::now());
        let request = lease::lookup_request(&self.link);
        let answer = match self.send(request, Some(Arc::clone(token))).await {
            Ok(answer) => Box::new(answer),
            Err(CallError { kind: CallErrorKind::Agreed(answer), .. }) => answer,
            Err(CallError { kind: CallErrorKind::TokenRefused, .. }) => return Checked::Dead,
            Err(error) => return Checked::Unanswered(error),
        };
        match lease::of_lookup(&answer.body) {
            Some((lease, role)) if answer.status.is_success() => {
                self.role = role.or(self.role.take());
                Checked::Lives(lease)
            }
            _ if answer.status == StatusCode::FORBIDDEN => Checked::LivesUnseen,
            _ => Checked::Odd(answer),
        }
    }
}
