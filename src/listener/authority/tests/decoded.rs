//! What a real `h2` server understands behind the normaliser.

use std::time::Duration;

use http::uri::Authority;
use proptest::prelude::*;

use super::super::Normalised;
use super::Pieces;
use super::client::{Request, traffic, write};

/// A request as a service would see it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    authority: Vec<u8>,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
}

/// What should be seen of a request, said in other words than the code says it.
fn expected(request: &Request) -> Seen {
    let authority = if Authority::from_maybe_shared(request.authority.clone()).is_ok() {
        request.authority.clone()
    } else {
        let keep = |b: &u8| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.');
        request.authority.iter().map(|b| if keep(b) { *b } else { b'-' }).collect()
    };
    let mut headers: Vec<_> =
        request.headers.iter().map(|(n, v)| ((*n).to_owned(), v.clone().into_bytes())).collect();
    headers.sort_by(|a, b| a.0.cmp(&b.0)); // equal names keep their order
    Seen { authority, path: "/v2.KeyManagementService/Status".to_owned(), headers }
}

fn seen(request: &http::Request<h2::RecvStream>) -> Seen {
    let authority = request.uri().authority().map(|a| a.as_str().as_bytes().to_vec());
    let mut headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec()))
        .collect();
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    Seen {
        authority: authority.unwrap_or_default(),
        path: request.uri().path().to_owned(),
        headers,
    }
}

/// The requests that an `h2` server accepts; fewer when one is refused.
async fn serve(input: Vec<u8>, sizes: &[usize], count: usize) -> Vec<Seen> {
    let mut pieces = Pieces::new(input, sizes);
    pieces.stay_open = true; // at the end of its input h2 forgets what it has not handed out
    let patience = Duration::from_secs(1); // of paused time
    let mut server = h2::server::handshake(Normalised::new(pieces)).await.unwrap();
    let mut requests = Vec::new();
    while requests.len() < count {
        match tokio::time::timeout(patience, server.accept()).await {
            Ok(Some(Ok((request, _respond)))) => requests.push(seen(&request)),
            Ok(Some(Err(_)) | None) | Err(_) => break,
        }
    }
    requests
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_server_sees_what_the_client_sent_but_for_the_authority(
        traffic in traffic(),
        sizes in proptest::collection::vec(1_usize..600, 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let expected: Vec<_> = traffic.iter().map(expected).collect();
        let seen = runtime.block_on(serve(write(&traffic), &sizes, traffic.len()));
        prop_assert_eq!(seen, expected);
    }
}
