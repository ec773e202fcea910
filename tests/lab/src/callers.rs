//! Callers that go on while something is done to the daemon or to what it depends on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use tonic::{Code, Status};

use crate::kms::Kms;
use crate::proto::v2;
use crate::{Result, eventually, fail};

/// After a call that failed, a caller waits this long, so that a daemon that refuses at once
/// is not asked in a circle.
const AFTER_A_FAILURE: Duration = Duration::from_millis(10);

/// Callers with a connection each, half of them of KMS v1 and half of v2. Each encrypts,
/// decrypts its answer and what was there before, and compares, without a pause; to a v2
/// caller, the key_id must never go back to an older version. Ends when dropped.
#[derive(Debug)]
pub struct Callers {
    seen: Arc<Mutex<Seen>>,
    stop: tokio::sync::watch::Sender<bool>,
    callers: JoinSet<()>,
}

/// What callers saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Calls that were answered as they should be.
    pub good: usize,
    /// What became of the others.
    pub failures: Vec<Failure>,
    /// The slowest call.
    pub slowest: Duration,
    /// How many new ciphertexts each KEK version made, by `<name>:vN`.
    pub made_by: BTreeMap<String, usize>,
    /// Every call, in the order in which they ended.
    pub calls: Vec<Timed>,
}

/// When a call ran.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// When it was sent.
    pub began: Instant,
    /// How long it took.
    pub took: Duration,
    /// Whether it was answered.
    pub is_good: bool,
}

/// A call that failed, or whose answer was wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The call: `v1 Encrypt`.
    pub what: &'static str,
    /// The gRPC code; none when it was answered, but wrongly.
    pub code: Option<Code>,
    /// The error's words, or what was wrong with the answer.
    pub message: String,
    /// When it was sent.
    pub began: Instant,
    /// How long it took.
    pub took: Duration,
}

/// Ciphertexts from before, with their plaintext.
type Old = Arc<[(Vec<u8>, Vec<u8>)]>;

// === impl Callers ===

impl Callers {
    /// Starts so many callers. `old` are v1 ciphertexts and their plaintexts, which are
    /// decrypted again and again as well.
    pub fn start(kms: &Kms, callers: usize, old: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let seen = Arc::<Mutex<Seen>>::default();
        let old: Old = old.into();
        let mut tasks = JoinSet::new();
        for number in 0..callers {
            let mut caller = Caller {
                kms: kms.fresh(),
                number,
                seen: Arc::clone(&seen),
                old: Arc::clone(&old),
                newest: BTreeMap::new(),
            };
            let stopped = stopped.clone();
            tasks.spawn(async move {
                for round in 0_u64.. {
                    if *stopped.borrow() {
                        return;
                    }
                    if let Err(failure) = caller.round(round).await {
                        lock(&caller.seen).failures.push(failure);
                        tokio::time::sleep(AFTER_A_FAILURE).await;
                    }
                }
            });
        }
        Self { seen, stop, callers: tasks }
    }

