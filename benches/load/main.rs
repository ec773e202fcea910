//! The same load on several sides, in one run: straight to OpenBao over TLS, through the
//! daemon by KMS v1 and by KMS v2, and through another plugin if there is one.
//!
//! `cargo bench --bench load` starts three OpenBao nodes with TLS and one daemon, prints its
//! tables, and in the end one table of what the project wants to reach. Only ratios mean
//! anything: machines are noisy, and OpenBao shares this one's cores with all clients and the
//! daemon. So the sides take turns in short slices, that noise falls on all of them. OpenBao
//! keeps no audit log here, which favours the direct side.
//!
//! | part | what |
//! |---|---|
//! | `load` | encrypt and decrypt by 1 to 1024 callers that never pause: calls a second, p50, p99 |
//! | `storm` | every object decrypted once by KMS v1, by 8 listers one call after the other |
//! | `status` | v2 Status and a bare tonic server's answer of the same message |
//! | `authority` | a decrypt with the `:authority` normaliser and without, in this process |
//! | `cold` | the first calls of fresh daemons and of fresh clients; from exec to an answer |
//! | `memory` | what a daemon holds (`VmRSS`) idle and under 256 callers; the binary's size |
//!
//! *direct* is what a program without the daemon does: a request for each call at the active
//! node, over HTTP/1.1 connections with TLS that stay open. No two callers ask for the same
//! object. Each answer is compared with what it must be, and a wrong one ends the bench. A
//! call that failed, or took longer than kube-apiserver's 3 s, is counted.
//!
//! The daemon that is measured is the one that is shipped: built by `cargo build --release`
//! when the bench starts, since what cargo builds for benches has no link-time optimisation.
//!
//! The last columns of a row say what a call cost in processor time, in microseconds of this
//! process, of the daemon and of all OpenBao nodes; how full the cores were of it; and how many
//! calls a request of the daemon to OpenBao carried.
//!
//! Options, after `--`:
//!
//! | option | means |
//! |---|---|
//! | `--quick` | about a minute in all; the options below go over it |
//! | `--seconds N` | for each side of each row (default 4; 0.5 to 600) |
//! | `--callers 1,4,16` | the rows (default 1,4,16,64,256,1024; each 1 to 1024) |
//! | `--verbs decrypt` | only this verb in the rows (default decrypt,encrypt) |
//! | `--storm N` | objects of the storm (default 10000; 1 to 100000) |
//! | `--listers N` | of the storm (default 8; 1 to 256) |
//! | `--only load,storm` | only these parts |
//! | `--daemon FILE` | this daemon instead of one that is built |
//! | `--baseline SOCKET` | one more side: another plugin, or another version of the daemon |
//!
//! With `--baseline` the bench prints where the cluster is and how to log in, then waits five
//! minutes for the socket to answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Cluster, Config, Daemon, Kms, Result, eventually};
use serde_json::json;

mod authority;
mod echo;
mod fresh;
mod measure;
mod options;
mod report;
mod side;
mod spent;
mod storm;

use options::{Options, Part};
use report::Goals;
use side::{KEY, Side, Sides, Verb};
use spent::Meter;

/// What the daemon has, without its wiping: callers and the direct side's client are to cost as
/// little as they can.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Objects of each side in the rows: more than callers.
const OBJECTS: usize = 2_048;

/// Callers whose memory is wanted.
const MEMORY_CALLERS: usize = 256;

const MIB: f64 = 1_048_576.0;

/// On one thread: callers on two cost half as much again, on cores that OpenBao and the daemon
/// need.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == echo::SERVE) {
        return echo::serve(arguments.next().unwrap_or_default().into()).await;
    }
    let options = Options::from_arguments()?;
    allow_many_files();
    let bench = Bench::start(options).await?;
    let mut goals = Goals::default();
    if bench.options.wants(Part::Load) {
        bench.load(&mut goals).await?;
    }
    if bench.options.wants(Part::Storm) {
        bench.storm(&mut goals).await?;
    }
    if bench.options.wants(Part::Status) {
        bench.status(&mut goals).await?;
    }
    if bench.options.wants(Part::Authority) {
        bench.authority(&mut goals).await?;
    }
    if bench.options.wants(Part::Cold) {
        bench.cold(&mut goals).await?;
    }
    if bench.options.wants(Part::Memory) {
        bench.memory(&mut goals).await?;
    }
    goals.print();
    println!("\nThe machine's load average is now {}.", load_average());
    bench.daemon.stop().await?;
    Ok(())
}

