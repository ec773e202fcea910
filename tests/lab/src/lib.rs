//! The lab: real OpenBao clusters, faults between them and the daemon, and models of
//! kube-apiserver, for the tests, the benches and the demo.
//!
//! | what | where |
//! |---|---|
//! | a real server: one in memory, or a raft cluster with TLS | [`DevNode`], [`Cluster`], [`Node`] |
//! | its API: keys, policies, tokens, roles | [`Admin`], [`policy_for`] |
//! | a real etcd | [`Etcd`] |
//! | certificates, right and wrong | [`Authority`] |
//! | faults on the way | [`FaultProxy`] |
//! | signed tokens, and a reviewer of those of Kubernetes | [`TokenIssuer`], [`FakeTokenReview`] (a fake) |
//! | names, and what becomes of them | [`Dns`] |
//! | answers that no real server can be made to give | [`FakeVault`] (a fake, and named so) |
//! | the daemon under test | [`Daemon`], [`Config`] |
//! | what systemd does for a service with a socket | [`Systemd`] |
//! | a client on its socket | [`Kms`] |
//! | callers that never pause | [`Callers`] |
//! | faults under load, and what they cost | [`chaos`] |
//! | reloads without a pause | [`reloads`] |
//! | moves to another key, version, Vault, API or plugin | [`moves`], [`OtherPlugin`] (a fake) |
//! | kube-apiserver's own rules and storage formats | [`apiserver`] |
//! | a receiver of traces | [`otlp`] |
//! | waiting with a deadline | [`eventually`] |
//!
//! Everything listens on 127.0.0.1, lives in a temporary folder, and ends with its owner,
//! or with the process when that is killed.

mod admin;
pub mod apiserver;
mod callers;
pub mod chaos;
mod cluster;
mod config;
mod daemon;
mod dev;
mod dns;
mod error;
mod etcd;
mod fake;
mod fault;
mod http_server;
pub mod install;
pub mod kms;
pub mod moves;
mod node;
mod other_plugin;
pub mod otlp;
mod port;
mod process;
pub mod reloads;
mod signed_token;
mod systemd;
mod tls;
mod token_review;
mod wait;

pub use self::admin::{Admin, AppRole, KeyInfo, Reply, policy_for, policy_for_mount};
pub use self::callers::{Callers, Failure, Seen, Timed};
pub use self::cluster::{Cluster, ClusterBuilder};
pub use self::config::Config;
pub use self::daemon::{Daemon, DaemonBuilder, Footprint, REFUSED, RELOADED, sum_metric};
pub use self::dev::DevNode;
pub use self::dns::{Dns, DnsMood, SrvTarget};
pub use self::error::{Context, Error, Result};
pub use self::etcd::{Etcd, EtcdClient, StoredValue};
pub use self::fake::{Answer, FakeVault, Received};
pub use self::fault::{FaultProxy, Flow, Gate};
pub use self::kms::Kms;
pub use self::node::{Audited, Node};
pub use self::other_plugin::OtherPlugin;
pub use self::port::free_port;
pub use self::signed_token::TokenIssuer;
pub use self::systemd::Systemd;
pub use self::tls::{Authority, Identity, IdentityFiles, Validity};
pub use self::token_review::FakeTokenReview;
pub use self::wait::eventually;

/// The KMS protocol, generated from the project's proto files, and etcd's.
pub mod proto {
    /// KMS v1.
    #[allow(missing_docs, unreachable_pub)]
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }

    /// KMS v2.
    #[allow(missing_docs, unreachable_pub)]
    pub mod v2 {
        tonic::include_proto!("v2");
    }

    /// What a kube-apiserver asks of etcd.
    #[allow(missing_docs, unreachable_pub)]
    pub mod etcd {
        tonic::include_proto!("etcdserverpb");
    }
}