    /// What they have seen so far.
    pub fn so_far(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until `calls` more were answered well; fails at once when one was not.
    pub async fn more(&self, calls: usize, within: Duration) -> Result {
        let goal = lock(&self.seen).good + calls;
        let what = format!("{calls} more calls are answered");
        let done = eventually(&what, within, || async {
            let seen = lock(&self.seen);
            Ok((seen.good >= goal || !seen.failures.is_empty()).then_some(()))
        });
        done.await?;
        let seen = lock(&self.seen);
        if !seen.failures.is_empty() {
            fail!("after {} good calls: {}", seen.good, seen.failures_told());
        }
        Ok(())
    }

    /// Waits until a call was answered that ended at `instant` or later.
    pub async fn answered_since(&self, instant: Instant, within: Duration) -> Result {
        eventually("a call is answered again", within, || async {
            let seen = lock(&self.seen);
            let mut latest = seen.calls.iter().rev();
            Ok(latest.any(|call| call.is_good && call.end() >= instant).then_some(()))
        })
        .await
    }

    /// Lets each caller finish what it does, and answers what they have seen.
    pub async fn finish(mut self) -> Seen {
        let _ = self.stop.send(true);
        while self.callers.join_next().await.is_some() {}
        self.so_far()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Caller {
    kms: Kms,
    number: usize,
    seen: Arc<Mutex<Seen>>,
    old: Old,
    /// The highest version of each KEK that a key_id named so far.
    newest: BTreeMap<String, u32>,
}

// === impl Caller ===

impl Caller {
    async fn round(&mut self, round: u64) -> Result<(), Failure> {
        let seed = format!("caller {:02}, round {round:016}", self.number);
        if self.number.is_multiple_of(2) {
            self.round_v1(seed.as_bytes()).await?;
        } else {
            self.round_v2(seed.as_bytes()).await?;
        }
        let turn = usize::try_from(round).unwrap_or(0) + self.number;
        if let Some((cipher, plain)) = self.old.get(turn % self.old.len().max(1)) {
            let (v1, what) = (self.kms.v1(), "v1 Decrypt (old)");
            same(what, &self.call(what, v1.decrypt(cipher)).await?, plain)?;
        }
        Ok(())
    }

    async fn round_v1(&self, seed: &[u8]) -> Result<(), Failure> {
        let v1 = self.kms.v1();
        let cipher = self.call("v1 Encrypt", v1.encrypt(seed)).await?;
        self.made(&cipher);
        same("v1 Decrypt", &self.call("v1 Decrypt", v1.decrypt(&cipher)).await?, seed)
    }

    async fn round_v2(&mut self, seed: &[u8]) -> Result<(), Failure> {
        let v2 = self.kms.v2();
        let status = self.call("v2 Status", v2.status()).await?;
        if status.healthz != "ok" {
            return Err(wrong("v2 Status", format!("healthz is {:?}", status.healthz)));
        }
        self.never_goes_back(&status.key_id)?;
        let made = self.call("v2 Encrypt", v2.encrypt(seed, "traffic")).await?;
        self.made(&made.ciphertext);
        check_key_id(&status, &made)?;
        same("v2 Decrypt", &self.call("v2 Decrypt", v2.decrypt(&made, "traffic")).await?, seed)
    }

    /// kube-apiserver would take an older key_id for a new one, and rewrite with it.
    fn never_goes_back(&mut self, key_id: &str) -> Result<(), Failure> {
        let mut parts = key_id.split(':');
        let name = parts.next().unwrap_or_default();
        let version = parts.next().and_then(|part| part.strip_prefix('v')?.parse().ok());
        let Some(version) = version else {
            return Err(wrong("v2 Status", format!("key_id {key_id:?} names no version")));
        };
        let newest = self.newest.entry(name.to_owned()).or_insert(version);
        if version < *newest {
            let message = format!("key_id {key_id:?} came after version {newest}");
            return Err(wrong("v2 Status", message));
        }
        *newest = version;
        Ok(())
    }

    async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let result = call.await;
        let took = began.elapsed();
        let mut seen = lock(&self.seen);
        seen.slowest = seen.slowest.max(took);
        seen.calls.push(Timed { began, took, is_good: result.is_ok() });
        if result.is_ok() {
            seen.good += 1;
        }
        result.map_err(|status| {
            let (code, message) = (Some(status.code()), status.message().to_owned());
            Failure { what, code, message, began, took }
        })
    }

    fn made(&self, cipher: &[u8]) {
        let text = String::from_utf8_lossy(cipher);
        let by = text.rsplit_once(':').map_or("", |(by, _)| by).to_owned();
        *lock(&self.seen).made_by.entry(by).or_default() += 1;
    }
}

/// kube-apiserver throws away an answer with another key_id than Status has just named.
fn check_key_id(status: &v2::StatusResponse, made: &v2::EncryptResponse) -> Result<(), Failure> {
    if status.key_id != made.key_id {
        let (said, made) = (&status.key_id, &made.key_id);
        return Err(wrong("v2 Encrypt", format!("key_id {made:?}, and {said:?} in Status before")));
    }
    Ok(())
}

fn same(what: &'static str, got: &[u8], expected: &[u8]) -> Result<(), Failure> {
    if got != expected {
        return Err(wrong(what, "the plaintext is not what was encrypted".to_owned()));
    }
    Ok(())
}

fn wrong(what: &'static str, message: String) -> Failure {
    Failure { what, code: None, message, began: Instant::now(), took: Duration::ZERO }
}

// === impl Seen ===

impl Seen {
    /// The failures, one a line.
    pub fn failures_told(&self) -> String {
        let lines: Vec<_> = self.failures.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }
}

// === impl Timed ===

impl Timed {
    /// When it ended.
    pub fn end(&self) -> Instant {
        self.began + self.took
    }
}

// === impl Failure ===

impl Failure {
    /// Whether the caller gave up before the daemon had answered.
    pub fn is_late(&self) -> bool {
        self.code.is_some() && self.message.contains("Timeout expired")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, code, message, took, .. } = self;
        match code {
            Some(code) => write!(f, "{what} after {took:.1?}: {code:?}: {message}"),
            None => write!(f, "{what}: {message}"),
        }
    }
}
