//! A fake Transit key, for the keyring's unit tests: it has versions with creation times,
//! minimum versions, a clock, and can be away, slow, forbidden or wrong. It writes
//! ciphertexts that only the key that made them decrypts, as an authenticated type does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::condition::{KekCondition, KeyringCondition};
use super::kek::Kek;
use super::memory::KekMemory;
use super::{EncryptFor, Encrypted, Keyring, KeyringError};
use crate::clock::{Deadline, Jitter, UnixSeconds, node_time};
use crate::cluster::{CallError, CallErrorKind};
use crate::config::settings::*;
use crate::secret::Plaintext;
use crate::transit::*;

/// What Vault's clock says when a fake is made.
pub(super) const EPOCH: i64 = 1_800_000_000;

/// A scripted Transit key.
#[derive(Debug)]
pub(super) struct FakeTransit {
    cluster: ClusterName,
    made: Instant,
    pub(super) script: Mutex<Script>,
}

/// How it behaves; tests change it as they go.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) key: Option<KeyMetadata>,
    /// Which key material it has: another one cannot decrypt.
    pub(super) material: u8,
    /// Answered to reads instead of the truth, as a standby that is behind would.
    pub(super) stale_read: Option<KeyMetadata>,
    /// The key is deleted in the moment in which this is encrypted, which makes another one.
    pub(super) remade_for: Option<&'static [u8]>,
    /// Nobody can be asked for the active node's word.
    pub(super) leaderless: bool,
    pub(super) down: bool,
    /// No address is usable, as everybody knows.
    pub(super) left_out: bool,
    pub(super) latency: Duration,
    pub(super) trouble: Option<&'static str>,
    pub(super) knows_time: bool,
    pub(super) address: &'static str,
    pub(super) refuse_read: Option<Refusal>,
    pub(super) refuse_encrypt: Option<Refusal>,
    pub(super) refuse_decrypt: Option<Refusal>,
    pub(super) capabilities: Vec<&'static str>,
    /// Answers decrypts with something else.
    pub(super) corrupt: bool,
    pub(super) reads: usize,
    /// The version that each encrypt asked for.
    pub(super) encrypts: Vec<Option<u32>>,
    pub(super) decrypts: usize,
}

/// A key of `versions`, of which the last was made `age` seconds before [`EPOCH`] and each
/// other a day before the next.
pub(super) fn key(versions: u32, age: i64) -> KeyMetadata {
    let created = |n| UnixSeconds(EPOCH - age - i64::from(versions - n) * 86_400);
    KeyMetadata {
        versions: (1..=versions).map(|n| (n, created(n))).collect(),
        latest_version: versions,
        min_decryption_version: 1,
        min_encryption_version: 0,
        key_type: "aes256-gcm96".into(),
        derived: false,
        soft_deleted: false,
    }
}

/// Settings for a KEK of this name.
pub(super) fn kek_settings(name: &str) -> KekSettings {
    KekSettings {
        name: KekName::try_new(name).unwrap(),
        transit_key: name.into(),
        mount: "transit".into(),
        namespace: None,
        clusters: vec![ClusterName::try_new("default").unwrap()],
        replicas: Vec::new(),
        epoch: None,
        active_version: None,
    }
}

/// Settings for a keyring of KEKs of these names.
pub(super) fn keyring_settings(keks: Vec<Arc<KekSettings>>) -> KeyringSettings {
    KeyringSettings {
        keks,
        rotation: RotationSettings {
            refresh: Duration::from_secs(30),
            activation_delay: Duration::from_secs(60),
        },
        verify_encrypt: VerifyEncrypt::V2,
        write_format: WriteFormat::Named,
        status: StatusSettings {
            version: StatusVersion::V2,
            grace: Duration::from_secs(120),
            on_outage: OnOutage::Report,
        },
        legacy_key: None,
        bao_kms_provider: None,
    }
}

/// A keyring over fakes, with jitter off.
pub(super) struct Bench {
    pub(super) settings: KeyringSettings,
    pub(super) fakes: Vec<Arc<FakeTransit>>,
    pub(super) memories: Vec<Arc<KekMemory>>,
    pub(super) keyring: Arc<Keyring>,
}

// === impl Bench ===

impl Bench {
    /// One KEK for each name, each with a key of one old version, its metadata read and
    /// the first one proven.
    pub(super) async fn ready(names: &[&str]) -> Self {
        let bench = Self::start(names, |_| ());
        bench.settle().await;
        bench
    }

    /// The same with other settings, not waited for.
    pub(super) fn start(names: &[&str], change: impl FnOnce(&mut KeyringSettings)) -> Self {
        let keks = names.iter().map(|name| Arc::new(kek_settings(name))).collect();
        let mut settings = keyring_settings(keks);
        change(&mut settings);
        let fakes: Vec<_> =
            (0..).zip(names).map(|(n, _)| FakeTransit::new(n, key(1, 1_000))).collect();
        let memories: Vec<_> = names.iter().map(|_| Arc::new(KekMemory::new())).collect();
        let keyring = build(&settings, &fakes, &memories);
        Self { settings, fakes, memories, keyring }
    }

