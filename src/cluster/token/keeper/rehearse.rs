//! Logins that are made only to see that they work, so that a secret that has expired shows
//! while there is still a token, and not at the next reboot.
//!
//! Once a day, soon after a file of the method has changed, and soon after a start that
//! needed no login. Never when it would use up what the next login needs. The token that
//! it brings is revoked at once: it is of no use, and Vault keeps each one until its end.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::plan::Step;
use super::publish::Origin;
use super::{Keeper, SPACING};
use crate::cluster::auth::{AuthError, Begin, Rehearsal, Source, fingerprint};
use crate::cluster::token::lease::{self, Grant};
use crate::cluster::{Answer, CallError, CallErrorKind, Operation};
use crate::telemetry::metrics::{self, Metric};

/// Between two that went well.
const EVERY: Duration = Duration::from_secs(86_400);

/// Within what a changed file is tried; a fleet gets its new files at the same time.
const AFTER_CHANGE: Duration = Duration::from_secs(10);

/// The least between two that went well: some files (JWT-SVIDs) change every few minutes.
const GAP: Duration = Duration::from_secs(600);

/// After a start with the token of an earlier process.
const AFTER_RECALL: Duration = Duration::from_secs(300);

/// After one that was refused; far from what locks a role out.
const AFTER_REFUSAL: Duration = Duration::from_secs(3_600);

/// After one that nobody answered, which says nothing.
const AFTER_SILENCE: Duration = Duration::from_secs(600);

/// When the next one is due.
#[derive(Debug, Default)]
pub(super) struct Rehearsals {
    due: Option<Instant>,
    /// When one went well last.
    good: Option<Instant>,
    /// Why there are none, as it was told.
    told: Option<&'static str>,
}

/// How one ended.
enum Outcome {
    Good,
    /// It would have cost something; says what.
    Skipped(&'static str),
    Failed(AuthError),
    /// It took so long that the token in use was to be seen to.
    CutShort,
}

/// Vault's answer to a look at a secret id.
#[derive(Deserialize)]
struct SecretIdBody {
    data: SecretIdData,
}

#[derive(Deserialize)]
struct SecretIdData {
    secret_id_num_uses: u64,
}

// === impl Rehearsals ===

impl Rehearsals {
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    fn not_before(&mut self, at: Instant) {
        let soonest = self.good.map_or(at, |good| at.max(good + GAP));
        self.due = Some(self.due.map_or(soonest, |due| due.min(soonest)));
    }
}

// === impl Keeper: rehearsals ===

impl Keeper {
    /// A token was accepted that comes from `origin`.
    pub(super) fn plan_rehearsal(&mut self, origin: Origin) {
        if self.method.source() != Source::Login {
            return;
        }
        let now = Instant::now();
        self.rehearsals.due = Some(match origin {
            Origin::Login | Origin::Given => now + self.jitter.around(EVERY),
            Origin::Recalled => now + self.jitter.half(AFTER_RECALL),
        });
    }

    /// A file of the method has changed, and what it holds now is wanted at the next login.
    pub(super) async fn rehearse_soon(&mut self) {
        self.fingerprint = Some(fingerprint(&self.method.files()).await);
        if self.method.source() == Source::Login {
            let at = Instant::now() + self.jitter.full(AFTER_CHANGE);
            self.rehearsals.not_before(at);
        }
    }

    /// Rehearses a login, and plans the next one.
    pub(super) async fn rehearse(&mut self) {
        if let Some(last) = self.last_login {
            sleep_until(last + SPACING).await;
        }
        let source = self.method.source();
        let step = self.lease.map_or(Step::Nothing, |known| known.next_step(source));
        let outcome = match step {
            Step::Nothing => self.try_rehearsal().await,
            Step::Renew(at) | Step::Obtain(at) if at <= Instant::now() => return,
            Step::Renew(at) | Step::Obtain(at) => {
                timeout_at(at, self.try_rehearsal()).await.unwrap_or(Outcome::CutShort)
            }
        };
        let (result, pause) = match &outcome {
            Outcome::Good => ("ok", EVERY),
            Outcome::Skipped(_) => ("skipped", EVERY),
            Outcome::Failed(AuthError::Unreachable(_)) | Outcome::CutShort => {
                ("unreachable", AFTER_SILENCE)
            }
            Outcome::Failed(_) => ("refused", AFTER_REFUSAL),
        };
        self.rehearsals.due = Some(Instant::now() + self.jitter.around(pause));
        let method = KeyValue::new("method", self.method.name());
        let labels = [self.cluster_label(), method, KeyValue::new("result", result)];
        metrics::add(Metric::LoginRehearsals, 1, &labels);
        self.tell_rehearsal(outcome);
    }

