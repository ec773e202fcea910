//! A secret id behind a wrapping token, which Vault unwraps once.
//!
//! That is its use: whoever finds the token used up knows that somebody else has the secret
//! id. So it is looked at first (what it wraps must be a secret id of our mount, or somebody
//! has put another in its place), a place for what comes out is made before it is unwrapped,
//! and what came out is kept there for every later login.

mod kept;
mod lock;
mod owner;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tracing::{debug, error, info, warn};

use self::kept::{Digest, Keep, Kept};
use self::owner::Owner;
use crate::clock::Deadline;
use crate::cluster::auth::{AuthError, body, checked_token, resolve};
use crate::cluster::authenticate::Link;
use crate::cluster::{Answer, CallError, CallErrorKind, Operation, Verb, words};
use crate::config::settings::SecretSource;
use crate::task::unbroken;

/// As for a login.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

const COMPROMISED: &str = "if it was not you who unwrapped it, somebody else may have: treat its \
                           secret ID as compromised (destroy it), then wrap another";
const LOST: &str = "the secret ID is lost: destroy it and wrap another";
const FOREIGN: &str = "somebody may have put it in the place of the real one: find out who, then \
                       wrap another";

/// See the module.
pub(in crate::cluster::auth) struct Wrapped {
    token: SecretSource,
    mount: String,
    keep: Keep,
    link: Link,
    memory: lock::Shared,
}

/// What is known beside the file.
#[derive(Default)]
struct Memory {
    /// It was unwrapped and could not be written.
    unkept: Option<Kept>,
    /// An unwrap of this token was sent, and no answer came.
    unanswered: Option<Digest>,
    /// The trouble with this token was told, while an earlier secret id serves.
    told: Option<Digest>,
}

// === impl Wrapped ===