    /// Another generation over the same keys and memories.
    pub(super) fn reload(&mut self, change: impl FnOnce(&mut KeyringSettings)) {
        change(&mut self.settings);
        self.keyring = build(&self.settings, &self.fakes, &self.memories);
    }

    /// Another process over the same keys, `after` so many seconds by this machine's clock:
    /// all that it knows is what was kept of the memories.
    pub(super) fn restart(&mut self, after: i64, change: impl FnOnce(&mut KeyringSettings)) {
        change(&mut self.settings);
        let now = UnixSeconds(node_time().0 + after);
        let kept = self.memories.iter().map(|memory| memory.snapshot());
        self.memories = kept.map(|kept| Arc::new(KekMemory::restored(kept, now))).collect();
        self.keyring = build(&self.settings, &self.fakes, &self.memories);
    }

    /// Lets the tasks do what is due, without letting time pass.
    pub(super) async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// Lets time pass, and the tasks with it.
    pub(super) async fn wait(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        self.settle().await;
    }

    /// Changes how the fake of the KEK at `index` behaves.
    pub(super) fn script<R>(&self, index: usize, change: impl FnOnce(&mut Script) -> R) -> R {
        change(&mut self.fakes[index].script.lock().unwrap())
    }

    pub(super) async fn encrypt(&self, caller: EncryptFor) -> Result<Encrypted, KeyringError> {
        let seed = Plaintext::new(vec![7; 32]);
        self.keyring.encrypt(&seed, caller, soon()).await
    }

    pub(super) async fn encrypt_v2(&self) -> Result<Encrypted, KeyringError> {
        self.encrypt(EncryptFor::V2 { reported: None }).await
    }

    pub(super) async fn decrypt(&self, ciphertext: &[u8]) -> Result<Plaintext, KeyringError> {
        self.keyring.decrypt(ciphertext, &super::DecryptHints::default(), soon()).await
    }

    pub(super) fn primary(&self) -> KekCondition {
        let KeyringCondition { keks, .. } = self.keyring.condition();
        keks.into_iter().next().unwrap()
    }
}

fn build(
    settings: &KeyringSettings,
    fakes: &[Arc<FakeTransit>],
    memories: &[Arc<KekMemory>],
) -> Arc<Keyring> {
    let jitter = Arc::new(Jitter::off());
    let parts = settings.keks.iter().zip(fakes).zip(memories);
    let keks = parts.map(|((kek, fake), memory)| {
        let rotation = settings.rotation.clone();
        Kek::new(kek.clone(), fake.clone(), memory.clone(), rotation, jitter.clone())
    });
    Keyring::new(settings.clone(), keks.collect())
}

/// The deadline of a usual call.
pub(super) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(3))
}

// === impl FakeTransit ===

impl FakeTransit {
    pub(super) fn new(material: u8, key: KeyMetadata) -> Arc<Self> {
        Self::in_cluster("default", material, key)
    }

    pub(super) fn in_cluster(cluster: &str, material: u8, key: KeyMetadata) -> Arc<Self> {
        let script = Script {
            key: Some(key),
            material,
            stale_read: None,
            remade_for: None,
            leaderless: false,
            down: false,
            left_out: false,
            latency: Duration::ZERO,
            trouble: None,
            knows_time: true,
            address: "https://fake:8200",
            refuse_read: None,
            refuse_encrypt: None,
            refuse_decrypt: None,
            capabilities: vec!["update"],
            corrupt: false,
            reads: 0,
            encrypts: Vec::new(),
            decrypts: 0,
        };
        let cluster = ClusterName::try_new(cluster).unwrap();
        Arc::new(Self { cluster, made: Instant::now(), script: Mutex::new(script) })
    }

    /// Adds a version, made now by Vault's clock.
    pub(super) fn rotate(&self) {
        let now = self.time();
        let mut script = self.script.lock().unwrap();
        let key = script.key.as_mut().unwrap();
        key.latest_version += 1;
        key.versions.insert(key.latest_version, now);
    }

    pub(super) fn time(&self) -> UnixSeconds {
        UnixSeconds(EPOCH).plus(self.made.elapsed())
    }

