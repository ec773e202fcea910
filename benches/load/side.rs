//! Who is asked: OpenBao itself, the daemon, another plugin.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lab::kms::{APISERVER_TIMEOUT, V1, V2};
use lab::proto::v2;
use lab::{Cluster, Context, Error, Kms, Result, fail};
use serde_json::json;
use tokio::task::JoinSet;

/// The key's name, in OpenBao and in what the daemon writes.
pub(crate) const KEY: &str = "kube";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Encrypt,
    Decrypt,
}

/// One side of a comparison. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Side {
    pub(crate) name: &'static str,
    way: Way,
    stored: Arc<[Stored]>,
}

#[derive(Clone)]
enum Way {
    Direct(Direct),
    V1(V1),
    V2(V2),
}

/// A client that speaks to OpenBao as a program without the daemon would: one request a
/// call, over connections that stay open.
#[derive(Clone)]
struct Direct {
    client: reqwest::Client,
    address: Arc<str>,
    token: Arc<str>,
}

/// A ciphertext as its side stores it.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    Transit(String),
    V1(Vec<u8>),
    V2(v2::EncryptResponse),
}

/// How a call went wrong.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No answer: counted, and told.
    Call(String),
    /// Another answer than the right one. A bench of wrong answers measures nothing, so this
    /// ends it.
    Wrong(String),
}

/// The seed that object `number` was encrypted from.
pub(crate) fn seed(number: usize) -> [u8; 32] {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
    seed
}

/// What the lab's cluster stores for the three sides that it can be asked by.
pub(crate) struct Sides {
    address: Arc<str>,
    token: Arc<str>,
    ca: Vec<u8>,
    transit: Vec<String>,
}

// === impl Sides ===

impl Sides {
    /// Encrypts `count` seeds at the active node of `cluster`.
    pub(crate) async fn prepare(cluster: &Cluster, count: usize) -> Result<Self> {
        // An error means that the lab has installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // The same policy as the daemon's: a root token would spare OpenBao half of its work.
        let admin = cluster.admin();
        admin.write_policy("direct", &lab::policy_for(&[KEY])).await?;
        let token = admin.create_token(json!({ "policies": ["direct"] })).await?;
        let address = cluster.leader().await?.address();
        let mut transit = Vec::with_capacity(count);
        while transit.len() < count {
            let some = transit.len()..count.min(transit.len() + 200);
            let items = some.map(|n| json!({ "plaintext": STANDARD.encode(seed(n)) }));
            let body = json!({ "batch_input": items.collect::<Vec<_>>() });
            let answer = admin.write(&format!("transit/encrypt/{KEY}"), body).await?;
            let results = answer["data"]["batch_results"].as_array().context("no results")?;
            for result in results {
                let made = result["ciphertext"].as_str().context("no ciphertext")?;
                transit.push(made.to_owned());
            }
        }
        let ca = std::fs::read(cluster.ca_file())?;
        Ok(Self { address: address.into(), token: token.into(), ca, transit })
    }

    /// OpenBao itself, with a client that has no connection yet.
    pub(crate) fn direct(&self) -> Result<Side> {
        let ca = reqwest::Certificate::from_pem(&self.ca)?;
        let client = reqwest::Client::builder().tls_certs_only([ca]).http1_only().build()?;
        let (address, token) = (Arc::clone(&self.address), Arc::clone(&self.token));
        let way = Way::Direct(Direct { client, address, token });
        let stored = self.transit.iter().cloned().map(Stored::Transit).collect();
        Ok(Side { name: "direct", way, stored })
    }

    /// The daemon by KMS v1.
    pub(crate) fn v1(&self, kms: Kms) -> Side {
        let stored = self.ours().map(|text| Stored::V1(text.into_bytes())).collect();
        Side { name: "proxy v1", way: Way::V1(kms.v1()), stored }
    }

    /// The daemon by KMS v2.
    pub(crate) async fn v2(&self, kms: Kms) -> Result<Side> {
        let model = kms.v2().encrypt(&seed(0), "bench").await?;
        let stored = self.ours().map(|text| {
            Stored::V2(v2::EncryptResponse { ciphertext: text.into_bytes(), ..model.clone() })
        });
        Ok(Side { name: "proxy v2", way: Way::V2(kms.v2()), stored: stored.collect() })
    }

    fn ours(&self) -> impl Iterator<Item = String> {
        self.transit.iter().map(|text| text.replacen("vault:", &format!("{KEY}:"), 1))
    }
}

// === impl Verb ===

impl Verb {
    /// The verb that an option names.
    pub(crate) fn named(word: &str) -> Result<Self> {
        match word {
            "encrypt" => Ok(Self::Encrypt),
            "decrypt" => Ok(Self::Decrypt),
            _ => fail!("--verbs {word}: no such verb; known are decrypt and encrypt"),
        }
    }
}

// === impl Side ===

impl Side {
    /// Another plugin by whichever of the two APIs it serves; it encrypts so many seeds by
    /// itself, for v1 and for v2.
    pub(crate) async fn others(kms: &Kms, [v1, v2]: [usize; 2]) -> Result<Vec<Self>> {
        let mut sides = Vec::new();
        if kms.v1().version().await.is_ok() {
            let side = Self { name: "base v1", way: Way::V1(kms.v1()), stored: [].into() };
            sides.push(Self { stored: side.store(v1).await?.into(), ..side });
        }
        if kms.v2().status().await.is_ok() {
            let side = Self { name: "base v2", way: Way::V2(kms.v2()), stored: [].into() };
            sides.push(Self { stored: side.store(v2).await?.into(), ..side });
        }
        if sides.is_empty() {
            fail!("the baseline answers neither Version of KMS v1 nor Status of KMS v2");
        }
        Ok(sides)
    }