    fn tell_rehearsal(&mut self, outcome: Outcome) {
        let cluster = self.link.name().clone();
        match outcome {
            Outcome::Good => {
                self.rehearsals.good = Some(Instant::now());
                self.rehearsals.told = None;
                let failed_before = self.publish.read(|current| current.rehearsal_error.is_some());
                self.note_good_login();
                if failed_before {
                    info!(%cluster, "A rehearsed login works again.");
                } else {
                    debug!(%cluster, "A rehearsed login works.");
                }
            }
            Outcome::Skipped(why) => {
                if self.rehearsals.told.replace(why) != Some(why) {
                    info!(
                        %cluster, why,
                        "Logins are not rehearsed, so a secret that has expired shows at the next \
                         login only."
                    );
                }
            }
            // Its time will come; the token lives on, and whoever calls tells of the outage.
            Outcome::Failed(error @ AuthError::Unreachable(_)) => {
                debug!(%cluster, %error, "A login could not be rehearsed.");
            }
            Outcome::CutShort => {
                debug!(%cluster, "A rehearsed login gave way to what the token in use needs.");
            }
            Outcome::Failed(error) => {
                let error = error.to_string();
                let left = self.lease.and_then(|known| known.left());
                if self.publish.read(|current| current.rehearsal_error.as_ref() != Some(&error)) {
                    warn!(
                        %cluster, method = self.method.name(), error, ?left,
                        "A rehearsed login failed: the token in use still works, but a restart, \
                         or its end, would find no other."
                    );
                }
                self.publish.modify(|current| current.rehearsal_error = Some(error));
            }
        }
    }

    async fn try_rehearsal(&mut self) -> Outcome {
        let question = match self.method.rehearsal(self.role.as_deref()).await {
            Ok(Rehearsal::Free) => None,
            Ok(Rehearsal::Ask(question)) => Some(question),
            Ok(Rehearsal::Unknown) => return Outcome::Skipped(UNKNOWN_USES),
            Err(error) => return Outcome::Failed(error),
        };
        if let Some(question) = question {
            match self.uses_are_limited(question).await {
                Ok(Some(false)) => {}
                Ok(Some(true)) => return Outcome::Skipped("the secret id's uses are limited"),
                Ok(None) => return Outcome::Skipped(UNKNOWN_USES),
                Err(error) => return Outcome::Failed(AuthError::Unreachable(error)),
            }
        }
        let operation = match self.method.begin().await {
            Ok(Begin::Login(operation)) => operation,
            Ok(Begin::Token(_)) => return Outcome::Skipped("there is no login"),
            Err(error) => return Outcome::Failed(error),
        };
        self.last_login = Some(Instant::now());
        let answer = match self.answer_to_login(operation).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failed(error),
        };
        let Some(Grant { token, role, .. }) = lease::of_login(&answer.body) else {
            let address = answer.address.to_string();
            let what = "without a token in it";
            return Outcome::Failed(AuthError::Unacceptable { address, what });
        };
        self.role = role;
        self.revoke(token).await;
        Outcome::Good
    }

    /// Whether a secret id is good for a number of logins only; `None` when Vault does not
    /// say. One that Vault does not know costs nothing: the login then tells what is wrong.
    async fn uses_are_limited(&self, question: Operation) -> Result<Option<bool>, CallError> {
        let Some(held) = self.held() else { return Ok(None) };
        let answer = match self.send(Arc::new(question), Some(held.value)).await {
            Ok(answer) => answer,
            Err(CallError { kind: CallErrorKind::Agreed(answer), .. }) => *answer,
            Err(CallError { kind: CallErrorKind::TokenRefused, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Answer { status, body, .. } = answer;
        if status == http::StatusCode::NO_CONTENT {
            return Ok(Some(false));
        }
        let body = serde_json::from_slice::<SecretIdBody>(&body).ok();
        let body = body.filter(|_| status.is_success());
        Ok(body.map(|body| body.data.secret_id_num_uses > 0))
    }

    /// Gives back a token that was not needed. A batch token, or one whose policy does not
    /// let it revoke itself, lives until its ttl ends.
    async fn revoke(&self, token: SecretString) {
        let request = lease::revoke_request(&self.link);
        match self.send(request, Some(Arc::new(token))).await {
            Ok(answer) if answer.status.is_success() => {}
            Ok(_) | Err(_) => debug!(
                cluster = %self.link.name(),
                "The token of a rehearsed login could not be revoked; it ends by itself."
            ),
        }
    }
}

const UNKNOWN_USES: &str = "whether the secret id is good for so many logins only is not known; \
                            allow update on auth/approle/role/+/secret-id/lookup";