    async fn answer<R>(
        &self,
        deadline: Deadline,
        answer: impl FnOnce(&mut Script) -> Result<R, Refusal> + Send,
    ) -> Result<R, TransitError> {
        let latency = self.script.lock().unwrap().latency;
        let cause = |kind| {
            let cluster = self.cluster.clone();
            TransitCause::Unavailable(Arc::new(CallError { cluster, kind, attempts: Vec::new() }))
        };
        let slept = tokio::time::timeout_at(deadline.instant(), tokio::time::sleep(latency)).await;
        let mut script = self.script.lock().unwrap();
        let cause = if slept.is_err() {
            cause(CallErrorKind::Deadline)
        } else if script.down {
            cause(CallErrorKind::Exhausted)
        } else {
            match answer(&mut script) {
                Ok(answer) => return Ok(answer),
                Err(refusal) => {
                    TransitCause::Refused { refusal, address: script.address.to_owned() }
                }
            }
        };
        Err(TransitError { mount: "transit".into(), key: "fake".into(), cause })
    }
}

impl TransitKey for FakeTransit {
    fn encrypt<'a>(
        &'a self,
        plaintext: &'a Plaintext,
        version: Option<KeyVersion>,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Wrapped, TransitError>> {
        let time = self.time();
        Box::pin(self.answer(deadline, move |script| {
            if script.remade_for.take_if(|text| *text == plaintext.expose()).is_some() {
                script.material += 1;
                let key = script.key.as_mut().ok_or(Refusal::KeyNotFound)?;
                key.versions.insert(1, time);
            }
            let version = version.map(|version| version.number);
            script.encrypts.push(version);
            if let Some(refusal) = script.refuse_encrypt.clone() {
                return Err(refusal);
            }
            let key = script.key.as_ref().ok_or(Refusal::KeyNotFound)?;
            let version = version.unwrap_or(key.latest_version);
            if version > key.latest_version {
                return Err(Refusal::AboveLatest);
            }
            if version < key.min_encryption_version {
                return Err(Refusal::BelowMinimumEncryption);
            }
            let mut payload = vec![script.material; 12];
            payload.extend_from_slice(plaintext.expose());
            payload.extend_from_slice(&[script.material; 16]);
            let ciphertext = VaultCiphertext::try_new(version, &STANDARD.encode(payload));
            let (ciphertext, address) = (ciphertext.unwrap(), script.address.to_owned());
            Ok(Wrapped { ciphertext, address, cluster: self.cluster.clone() })
        }))
    }

    fn decrypt<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>> {
        Box::pin(self.answer(deadline, move |script| {
            script.decrypts += 1;
            if let Some(refusal) = script.refuse_decrypt.clone() {
                return Err(refusal);
            }
            let key = script.key.as_ref().ok_or(Refusal::KeyNotFound)?;
            if ciphertext.version() > key.latest_version {
                return Err(Refusal::TooNew);
            }
            if ciphertext.version() < key.min_decryption_version {
                return Err(Refusal::TooOld);
            }
            let payload = STANDARD.decode(ciphertext.payload()).unwrap();
            let (nonce, rest) = payload.split_at_checked(12).ok_or(Refusal::WrongKey)?;
            if nonce != [script.material; 12] || rest.len() <= 16 {
                return Err(Refusal::WrongKey);
            }
            let mut plaintext = rest[..rest.len() - 16].to_vec();
            plaintext[0] ^= u8::from(script.corrupt);
            Ok(Plaintext::new(plaintext))
        }))
    }

    fn read(&self, deadline: Deadline) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.answer(deadline, |script| {
            script.reads += 1;
            match script.refuse_read.clone() {
                Some(refusal) => Err(refusal),
                None => {
                    let read = script.stale_read.as_ref().or(script.key.as_ref());
                    read.cloned().ok_or(Refusal::KeyNotFound)
                }
            }
        }))
    }

    fn read_at_active(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        if self.script.lock().unwrap().leaderless {
            let kind = CallErrorKind::Undecided;
            let cluster = self.cluster.clone();
            let error = CallError { cluster, kind, attempts: Vec::new() };
            let cause = TransitCause::Unavailable(Arc::new(error));
            let error = TransitError { mount: "transit".into(), key: "fake".into(), cause };
            return Box::pin(std::future::ready(Err(error)));
        }
        Box::pin(self.answer(deadline, |script| {
            script.reads += 1;
            match script.refuse_read.clone() {
                Some(refusal) => Err(refusal),
                None => script.key.clone().ok_or(Refusal::KeyNotFound),
            }
        }))
    }

    fn encrypt_capabilities(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<Vec<String>, TransitError>> {
        Box::pin(self.answer(deadline, |script| {
            Ok(script.capabilities.iter().map(|c| (*c).to_owned()).collect())
        }))
    }

    fn vault_now(&self) -> Option<UnixSeconds> {
        self.script.lock().unwrap().knows_time.then(|| self.time())
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn is_usable(&self) -> bool {
        !self.script.lock().unwrap().left_out
    }

    fn trouble(&self) -> Option<String> {
        self.script.lock().unwrap().trouble.map(str::to_owned)
    }
}
