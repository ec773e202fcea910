//! Callers that go on while something is done to the daemon or to what it depends on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::kms::Kms;
use crate::proto::v2;
use crate::{Error, Result, eventually, fail};

/// Callers with a connection each, half of them of KMS v1 and half of v2. Each encrypts,
/// decrypts its answer and what was there before, and compares, without a pause. Ends when
/// dropped.
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
    /// What the others were answered.
    pub failures: Vec<String>,
    /// The slowest call.
    pub slowest: Duration,
    /// How many new ciphertexts each KEK version made, by `<name>:vN`.
    pub made_by: BTreeMap<String, usize>,
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
            let caller =
                Caller { kms: kms.fresh(), number, seen: Arc::clone(&seen), old: Arc::clone(&old) };
            let stopped = stopped.clone();
            tasks.spawn(async move {
                for round in 0_u64.. {
                    if *stopped.borrow() {
                        return;
                    }
                    if let Err(error) = caller.round(round).await {
                        lock(&caller.seen).failures.push(error.to_string());
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
        let goal = self.so_far().good + calls;
        let what = format!("{calls} more calls are answered");
        let seen = eventually(&what, within, || async {
            let seen = self.so_far();
            Ok((seen.good >= goal || !seen.failures.is_empty()).then_some(seen))
        });
        match seen.await? {
            seen if seen.failures.is_empty() => Ok(()),
            seen => fail!("after {} good calls: {}", seen.good, seen.failures.join("\n")),
        }
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
}

// === impl Caller ===

impl Caller {
    async fn round(&self, round: u64) -> Result {
        let seed = format!("caller {:02}, round {round:016}", self.number);
        if self.number.is_multiple_of(2) {
            self.round_v1(seed.as_bytes()).await?;
        } else {
            self.round_v2(seed.as_bytes()).await?;
        }
        let turn = usize::try_from(round).unwrap_or(0) + self.number;
        if let Some((cipher, plain)) = self.old.get(turn % self.old.len().max(1)) {
            let again = self.call("v1 Decrypt (old)", self.kms.v1().decrypt(cipher)).await?;
            self.same(&again, plain)?;
        }
        Ok(())
    }

    async fn round_v1(&self, seed: &[u8]) -> Result {
        let cipher = self.call("v1 Encrypt", self.kms.v1().encrypt(seed)).await?;
        self.made(&cipher);
        self.same(&self.call("v1 Decrypt", self.kms.v1().decrypt(&cipher)).await?, seed)
    }

    async fn round_v2(&self, seed: &[u8]) -> Result {
        let status = self.call("v2 Status", self.kms.v2().status()).await?;
        if status.healthz != "ok" {
            fail!("healthz is {:?}", status.healthz);
        }
        let made = self.call("v2 Encrypt", self.kms.v2().encrypt(seed, "traffic")).await?;
        self.made(&made.ciphertext);
        self.check_key_id(&status, &made)?;
        self.same(&self.call("v2 Decrypt", self.kms.v2().decrypt(&made, "traffic")).await?, seed)
    }

    /// kube-apiserver throws away an answer with another key_id than Status has just named.
    fn check_key_id(&self, status: &v2::StatusResponse, made: &v2::EncryptResponse) -> Result {
        if status.key_id != made.key_id {
            fail!("Status says {:?}, Encrypt right after it {:?}", status.key_id, made.key_id);
        }
        Ok(())
    }

    async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T> {
        let began = Instant::now();
        let result = call.await;
        let took = began.elapsed();
        let mut seen = lock(&self.seen);
        seen.slowest = seen.slowest.max(took);
        match result {
            Ok(answer) => {
                seen.good += 1;
                Ok(answer)
            }
            Err(status) => Err(Error::new(format!("{what} after {took:.1?}: {status}"))),
        }
    }

    fn made(&self, cipher: &[u8]) {
        let text = String::from_utf8_lossy(cipher);
        let by = text.rsplit_once(':').map_or("", |(by, _)| by).to_owned();
        *lock(&self.seen).made_by.entry(by).or_default() += 1;
    }

    fn same(&self, got: &[u8], expected: &[u8]) -> Result {
        if got != expected {
            fail!("a decrypted plaintext is not what was encrypted");
        }
        Ok(())
    }
}