impl Wrapped {
    pub(super) fn new(token: SecretSource, kept_in: PathBuf, mount: &str, link: Link) -> Self {
        let memory = lock::shared(&kept_in);
        Self { token, mount: mount.to_owned(), keep: Keep::new(kept_in), link, memory }
    }

    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token.file()
    }

    /// The secret id: the kept one, or out of a token that is new. In a task of its own,
    /// which goes on to its end when nobody waits for it any more: between the unwrap and
    /// the file there is no other copy. Every step in it has its deadline, and the end of
    /// the process waits for it.
    pub(super) async fn secret_id(
        self: &Arc<Self>,
        role_id: &SecretString,
    ) -> Result<SecretString, AuthError> {
        let (this, owner) = (Arc::clone(self), self.owner(role_id));
        match tokio::spawn(async move { this.find_secret_id(owner).await }).await {
            Ok(outcome) => outcome,
            Err(end) if end.is_panic() => std::panic::resume_unwind(end.into_panic()),
            Err(_) => std::future::pending().await, // the process ends
        }
    }

    async fn find_secret_id(&self, owner: Owner) -> Result<SecretString, AuthError> {
        let memory = &mut *self.memory.lock().await;
        let (kept, trouble) = match self.kept(memory).await {
            Ok(kept) => (kept, None),
            Err(error) => (None, Some(error)),
        };
        let foreign = kept.as_ref().and_then(|kept| kept.owner.is_not(&owner));
        let foreign = foreign.map(|why| AuthError::File { path: self.keep.path().to_owned(), why });
        let (token, digest) = match self.token().await {
            Ok(token) => token,
            // Whoever brought the token may have taken it away again.
            Err(error) => {
                return match kept {
                    Some(kept) if foreign.is_none() => Ok(self.serve(kept, owner).await),
                    Some(_) | None => Err(foreign.or(trouble).unwrap_or(error)),
                };
            }
        };
        let Some(kept) = kept else {
            return self
                .unwrap(token, digest, owner, memory)
                .await
                .map_err(|e| trouble.unwrap_or(e));
        };
        match (kept.came_from == digest, foreign) {
            (true, None) => Ok(self.serve(kept, owner).await),
            // It is used up, and nobody else has done so.
            (true, Some(foreign)) => Err(foreign),
            (false, Some(foreign)) => {
                warn!(
                    cluster = %self.link.name(), error = %foreign,
                    "The secret ID that is kept is not used; the new wrapping token is unwrapped."
                );
                self.unwrap(token, digest, owner, memory).await
            }
            (false, None) => match self.unwrap(token, digest.clone(), owner, memory).await {
                Err(why) => {
                    if memory.told.as_ref() != Some(&digest) {
                        error!(
                            cluster = %self.link.name(), error = %why,
                            "The new wrapping token cannot be used; logins go on with the secret \
                             ID that was unwrapped before."
                        );
                        memory.told = Some(digest);
                    }
                    Ok(kept.secret_id)
                }
                unwrapped => unwrapped,
            },
        }
    }

    /// What `kept` holds. It belongs to `owner` from now on, so that one address after the
    /// other can be replaced.
    async fn serve(&self, kept: Kept, owner: Owner) -> SecretString {
        if kept.owner != owner {
            let next = Kept { owner, ..kept.clone() };
            let written = async {
                let lock = self.keep.lock().await?;
                // Another process may have kept a newer one since we looked.
                let there = self.keep.read().await?;
                if there.is_some_and(|there| there.came_from != next.came_from) {
                    return Ok(());
                }
                let place = self.keep.prepare(lock).await?;
                place.keep(&next).await.map_err(|error| self.keep.failed(&error))
            };
            if let Err(error) = written.await {
                debug!(cluster = %self.link.name(), %error, "The new addresses are not kept.");
            }
        }
        kept.secret_id
    }

    fn owner(&self, role_id: &SecretString) -> Owner {
        Owner::new(&self.link, &self.mount, role_id)
    }

    /// Where the secret id in a token that is still to be unwrapped was made; `None` when
    /// there is nothing to unwrap.
    pub(super) async fn fresh(&self, role_id: &SecretString) -> Result<Option<String>, AuthError> {
        let kept = self.kept(&*self.memory.lock().await).await?;
        let foreign = kept.as_ref().and_then(|kept| kept.owner.is_not(&self.owner(role_id)));
        let (token, digest) = match (self.token().await, &kept) {
            (Ok(token), _) => token,
            (Err(_), Some(_)) if foreign.is_none() => return Ok(None),
            (Err(error), _) => return Err(error),
        };
        if kept.is_some_and(|kept| kept.came_from == digest) {
            let refused = |why| AuthError::File { path: self.keep.path().to_owned(), why };
            return foreign.map_or(Ok(None), |why| Err(refused(why)));
        }
        self.look(&token, None).await.map(Some)
    }

    async fn kept(&self, memory: &Memory) -> Result<Option<Kept>, AuthError> {
        match &memory.unkept {
            Some(kept) => Ok(Some(kept.clone())),
            None => self.keep.read().await,
        }
    }

    async fn token(&self) -> Result<(SecretString, Digest), AuthError> {
        let token = checked_token(resolve(&self.token).await?)?;
        let digest = Digest::of(&token);
        Ok((token, digest))
    }

    async fn unwrap(
        &self,
        token: SecretString,
        digest: Digest,
        owner: Owner,
        memory: &mut Memory,
    ) -> Result<SecretString, AuthError> {
        let lock = self.keep.lock().await?;
        // Another process may have been here since we looked.
        let kept = self.keep.read().await.ok().flatten();
        let ours = |kept: &Kept| kept.came_from == digest && kept.owner.is_not(&owner).is_none();
        if let Some(kept) = kept.filter(ours) {
            return Ok(kept.secret_id);
        }
        let place = self.keep.prepare(lock).await?;
        let unanswered = memory.unanswered.as_ref().filter(|unanswered| **unanswered == digest);
        let made_at = self.look(&token, unanswered).await?;
        // From the unwrap to the file.
        let Some(_unbroken) = unbroken::begin() else {
            let why = "this process is about to end".to_owned();
            return Err(AuthError::Wrapping { why, remedy: "the next one does" });
        };
        let operation = Operation {
            needs_active: false,
            verb: Verb::Unwrap,
            method: Method::POST,
            path: "/v1/sys/wrapping/unwrap".to_owned(),
            namespace: self.link.namespace().cloned(),
            body: None,
        };
        let answer = match self.ask(operation, Some(token)).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.attempts.iter().any(|attempt| attempt.fault.may_have_been_served()) {
                    memory.unanswered = Some(digest);
                }
                return Err(AuthError::Unreachable(error));
            }
        };
        // Between the look and now.
        let unwrapped = self.read(&answer, None, |body: Unwrapped| body.data)?;
        let kept = Kept { came_from: digest, owner, secret_id: unwrapped.secret_id.into() };
        let (cluster, file) = (self.link.name(), self.keep.path().display());
        match place.keep(&kept).await {
            Ok(()) => {
                // What could not be written before this one is no longer the newest.
                memory.unkept = None;
                info!(%cluster, made_at, %file, "Unwrapped the secret ID; it is kept.");
            }
            Err(error) => {
                error!(
                    %cluster, %error,
                    "Unwrapped the secret ID but could not keep it: it is lost with this process. \
                     Wrap another before the next restart."
                );
                memory.unkept = Some(kept.clone());
            }
        }
        if unwrapped.uses > 0 || unwrapped.ttl > 0 {
            warn!(
                %cluster, uses = unwrapped.uses, ttl_seconds = unwrapped.ttl,
                "The secret ID ends after so many logins or so much time (0: never); wrap \
                 another before it does."
            );
        }
        Ok(kept.secret_id)
    }

    /// Where what `token` wraps was made, when that is a secret id of our mount.
    async fn look(
        &self,
        token: &SecretString,
        unanswered: Option<&Digest>,
    ) -> Result<String, AuthError> {
        let operation = Operation {
            needs_active: false,
            verb: Verb::LookupWrapping,
            method: Method::POST,
            path: "/v1/sys/wrapping/lookup".to_owned(),
            namespace: self.link.namespace().cloned(),
            body: Some(body(&[("token", token.expose_secret())])),
        };
        let answer = self.ask(operation, None).await.map_err(AuthError::Unreachable)?;
        let made_at = self.read(&answer, unanswered, |body: Looked| body.data.creation_path)?;
        if self.is_of_our_mount(&made_at) {
            return Ok(made_at);
        }
        let path = words::shortened(&[made_at]);
        let why = format!(
            "the token wraps what was made at {path}, and not a secret ID of auth/{}",
            self.mount
        );
        Err(AuthError::Wrapping { why, remedy: FOREIGN })
    }

    /// `auth/<mount>/role/<role>/secret-id`, or `…/custom-secret-id`.
    fn is_of_our_mount(&self, path: &str) -> bool {
        let ours = format!("auth/{}/role/", self.mount);
        let in_role = path.strip_prefix(&ours).and_then(|rest| rest.split_once('/'));
        matches!(in_role, Some((_, "secret-id" | "custom-secret-id")))
    }

    /// An answer of Vault, good or bad; an error when none came.
    async fn ask(
        &self,
        operation: Operation,
        token: Option<SecretString>,
    ) -> Result<Answer, CallError> {
        let deadline = Deadline::after(REQUEST_TIMEOUT);
        match self.link.send(Arc::new(operation), token.map(Arc::new), deadline).await {
            Err(CallError { kind: CallErrorKind::Agreed(answer), .. }) => Ok(*answer),
            outcome => outcome,
        }
    }

    /// What `pick` finds in a good answer, or why there is none.
    fn read<B: for<'de> Deserialize<'de>, T>(
        &self,
        answer: &Answer,
        unanswered: Option<&Digest>,
        pick: impl FnOnce(B) -> T,
    ) -> Result<T, AuthError> {
        let address = &answer.address;
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).map(pick).map_err(|_| {
                AuthError::Unacceptable {
                    address: address.to_string(),
                    what: "without its content",
                }
            });
        }
        let errors = words::errors(&answer.body).unwrap_or_default();
        let is_gone = errors.iter().any(|text| text.contains("wrapping token is not valid"));
        if answer.status == StatusCode::BAD_REQUEST && is_gone {
            return Err(match unanswered {
                Some(_) => AuthError::Wrapping {
                    why: format!("{address} did not answer when it was unwrapped before"),
                    remedy: LOST,
                },
                None => AuthError::Wrapping {
                    why: format!("its wrapping token is used up or has expired ({address})"),
                    remedy: COMPROMISED,
                },
            });
        }
        let (said, status) = (words::shortened(&errors), answer.status.as_u16());
        Err(AuthError::Wrapping {
            why: format!("{address}: {said} (HTTP {status})"),
            remedy: "check the address and auth.namespace",
        })
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped")
            .field("token", &self.token)
            .field("kept_in", &self.keep.path())
            .finish_non_exhaustive()
    }
}

/// The answer to `sys/wrapping/lookup`.
#[derive(Deserialize)]
struct Looked {
    data: LookedData,
}

#[derive(Deserialize)]
struct LookedData {
    creation_path: String,
}

/// The answer to `sys/wrapping/unwrap` of a secret id.
#[derive(Deserialize)]
struct Unwrapped {
    data: UnwrappedData,
}

#[derive(Deserialize)]
struct UnwrappedData {
    secret_id: String,
    #[serde(default, rename = "secret_id_num_uses")]
    uses: u64,
    #[serde(default, rename = "secret_id_ttl")]
    ttl: u64,
}

#[cfg(test)]
mod tests;
