//! A host's addresses as this machine's C library finds them.
//!
//! `getaddrinfo` honours all that an operator may have set up (`/etc/hosts`,
//! `nsswitch.conf`, search domains, a local cache), but it blocks its thread, for half a
//! minute when DNS hangs. So each question has a thread of its own, outside the runtime,
//! whose end would wait for it, and a name has at most one: whoever asks while one is out
//! waits for the same answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{LazyLock, Mutex};

use tokio::sync::watch;

use super::{Found, Unresolved};

type Answer = Result<Vec<IpAddr>, Unresolved>;

/// The questions that are out, by host; of the whole process, so that a reload does not
/// add threads to those that hang.
static ASKED: LazyLock<Mutex<HashMap<String, watch::Receiver<Option<Answer>>>>> =
    LazyLock::new(Mutex::default);

/// The addresses of `host`. The C library does not tell their time to live.
pub(super) async fn addresses(host: &str) -> Result<Found<IpAddr>, Unresolved> {
    let mut answer = asked(host)?;
    let answer = match answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone(),
        Err(_) => None,
    };
    let records = answer.unwrap_or_else(|| Err(Unresolved::because("the lookup broke off")))?;
    Ok(Found { records, ttl: None })
}

fn asked(host: &str) -> Result<watch::Receiver<Option<Answer>>, Unresolved> {
    let mut asked = ASKED.lock().expect("no code panics while it holds this lock");
    if let Some(answer) = asked.get(host) {
        return Ok(answer.clone());
    }
    let (sender, answer) = watch::channel(None);
    let name = host.to_owned();
    let ask = move || {
        let found = ask(&name);
        ASKED.lock().expect("no code panics while it holds this lock").remove(&name);
        sender.send_replace(Some(found));
    };
    std::thread::Builder::new()
        .name("resolve".into())
        .spawn(ask)
        .map_err(|error| Unresolved::because(format!("no thread to ask with: {error}")))?;
    asked.insert(host.to_owned(), answer.clone());
    Ok(answer)
}

fn ask(host: &str) -> Answer {
    match (host, 0).to_socket_addrs() {
        Ok(found) => {
            let records: Vec<_> = found.map(|address| address.ip()).collect();
            if records.is_empty() {
                return Err(Unresolved::because("it has no address"));
            }
            Ok(records)
        }
        Err(error) => Err(Unresolved::because(words(&error))),
    }
}

/// `getaddrinfo`'s own words, without the standard library's before them.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("address information: ").map_or(text.clone(), |(_, words)| words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_stands_in_the_hosts_file_is_found() {
        let found = addresses("localhost").await.unwrap();
        assert!(found.records.iter().all(IpAddr::is_loopback), "{found:?}");
        assert_eq!(found.ttl, None);
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_has_the_c_librarys_words() {
        // Reserved for this (RFC 6761); a label over 63 bytes is not even sent.
        let error = addresses(&format!("{}.invalid", "x".repeat(64))).await.unwrap_err();
        assert!(!error.to_string().is_empty() && !error.to_string().contains("failed to"));
    }

    #[tokio::test]
    async fn while_a_question_is_out_nobody_asks_it_again() {
        let (sender, receiver) = watch::channel(None);
        ASKED.lock().unwrap().insert("out.test".into(), receiver);
        let waiting = tokio::spawn(async { addresses("out.test").await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let found = vec![IpAddr::from([10, 0, 0, 1])];
        sender.send_replace(Some(Ok(found.clone())));
        assert_eq!(waiting.await.unwrap().unwrap().records, found);
        ASKED.lock().unwrap().remove("out.test");
    }
}
