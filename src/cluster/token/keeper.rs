//! The one task that gets the token, renews it and replaces it.
//!
//! Two states: [`Keeper::obtain`] until there is a token that Vault accepts,
//! [`Keeper::hold`] until it must be got anew. The old token stays in use until the new
//! one is there, and is given up early only when Vault itself says that it is dead. While
//! logins fail it is renewed for as long as it can be.

mod look;
mod plan;
mod publish;
mod recall;
mod rehearse;
mod renew;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tracing::warn;

use self::look::Checked;
use self::plan::{KnownLease, Step, backoff, pause_after};
use self::publish::Origin;
use self::rehearse::Rehearsals;
use super::board::Publisher;
use super::cache::{BelongsTo, TokenCache};
use super::lease::{self, Grant};
use super::{Current, Report};
use crate::clock::{Deadline, Jitter};
use crate::cluster::auth::{AuthError, Begin, Fingerprint, Method, Source, fingerprint};
use crate::cluster::authenticate::Link;
use crate::cluster::{Answer, CallError, CallErrorKind, Operation};

/// How long a login, lookup or renewal may take. Writes that a frozen leader held up came
/// back after 13 s; by then another try is the better way.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two logins, and between two lookups that refused calls ask for.
const SPACING: Duration = Duration::from_secs(1);

/// How often files are looked at.
const FILE_POLL: Duration = Duration::from_secs(5);

/// A token that dies younger counts as a failed login.
const SHORT_LIFE: Duration = Duration::from_secs(30);

/// The task's state.
pub(super) struct Keeper {
    method: Box<dyn Method>,
    cache: Option<TokenCache>,
    /// Whose token it is, for the cache; `None` when nobody can tell.
    owner: Option<BelongsTo>,
    link: Link,
    jitter: Arc<Jitter>,
    publish: Publisher<Current>,
    reports: watch::Receiver<Report>,
    /// What the method's files held when the token was got.
    fingerprint: Option<Fingerprint>,
    lease: Option<KnownLease>,
    /// What Vault calls the role that logged in.
    role: Option<String>,
    rehearsals: Rehearsals,
    /// The token is one that an earlier process left, and Vault has not accepted it yet.
    is_recalled: bool,
    serial: u64,
    last_login: Option<Instant>,
    last_lookup: Option<Instant>,
    /// Tokens in a row that died young.
    short_lives: u32,
    /// The reason that was logged last, so that each is logged once.
    told: Option<String>,
    /// The token whose end was foretold, by its serial.
    foretold: u64,
    /// The cache could not be used, and that was told.
    cache_fails: bool,
}

