//! The least that a Status can cost: a bare tonic server that answers the same message from
//! a process of its own, as the daemon is one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lab::proto::v2::key_management_service_server::{
    KeyManagementService, KeyManagementServiceServer,
};
use lab::proto::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use lab::{Context, Kms, Result, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tonic::{Request, Response, Status};

use crate::measure::Measured;

/// The argument that makes this program the server.
pub(crate) const SERVE: &str = "--serve-echo";

/// Calls of one side before the other has its turn: few, so that noise falls on both.
const TURN: usize = 50;

/// A running server. It ends with its standard input, so with this process.
pub(crate) struct Echo {
    pub(crate) kms: Kms,
    _process: Child,
    _folder: tempfile::TempDir,
}

struct Service(StatusResponse);

/// Asks both for their Status in turn, one caller each, for `seconds` a side.
pub(crate) async fn take_turns(sides: &[Kms], seconds: f64) -> Result<Vec<Measured>> {
    let mut all: Vec<_> = sides.iter().map(|_| Measured::new()).collect();
    let wanted = Duration::from_secs_f64(seconds);
    let mut is_warm = false;
    while all.iter().any(|side| side.busy < wanted) {
        for (kms, measured) in sides.iter().zip(&mut all) {
            let begin = tokio::time::Instant::now();
            for _ in 0..TURN {
                let start = tokio::time::Instant::now();
                kms.v2().status().await?;
                if is_warm {
                    measured.record(start.elapsed())?;
                }
            }
            measured.busy += begin.elapsed();
        }
        is_warm = true;
    }
    Ok(all)
}

/// Serves until standard input ends.
pub(crate) async fn serve(socket: PathBuf) -> Result {
    // As long as what the daemon answers.
    let answer = StatusResponse {
        version: "v2".to_owned(),
        healthz: "ok".to_owned(),
        key_id: "kube:v1:0123456789abcdef".to_owned(),
    };
    let listener = tokio_stream::wrappers::UnixListenerStream::new(UnixListener::bind(socket)?);
    let ended = async {
        let _ = tokio::io::stdin().read(&mut [0]).await;
    };
    let server = tonic::transport::Server::builder();
    let mut server = server.layer(tower::layer::util::Identity::new());
    let router = server.add_service(KeyManagementServiceServer::new(Service(answer)));
    Ok(router.serve_with_incoming_shutdown(listener, ended).await?)
}

// === impl Echo ===

impl Echo {
    /// Starts one.
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("echo.sock");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).arg(&socket).stdin(Stdio::piped()).kill_on_drop(true);
        let process = command.spawn().context("cannot start the echo server")?;
        let kms = answering(&socket).await?;
        Ok(Self { kms, _process: process, _folder: folder })
    }
}

async fn answering(socket: &Path) -> Result<Kms> {
    let kms = Kms::new(socket);
    eventually("the echo server answers", Duration::from_secs(10), || async {
        kms.v2().status().await?;
        Ok(Some(()))
    })
    .await?;
    Ok(kms)
}

// === impl Service ===

#[tonic::async_trait]
impl KeyManagementService for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn decrypt(
        &self,
        _: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn encrypt(
        &self,
        _: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}
