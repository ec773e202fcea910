//! A highly available KMS plugin for kube-apiserver that keeps its keys in Vault or OpenBao.
//!
//! # The life of a call
//!
//! `listener` accepts kube-apiserver's connection on the unix socket, checks who the peer
//! is and makes its `:authority` one that `h2` accepts. `kms` answers the call: its tower
//! stack bounds it in number and time, its services read the message. `keyring` finds the
//! KEK that encrypts or the one that a ciphertext names. `transit` speaks the verb and
//! knows what an answer means. `cluster` finds an address that can answer, with a token.
//!
//! Data goes one way: a module uses only what stands to its right in
//! `listener -> kms -> keyring -> transit -> cluster`, and the ground floor (`config`,
//! `telemetry`, `clock`, `secret`, `task`, `blocking`). `daemon` and `cli` put them together.

pub mod admin;
#[doc(hidden)]
pub mod benched;
pub(crate) mod blocking;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod etcd;
pub mod keyring;
pub mod kms;
pub mod listener;
pub mod secret;
pub mod stored;
pub mod task;
pub mod telemetry;
pub mod transit;

/// The KMS plugin API on the wire, and the part of etcd's that we use, generated from `proto/`.
pub mod proto {
    /// `KeyManagementService` of KMS v1.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)] // generated
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }
    /// `KeyManagementService` of KMS v2.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)] // generated
    pub mod v2 {
        tonic::include_proto!("v2");
    }
    /// What is asked of etcd.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)] // generated
    pub mod etcd {
        pub mod etcdserverpb {
            tonic::include_proto!("etcdserverpb");
        }
        pub mod mvccpb {
            tonic::include_proto!("mvccpb");
        }
    }
}
