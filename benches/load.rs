//! The same load twice, in one run: straight to OpenBao over TLS, and through the daemon.
//!
//! `cargo bench --bench load` prints a table of ratios. Only ratios mean anything: machines
//! are noisy, and OpenBao shares this one's cores with both clients and the daemon. The two
//! sides take turns in short slices, so that noise falls on both.
//!
//! Options, after `--`: `--seconds N` for each side of each row (default 4), `--callers
//! 1,4,16,64`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use lab::{Daemon, DevNode, Kms};
use tokio::time::Instant;

const KEY: &str = "kube";
const SLICES: u32 = 4;
/// Calls that each caller makes before anything is counted.
const WARM_UP: usize = 20;

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Verb {
    Encrypt,
    Decrypt,
}

/// One side of the comparison.
#[derive(Clone)]
enum Side {
    Direct(Direct),
    Proxy(Kms, Arc<str>),
}

/// A client that speaks to OpenBao as a program without the daemon would.
#[derive(Clone)]
struct Direct {
    client: reqwest::Client,
    address: Arc<str>,
    token: Arc<str>,
    ciphertext: Arc<str>,
}

/// What one side did.
struct Measured {
    latencies: Histogram<u64>,
    busy: Duration,
}

struct Options {
    seconds: u64,
    callers: Vec<usize>,
}

#[tokio::main]
async fn main() -> lab::Result<()> {
    let options = Options::from_arguments()?;
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let daemon =
        Daemon::start(env!("CARGO_BIN_EXE_vault-kms-proxy"), bao.config(&[KEY]).await?).await?;
    daemon.kms().v2().wait_ok(Duration::from_secs(15)).await?;
    let transit = bao.admin().encrypt(KEY, &[7; 32]).await?;
    // The same policy as the daemon's: a root token would spare OpenBao half of its work.
    bao.admin().write_policy("direct", &lab::policy_for(&[KEY])).await?;
    let token = bao.admin().create_token(serde_json::json!({ "policies": ["direct"] })).await?;
    let direct = Side::Direct(Direct {
        client: client(&std::fs::read(bao.ca_file())?)?,
        address: bao.address().into(),
        token: token.into(),
        ciphertext: transit.as_str().into(),
    });
    let ours: Arc<str> = transit.replacen("vault:", "kube:", 1).into();
    let proxy = Side::Proxy(daemon.kms(), ours);

    println!("{}", Measured::heading());
    for verb in [Verb::Decrypt, Verb::Encrypt] {
        for &callers in &options.callers {
            warm_up(&direct, verb, callers).await?;
            warm_up(&proxy, verb, callers).await?;
            let (mut straight, mut through) = (Measured::new(), Measured::new());
            let slice = Duration::from_secs(options.seconds) / SLICES;
            for _ in 0..SLICES {
                straight.add(&direct, verb, callers, slice).await?;
                through.add(&proxy, verb, callers, slice).await?;
            }
            println!("{}", Measured::row(verb, callers, &straight, &through));
        }
    }
    daemon.stop().await?;
    Ok(())
}

fn client(ca: &[u8]) -> lab::Result<reqwest::Client> {
    // An error means that the lab has installed it already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(ca)?;
    Ok(reqwest::Client::builder().tls_certs_only([ca]).http1_only().build()?)
}