/// Whether the token is still worth holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlook {
    Lives,
    Dead,
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(
        method: Box<dyn Method>,
        cache: Option<TokenCache>,
        link: Link,
        jitter: Arc<Jitter>,
        publish: Publisher<Current>,
        reports: watch::Receiver<Report>,
    ) -> Self {
        Self {
            method,
            cache,
            owner: None,
            link,
            jitter,
            publish,
            reports,
            fingerprint: None,
            lease: None,
            role: None,
            rehearsals: Rehearsals::default(),
            is_recalled: false,
            serial: 0,
            last_login: None,
            last_lookup: None,
            short_lives: 0,
            told: None,
            foretold: 0,
            cache_fails: false,
        }
    }

    /// Runs until its owner ends it.
    pub(super) async fn run(&mut self) {
        // Not again after a panic: that token may have been the reason.
        if self.serial == 0 {
            self.recall().await;
        }
        loop {
            self.obtain().await;
            self.hold().await;
        }
    }

    /// Tries until there is a token that Vault accepts.
    async fn obtain(&mut self) {
        let mut failures = 0;
        loop {
            let spacing =
                if self.short_lives == 0 { SPACING } else { backoff(self.short_lives - 1) };
            if let Some(last) = self.last_login {
                sleep_until(last + self.jitter.around(spacing)).await;
            }
            let began = Instant::now();
            let outcome = match self.take_recalled().await {
                Some(outcome) => outcome,
                None => {
                    self.last_login = Some(Instant::now());
                    let outcome = self.login().await;
                    self.count(&outcome);
                    outcome
                }
            };
            let Err(error) = outcome else { return };
            self.tell_failure(&error);
            if self.renew_instead(&error).await {
                return;
            }
            // A whole fleet may have failed in the same moment.
            let mut pause = self.jitter.half(pause_after(&error, failures));
            failures += 1;
            // While nobody answers, the next moment may bring somebody who does. A try that
            // has stood in line for its time was a pause already: the next one is to stand
            // there when an address is back, for calls wait for it.
            let is_a_no = !matches!(error, AuthError::Unreachable(_));
            if !is_a_no {
                pause = pause.saturating_sub(began.elapsed()).max(self.jitter.half(SPACING));
            }
            let next_try = is_a_no.then(|| Instant::now() + pause);
            self.publish.modify(|current| current.next_try = next_try);
            let is_renewed = self.wait_to_retry(pause, &error).await;
            self.publish.modify(|current| current.next_try = None);
            if is_renewed {
                return;
            }
        }
    }

    /// One try.
    async fn login(&mut self) -> Result<(), AuthError> {
        self.fingerprint = Some(fingerprint(&self.method.files()).await);
        let owner = self.owner_now().await;
        match self.method.begin().await? {
            Begin::Token(token) => self.take(token).await,
            Begin::Login(operation) => {
                // The role's file may have changed in between, and may do so while the token
                // lives.
                let owner = if owner == self.owner_now().await { owner } else { None };
                self.log_in(operation, owner).await
            }
        }
    }

    async fn log_in(
        &mut self,
        operation: Operation,
        owner: Option<BelongsTo>,
    ) -> Result<(), AuthError> {
        let answer = self.answer_to_login(operation).await?;
        let Some(Grant { token, lease, role }) = lease::of_login(&answer.body) else {
            let address = answer.address.to_string();
            return Err(AuthError::Unacceptable { address, what: "without a token in it" });
        };
        self.role = role;
        self.owner = owner;
        self.accept(token, Some(lease), Origin::Login);
        self.keep_cached().await;
        Ok(())
    }

    async fn answer_to_login(&self, operation: Operation) -> Result<Answer, AuthError> {
        let method = self.method.name();
        match self.send(Arc::new(operation), None).await {
            Ok(answer) if answer.status.is_success() => Ok(answer),
            Ok(answer) => Err(AuthError::of_login(method, &answer)),
            Err(error) => Err(match error.kind {
                CallErrorKind::Agreed(answer) => AuthError::of_login(method, &answer),
                _ => AuthError::Unreachable(error),
            }),
        }
    }

    /// A token that is there already: used at once, unless Vault says that it is dead.
    async fn take(&mut self, token: SecretString) -> Result<(), AuthError> {
        let shared = Arc::new(token.clone());
        match self.look_up(&shared).await {
            Checked::Lives(lease) => self.accept(token, Some(lease), Origin::Given),
            Checked::LivesUnseen => {
                warn!(
                    cluster = %self.link.name(),
                    "The token may not look at itself, so its ttl is unknown and it is not \
                     renewed; allow read on auth/token/lookup-self."
                );
                self.accept(token, None, Origin::Given);
            }
            Checked::Dead => {
                if self.holds(&token) {
                    self.drop_token();
                }
                return Err(AuthError::Dead { remedy: self.remedy() });
            }
            Checked::Unanswered(error) => {
                if self.held().is_none() {
                    self.offer_unproven(token);
                }
                return Err(AuthError::Unreachable(error));
            }
            Checked::Odd(answer) => {
                return Err(AuthError::of_login(self.method.name(), &answer));
            }
        }
        Ok(())
    }

    /// Keeps the token until it must be got anew.
    async fn hold(&mut self) {
        let source = self.method.source();
        let files_matter = !self.method.files().is_empty();
        let mut poll = file_poll();
        loop {
            let rehearsal = self.rehearsals.due();
            let step = self.lease.map_or(Step::Nothing, |known| known.next_step(source));
            tokio::select! {
                biased;
                () = sleep_until(step.at()), if step != Step::Nothing => match step {
                    Step::Renew(_) => {
                        if self.renew().await == Outlook::Dead {
                            return;
                        }
                    }
                    Step::Obtain(_) | Step::Nothing => return,
                },
                () = reported(&mut self.reports) => {
                    if self.settle().await == Outlook::Dead {
                        return;
                    }
                }
                () = sleep_until(rehearsal.unwrap_or_else(Instant::now)), if rehearsal.is_some() => {
                    self.rehearse().await;
                }
                _ = poll.tick(), if files_matter => {
                    if self.files_changed().await {
                        match source {
                            Source::File => self.take_from_file().await,
                            Source::Login | Source::Nowhere => self.rehearse_soon().await,
                        }
                    }
                    if self.held().is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// The file holds something else now: use it if Vault accepts it, else go on as before.
    async fn take_from_file(&mut self) {
        let outcome = self.login().await;
        self.count(&outcome);
        if let Err(error) = outcome {
            self.tell_failure(&error);
            if matches!(error, AuthError::Unreachable(_)) {
                self.fingerprint = None; // look again at the next tick
            }
        }
    }

    /// Passes the time until the next try; a changed file ends it early, and so does a
    /// renewal of the token that is held. Whether it was that.
    async fn wait_to_retry(&mut self, pause: Duration, error: &AuthError) -> bool {
        let until = Instant::now() + pause;
        let has_files = !self.method.files().is_empty();
        let mut poll = file_poll();
        let mut renewal = self.next_renewal();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(until) => return false,
                () = sleep_until(renewal.unwrap_or(until)), if renewal.is_some() => {
                    if self.renew_instead(error).await {
                        return true;
                    }
                    renewal = self.next_renewal();
                }
                () = reported(&mut self.reports) => {
                    self.settle().await; // a dead token is dropped; the next try is coming
                }
                _ = poll.tick(), if has_files => {
                    if self.files_changed().await {
                        return false;
                    }
                }
            }
        }
    }

    async fn files_changed(&self) -> bool {
        let now = fingerprint(&self.method.files()).await;
        self.fingerprint.as_ref() != Some(&now)
    }

    async fn send(
        &self,
        operation: Arc<Operation>,
        token: Option<Arc<SecretString>>,
    ) -> Result<Answer, CallError> {
        self.link.send(operation, token, Deadline::after(REQUEST_TIMEOUT)).await
    }
}

/// Ends when a refused token is reported; never when nobody is left to report.
async fn reported(reports: &mut watch::Receiver<Report>) {
    if reports.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Ticks whenever files are to be looked at; not at once.
fn file_poll() -> Interval {
    let mut poll = interval_at(Instant::now() + FILE_POLL, FILE_POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    poll
}
