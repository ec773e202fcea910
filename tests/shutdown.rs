//! SIGTERM and SIGINT: nobody new is let in, whoever is in may finish, and the exit code
//! says that all is well.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use lab::{Config, Daemon, DevNode, FaultProxy, eventually};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Status};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
const SLOW: Duration = Duration::from_millis(600);

type CallInFlight = JoinHandle<Result<Vec<u8>, Status>>;

/// Vault, a way to it that can be made slow, and how to reach it through that.
async fn vault() -> lab::Result<(DevNode, FaultProxy, Config)> {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let proxy = FaultProxy::start(bao.authority()).await?;
    let config = bao.config(&["kube"]).await?.addresses(&[proxy.https()]);
    Ok((bao, proxy, config))
}

/// An Encrypt that the daemon has taken and not yet answered.
async fn call_in_flight(daemon: &Daemon, deadline: Duration) -> lab::Result<CallInFlight> {
    let kms = daemon.kms().timeout(deadline);
    let call = tokio::spawn(async move { kms.v1().encrypt(&[7; 32]).await });
    eventually("the call is in flight", PATIENCE, || async {
        let calls = daemon.metric("vault_kms_proxy_calls_in_flight", "").await?;
        Ok((calls == 1.0).then_some(()))
    })
    .await?;
    Ok(call)
}

#[tokio::test]
async fn a_call_in_flight_finishes_and_nobody_new_is_let_in() -> lab::Result {
    let (_bao, proxy, config) = vault().await?;
    for signal in ["SIGTERM", "SIGINT"] {
        proxy.heal().await?;
        let daemon = Daemon::start(DAEMON, &config).await?;
        daemon.wait_ready(PATIENCE).await?;
        // It stays open without a call, as an apiserver's connection mostly is.
        let idle = daemon.kms();
        idle.v1().version().await?;

        proxy.delay(SLOW);
        let call = call_in_flight(&daemon, PATIENCE).await?;
        let told = Instant::now();
        if signal == "SIGTERM" {
            daemon.terminate()?
        } else {
            daemon.interrupt()?
        }

        let socket = daemon.socket().to_owned();
        eventually("the socket file is gone", PATIENCE, || async {
            Ok((!socket.exists()).then_some(()))
        })
        .await?;
        assert!(!call.is_finished(), "the socket went after the call only");
        assert!(UnixStream::connect(&socket).is_err(), "somebody new was let in");
        assert!(daemon.kms().v1().version().await.is_err());

        assert!(call.await??.starts_with(b"kube:v1:"), "{signal}: the call was cut");
        let code = daemon.wait(PATIENCE).await?;
        println!("{signal}: the call finished, exit code {code} after {:.1?}", told.elapsed());
        assert_eq!(code, 0, "{}", daemon.log());
        assert!(told.elapsed() < Duration::from_secs(5), "an idle connection held it up");
        assert!(daemon.log().contains(&format!("signal={signal}")), "{}", daemon.log());

        // The lock is what keeps a second daemon from the socket: its file must stay.
        let names = std::fs::read_dir(daemon.folder())?;
        let names: Vec<_> =
            names.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        assert!(names.iter().any(|name| name.to_string_lossy().ends_with(".lock")), "{names:?}");
        assert!(!names.iter().any(|name| name == "kms.sock"), "{names:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_after_the_grace() -> lab::Result {
    let (_bao, proxy, config) = vault().await?;
    let daemon = Daemon::start(DAEMON, config.with("shutdownGrace", "1s")).await?;
    daemon.wait_ready(PATIENCE).await?;
    proxy.blackhole();
    let call = call_in_flight(&daemon, Duration::from_secs(60)).await?;

    let told = Instant::now();
    daemon.terminate()?;
    let code = daemon.wait(PATIENCE).await?;
    let took = told.elapsed();
    println!("a call that does not end: exit code {code} after {took:.1?}");
    assert_eq!(code, 0, "{}", daemon.log());
    assert!(took >= Duration::from_secs(1), "it did not wait for the grace");
    // The call itself has a minute.
    assert!(took < Duration::from_secs(20), "it waited for more than the grace");
    assert!(daemon.log().contains("Calls were still in flight after shutdownGrace"));
    let cut = call.await?.unwrap_err();
    assert_ne!(cut.code(), Code::Ok);
    assert!(!daemon.socket().exists());
    Ok(())
}

#[tokio::test]
async fn a_daemon_that_waits_for_vault_stops_at_once() -> lab::Result {
    let (_bao, proxy, config) = vault().await?;
    proxy.blackhole();
    let daemon = Daemon::start(DAEMON, &config).await?;
    let told = Instant::now();
    assert_eq!(daemon.stop().await?, 0);
    // Half of shutdownGrace, which it would use up if it waited.
    assert!(told.elapsed() < Duration::from_secs(5), "it took {:?}", told.elapsed());
    Ok(())
}
