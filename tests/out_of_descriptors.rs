//! The accept loop when the process has no descriptor left. It is alone in its file because
//! the limit holds for the whole process.

use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use vault_kms_proxy::config::settings::{SocketAddress, SocketSettings};
use vault_kms_proxy::listener::accept::Acceptor;
use vault_kms_proxy::listener::peer::PeerPolicy;
use vault_kms_proxy::listener::unix;

#[tokio::test]
async fn a_connection_waits_until_there_is_a_descriptor_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = SocketSettings {
        address: SocketAddress::Path(dir.path().join("kms.sock")),
        mode: 0o600,
        owner: None,
        group: None,
        allowed_uids: None,
    };
    let socket = unix::bind(&settings).await.unwrap();
    let policy = PeerPolicy::new(&settings);
    let mut acceptor = Acceptor::new(socket, policy, CancellationToken::new());
    let _client = UnixStream::connect(dir.path().join("kms.sock")).await.unwrap();

    let before = getrlimit(Resource::Nofile);
    let lowest_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let none_left = u64::try_from(lowest_free).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(none_left), ..before }).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err(), "no descriptor is left");
    let waited = tokio::time::timeout(Duration::from_millis(300), acceptor.accept()).await;
    assert!(waited.is_err(), "it waits and does not end");

    setrlimit(Resource::Nofile, before).unwrap();
    let accepted = tokio::time::timeout(Duration::from_secs(10), acceptor.accept()).await;
    assert!(accepted.expect("in time").is_some());
}
