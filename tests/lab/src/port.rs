//! Free ports on loopback.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::{Error, Result};

// Below the range from which Linux picks the ports of outgoing connections (32768 and
// up), so that a node that is down keeps its port until it is started again.
const FIRST: u16 = 16_000;
const COUNT: u16 = 16_000;

static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    let chance = RandomState::new().build_hasher().finish();
    AtomicU16::new((chance % u64::from(COUNT)) as u16)
});

/// A port of 127.0.0.1 on which nobody listens now. One process never gets one twice
/// before it has gone through all of them; two processes seldom get the same, and callers
/// try again with another when a server finds it taken.
pub fn free_port() -> Result<u16> {
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new("no free port on 127.0.0.1 between 16000 and 31999"))
}