async fn warm_up(side: &Side, verb: Verb, callers: usize) -> lab::Result {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let side = side.clone();
        tasks.spawn(async move {
            for _ in 0..WARM_UP {
                side.call(verb).await?;
            }
            Ok::<_, lab::Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

// === impl Side ===

impl Side {
    async fn call(&self, verb: Verb) -> lab::Result {
        match (self, verb) {
            (Self::Direct(direct), verb) => direct.call(verb).await,
            (Self::Proxy(kms, _), Verb::Encrypt) => {
                let made = kms.v1().encrypt(&[7; 32]).await?;
                expect(!made.is_empty())
            }
            (Self::Proxy(kms, ciphertext), Verb::Decrypt) => {
                let plain = kms.v1().decrypt(ciphertext.as_bytes()).await?;
                expect(plain == [7; 32])
            }
        }
    }
}

// === impl Direct ===

impl Direct {
    async fn call(&self, verb: Verb) -> lab::Result {
        let (path, body, answer) = match verb {
            Verb::Encrypt => ("encrypt", format!(r#"{{"plaintext":"{}"}}"#, seven()), "vault:v1:"),
            Verb::Decrypt => {
                ("decrypt", format!(r#"{{"ciphertext":"{}"}}"#, self.ciphertext), &*seven())
            }
        };
        let url = format!("{}/v1/transit/{path}/{KEY}", self.address);
        let request = self.client.post(url).header("X-Vault-Token", &*self.token);
        let sent = request.header("X-Vault-Request", "true").body(body).send().await?;
        expect(sent.text().await?.contains(answer))
    }
}

/// A benchmark of wrong answers measures nothing.
fn expect(right: bool) -> lab::Result {
    if right { Ok(()) } else { Err(lab::Error::new("another answer than expected")) }
}

fn seven() -> String {
    STANDARD.encode([7; 32])
}

// === impl Measured ===

impl Measured {
    fn new() -> Self {
        let latencies = Histogram::new(3).expect("three digits are a valid precision");
        Self { latencies, busy: Duration::ZERO }
    }

    async fn add(
        &mut self,
        side: &Side,
        verb: Verb,
        callers: usize,
        slice: Duration,
    ) -> lab::Result {
        let begin = Instant::now();
        let end = begin + slice;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let side = side.clone();
            tasks.spawn(async move {
                let mut taken = Vec::new();
                while Instant::now() < end {
                    let start = Instant::now();
                    side.call(verb).await?;
                    taken.push(start.elapsed());
                }
                Ok::<_, lab::Error>(taken)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            for took in ended?? {
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.latencies.record(micros.max(1))?;
            }
        }
        self.busy += begin.elapsed();
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.busy.as_secs_f64()
    }

    fn millis(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }

    fn heading() -> String {
        format!(
            "{:8} {:>7} | {:>9} {:>9} {:>6} | {:>8} {:>8} {:>6} | {:>8} {:>8} {:>6}",
            "verb",
            "callers",
            "direct/s",
            "proxy/s",
            "ratio",
            "p50 ms",
            "proxy",
            "ratio",
            "p99 ms",
            "proxy",
            "ratio"
        )
    }

    fn row(verb: Verb, callers: usize, direct: &Self, proxy: &Self) -> String {
        let [d50, p50, d99, p99] =
            [direct.millis(0.5), proxy.millis(0.5), direct.millis(0.99), proxy.millis(0.99)];
        format!(
            "{:8} {callers:>7} | {:>9.0} {:>9.0} {:>6.2} | {d50:>8.2} {p50:>8.2} {:>6.2} | \
             {d99:>8.2} {p99:>8.2} {:>6.2}",
            format!("{verb:?}"),
            direct.rate(),
            proxy.rate(),
            proxy.rate() / direct.rate(),
            p50 / d50,
            p99 / d99,
        )
    }
}

// === impl Options ===

impl Options {
    fn from_arguments() -> lab::Result<Self> {
        let mut options = Self { seconds: 4, callers: vec![1, 4, 16, 64] };
        let bad = |why: String| lab::Error::new(why);
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| bad(format!("{word} needs a value")));
            match word.as_str() {
                // cargo passes it to every bench
                "--bench" => {}
                "--seconds" => options.seconds = value()?.parse()?,
                "--callers" => {
                    options.callers =
                        value()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                _ => return Err(bad(format!("{word}: write --seconds N or --callers 1,16"))),
            }
        }
        let callers_fit = options.callers.iter().all(|n| (1..=1024).contains(n));
        if !(1..=600).contains(&options.seconds) || !callers_fit {
            return Err(bad("--seconds takes 1 to 600, --callers 1 to 1024 each".into()));
        }
        Ok(options)
    }
}