    async fn store(&self, count: usize) -> Result<Vec<Stored>> {
        const AT_ONCE: usize = 32;
        let mut tasks = JoinSet::new();
        for first in 0..AT_ONCE {
            let side = self.clone();
            tasks.spawn(async move {
                let mut made = Vec::new();
                for number in (first..count).step_by(AT_ONCE) {
                    made.push((number, side.encrypt(number).await?));
                }
                Ok::<_, Failure>(made)
            });
        }
        let mut all = Vec::with_capacity(count);
        while let Some(made) = tasks.join_next().await {
            all.extend(made?.map_err(Error::from)?);
        }
        all.sort_by_key(|(number, _)| *number);
        Ok(all.into_iter().map(|(_, stored)| stored).collect())
    }

    /// How many objects it stores.
    pub(crate) fn len(&self) -> usize {
        self.stored.len()
    }

    /// Whether it is the daemon, or another plugin, asked by KMS v1.
    pub(crate) fn is_v1(&self) -> bool {
        matches!(self.way, Way::V1(_))
    }

    /// Whether it is OpenBao itself.
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.way, Way::Direct(_))
    }

    /// Encrypts the seed of object `number`.
    pub(crate) async fn encrypt(&self, number: usize) -> Result<Stored, Failure> {
        let plain = seed(number);
        let (made, length) = match &self.way {
            Way::Direct(direct) => {
                let made = direct.encrypt(&plain).await?;
                (Stored::Transit(made.clone()), made.len())
            }
            Way::V1(kms) => {
                let made = kms.encrypt(&plain).await.map_err(Failure::of)?;
                let length = made.len();
                (Stored::V1(made), length)
            }
            Way::V2(kms) => {
                let made = kms.encrypt(&plain, "bench").await.map_err(Failure::of)?;
                let length = made.ciphertext.len();
                (Stored::V2(made), length)
            }
        };
        // A nonce, the seed and a tag are 60 bytes, without any name before them.
        right(length >= 60, || format!("{}: a ciphertext of {length} bytes", self.name))?;
        Ok(made)
    }

    /// Decrypts object `number`.
    pub(crate) async fn decrypt(&self, number: usize) -> Result<(), Failure> {
        self.open(&self.stored[number], number).await
    }

    /// Decrypts a ciphertext that must hold the seed of object `number`.
    pub(crate) async fn open(&self, stored: &Stored, number: usize) -> Result<(), Failure> {
        let is_right = match (&self.way, stored) {
            (Way::Direct(direct), Stored::Transit(text)) => {
                direct.decrypt(text, &seed(number)).await?
            }
            (Way::V1(kms), Stored::V1(cipher)) => {
                kms.decrypt(cipher).await.map_err(Failure::of)? == seed(number)
            }
            (Way::V2(kms), Stored::V2(made)) => {
                kms.decrypt(made, "bench").await.map_err(Failure::of)? == seed(number)
            }
            _ => false,
        };
        right(is_right, || format!("{}: object {number} has another plaintext", self.name))
    }
}

// === impl Direct ===

impl Direct {
    async fn encrypt(&self, plain: &[u8]) -> Result<String, Failure> {
        let body = format!(r#"{{"plaintext":"{}"}}"#, STANDARD.encode(plain));
        let answer = self.ask("encrypt", body).await?;
        let text = answer.find("vault:v").map(|start| &answer[start..]);
        let text = text.and_then(|text| text.split('"').next());
        text.map(str::to_owned).ok_or_else(|| Failure::Wrong(format!("no ciphertext: {answer}")))
    }

    async fn decrypt(&self, ciphertext: &str, plain: &[u8]) -> Result<bool, Failure> {
        let body = format!(r#"{{"ciphertext":"{ciphertext}"}}"#);
        let answer = self.ask("decrypt", body).await?;
        Ok(answer.contains(&format!("\"plaintext\":\"{}\"", STANDARD.encode(plain))))
    }

    async fn ask(&self, verb: &str, body: String) -> Result<String, Failure> {
        let url = format!("{}/v1/transit/{verb}/{KEY}", self.address);
        let request = self.client.post(url).header("X-Vault-Token", &*self.token);
        let request = request.header("X-Vault-Request", "true").timeout(DIRECT_TIMEOUT);
        let answer = request.body(body).send().await.map_err(Failure::of)?;
        let status = answer.status();
        let text = answer.text().await.map_err(Failure::of)?;
        if status.is_success() { Ok(text) } else { Err(Failure::Call(format!("{status}: {text}"))) }
    }
}

/// What kube-apiserver grants a call; the other sides send it as `grpc-timeout`.
const DIRECT_TIMEOUT: Duration = APISERVER_TIMEOUT;

// === impl Failure ===

impl Failure {
    fn of(error: impl Into<Error>) -> Self {
        Self::Call(error.into().to_string())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Call(why) => Self::new(why),
            Failure::Wrong(why) => Self::new(format!("a wrong answer, so nothing counts: {why}")),
        }
    }
}

fn right(is_right: bool, why: impl FnOnce() -> String) -> Result<(), Failure> {
    if is_right { Ok(()) } else { Err(Failure::Wrong(why())) }
}