/// What all parts share.
struct Bench {
    options: Options,
    binary: PathBuf,
    /// Before the cluster, so that it ends first.
    daemon: Daemon,
    config: Config,
    sides: Sides,
    direct: Side,
    proxies: [Side; 2],
    baseline: Option<(Kms, Vec<Side>)>,
    cluster: Cluster,
}

// === impl Bench ===

impl Bench {
    async fn start(options: Options) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!("{cores} cores, load average {}", load_average());
        let (binary, built) = fresh::shipped(options.daemon.clone()).await?;
        println!("Daemon: {} ({built})", binary.display());
        let cluster = Cluster::builder().audit(false).start().await?;
        cluster.create_keys(&[KEY]).await?;
        // The lab's own pace is for tests; what is shipped reads a key every 30 s.
        let config = cluster.config(&[KEY]).await?.without("rotation");
        let daemon = Daemon::start(&binary, &config).await?;
        daemon.wait_ready(Duration::from_secs(15)).await?;
        let sides = Sides::prepare(&cluster, OBJECTS.max(options.storm)).await?;
        let direct = sides.direct()?;
        let proxies = [sides.v1(daemon.kms()), sides.v2(daemon.kms().fresh()).await?];
        let baseline = match &options.baseline {
            Some(socket) => Some(baseline(&cluster, socket, direct.len()).await?),
            None => None,
        };
        Ok(Self { options, binary, daemon, config, sides, direct, proxies, baseline, cluster })
    }

    /// All sides, the direct one first.
    fn all(&self) -> Vec<Side> {
        let others = self.baseline.iter().flat_map(|(_, sides)| sides);
        std::iter::once(&self.direct).chain(&self.proxies).chain(others).cloned().collect()
    }

    async fn load(&self, goals: &mut Goals) -> Result {
        let sides = self.all();
        let meter = Meter { daemon: &self.daemon, cluster: &self.cluster };
        report::heading();
        for &verb in &self.options.verbs {
            for &callers in &self.options.callers {
                let seconds = self.options.seconds;
                let all = measure::take_turns(&sides, verb, callers, seconds, &meter).await?;
                report::rows(verb, callers, &sides, &all);
                if verb == Verb::Decrypt {
                    goals.of_row(callers, &sides, &all);
                }
            }
        }
        Ok(())
    }

    async fn storm(&self, goals: &mut Goals) -> Result {
        let (objects, listers) = (self.options.storm, self.options.listers);
        let mut sides = self.all();
        sides.retain(|side| side.is_direct() || side.is_v1());
        let all = storm::decrypt_all(&sides, objects, listers).await?;
        report::storm(objects, listers, &sides, &all);
        let ratio = all[1].wall.as_secs_f64() / all[0].wall.as_secs_f64();
        let what = format!("storm of {objects} objects, proxy v1 / direct");
        goals.at_most(&what, ratio, 0.6, "");
        Ok(())
    }

    async fn status(&self, goals: &mut Goals) -> Result {
        let echo = echo::Echo::start().await?;
        let mut sides = vec![("echo", echo.kms.clone()), ("proxy", self.daemon.kms())];
        if let Some((kms, both)) = &self.baseline {
            sides.extend(both.iter().find(|side| !side.is_v1()).map(|_| ("base", kms.clone())));
        }
        let callers: Vec<_> = sides.iter().map(|(_, kms)| kms.clone()).collect();
        let all = echo::take_turns(&callers, self.options.seconds).await?;
        println!("\nStatus by one caller, beside a bare tonic server");
        for ((name, _), one) in sides.iter().zip(&all) {
            let (p50, p99) = (one.millis(0.5), one.millis(0.99));
            println!("{name:24} | p50 {p50:>7.3} ms | p99 {p99:>7.3} ms");
        }
        let ratio = all[1].millis(0.5) / all[0].millis(0.5);
        goals.at_most("Status p50, proxy / bare tonic server", ratio, 1.5, "");
        Ok(())
    }

    async fn authority(&self, goals: &mut Goals) -> Result {
        let seconds = self.options.seconds * 2.0;
        let [without, with] = authority::take_turns(&self.sides, &self.config, seconds).await?;
        println!(
            "\nDecrypt by one caller, in this process, on a bare socket and on the listener's"
        );
        for (name, one) in [("without normaliser", &without), ("with normaliser", &with)] {
            let (p50, p99) = (one.millis(0.5), one.millis(0.99));
            println!("{name:24} | p50 {p50:>7.3} ms | p99 {p99:>7.3} ms");
        }
        let ratio = with.millis(0.5) / without.millis(0.5);
        goals.at_most("decrypt p50, with the normaliser / without", ratio, 1.02, "");
        Ok(())
    }

    async fn cold(&self, goals: &mut Goals) -> Result {
        let times = self.options.starts;
        println!("\nThe first calls of {times} fresh daemons, and of fresh clients");
        for callers in [1, 64] {
            let (binary, config) = (&self.binary, &self.config);
            report::cold(&fresh::cold(binary, config, &self.sides, callers, times).await?);
        }
        let starts = fresh::starts(&self.binary, &self.config, times).await?;
        let median = report::millis(starts[starts.len() / 2]);
        let (least, most) = (report::millis(starts[0]), report::millis(starts[starts.len() - 1]));
        println!(
            "From exec to the socket's answer: {least:.0} to {most:.0} ms, median {median:.0}"
        );
        goals.at_most("from exec to the socket's answer", median, 50.0, " ms");
        Ok(())
    }

    async fn memory(&self, goals: &mut Goals) -> Result {
        let (binary, config, sides) = (&self.binary, &self.config, &self.sides);
        let seconds = self.options.seconds;
        let held = fresh::memory(binary, config, sides, MEMORY_CALLERS, seconds).await?;
        let (size, is_stripped) = fresh::size(binary)?;
        let [idle, loaded] = [held.idle_kib, held.loaded_kib].map(|kib| kib as f64 / 1_024.0);
        let size = size as f64 / MIB;
        let symbols = if is_stripped { "stripped" } else { "not stripped" };
        println!(
            "\nMemory: {idle:.1} MiB idle, {loaded:.1} MiB under {MEMORY_CALLERS} callers; the \
             binary has {size:.1} MiB ({symbols})"
        );
        goals.at_most("resident memory, idle", idle, 20.0, " MiB");
        goals.at_most("resident memory, 256 callers", loaded, 48.0, " MiB");
        goals.at_most(&format!("the binary, {symbols}"), size, 16.0, " MiB");
        Ok(())
    }
}

/// Says what another plugin needs, and waits for it.
async fn baseline(cluster: &Cluster, socket: &Path, objects: usize) -> Result<(Kms, Vec<Side>)> {
    let admin = cluster.admin();
    let token = admin.create_token(json!({ "policies": ["direct"] })).await?;
    println!("\nThe baseline at {} may use the key {KEY} in transit:", socket.display());
    println!("  export VAULT_ADDR={}", cluster.leader().await?.address());
    println!("  export VAULT_CACERT={}", cluster.ca_file().display());
    println!("  export VAULT_TOKEN={token}");
    println!("Waiting for it to answer ...");
    let kms = Kms::new(socket);
    let sides = eventually("the baseline answers", Duration::from_secs(300), || async {
        let asked = kms.fresh();
        Side::others(&asked, [1, 1]).await?;
        Ok(Some(asked))
    });
    let kms = sides.await?;
    let sides = Side::others(&kms, [objects, OBJECTS]).await?;
    Ok((kms, sides))
}

/// 1024 callers have as many connections.
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where this is refused, rows with many callers say so themselves.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
