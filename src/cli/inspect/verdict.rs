//! Asks the running daemon what a kube-apiserver would ask it: to unwrap the data key.

use std::time::Duration;

use tonic::{Code, Request, Status};

use super::super::dial::dial;
use crate::config::settings::SocketAddress;
use crate::proto::v1beta1::key_management_service_client::KeyManagementServiceClient as V1Client;
use crate::proto::v2::key_management_service_client::KeyManagementServiceClient as V2Client;
use crate::proto::{v1beta1, v2};
use crate::secret::Plaintext;
use crate::stored::{Api, Body};

/// Whether the data key can be unwrapped, and who said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was unwrapped.
    Decrypts {
        /// The length of the data key, which is all that is kept of it.
        length: usize,
    },
    /// The daemon, or Vault, says no.
    Refused {
        /// The gRPC code.
        code: Code,
        /// What it said.
        message: String,
    },
    /// Nobody could be asked.
    NotAsked(String),
}

/// Asks the plugin that listens on `socket`.
pub(super) async fn ask(
    socket: &SocketAddress,
    api: Api,
    body: &Body<'_>,
    timeout: Duration,
) -> Verdict {
    let channel = match tokio::time::timeout(timeout, dial(socket)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return Verdict::NotAsked(format!(
                "{socket}: {error}; does the daemon run, and may this user connect?"
            ));
        }
        Err(_) => return Verdict::NotAsked(format!("{socket}: no connection within {timeout:?}")),
    };
    let answer = match api {
        Api::V1 => {
            let mut request = Request::new(v1beta1::DecryptRequest {
                version: "v1beta1".into(),
                cipher: body.ciphertext.to_vec(),
            });
            request.set_timeout(timeout);
            let answer = V1Client::new(channel).decrypt(request).await;
            answer.map(|answer| answer.into_inner().plain)
        }
        Api::V2 => {
            let annotations = body.annotations.iter();
            let mut request = Request::new(v2::DecryptRequest {
                ciphertext: body.ciphertext.to_vec(),
                uid: "inspect".into(),
                key_id: body.key_id.to_owned(),
                annotations: annotations.map(|(name, v)| (name.to_owned(), v.to_vec())).collect(),
            });
            request.set_timeout(timeout);
            let answer = V2Client::new(channel).decrypt(request).await;
            answer.map(|answer| answer.into_inner().plaintext)
        }
    };
    match answer.map(Plaintext::new) {
        Ok(data_key) => Verdict::Decrypts { length: data_key.len() },
        Err(status) => Verdict::of(&status),
    }
}

// === impl Verdict ===

impl Verdict {
    // The daemon's own codes for "not now"; what is none of them is an answer.
    fn of(status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::Unknown => Self::NotAsked(message),
            code => Self::Refused { code, message },
        }
    }

    pub(super) const fn is_good(&self) -> bool {
        matches!(self, Self::Decrypts { .. })
    }
}
