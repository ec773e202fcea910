use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::queue::OVERDUE;
use crate::clock::{Deadline, UnixSeconds};
use crate::cluster::Verb;
use crate::cluster::testing::{Reply, Scripted, Seen, rooted, soon};
use crate::config::settings::{ClusterName, KekName, KekSettings};
use crate::secret::Plaintext;
use crate::transit::{
    HttpTransitKey, KeyVersion, Refusal, TransitError, TransitKey as _, VaultCiphertext,
};

mod any;
mod faults;
mod proof;
mod waiting;

/// The newest version of the key that [`serve`] has.
const LATEST: u32 = 3;

const AUTHENTICATION_FAILED: &str = "cipher: message authentication failed";

fn key(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (HttpTransitKey, Arc<Scripted>) {
    let (cluster, scripted) = rooted(script);
    let kek = KekSettings {
        name: KekName::try_new("kube").unwrap(),
        transit_key: "kube".to_owned(),
        mount: "transit".to_owned(),
        namespace: None,
        clusters: vec![ClusterName::try_new("bao").unwrap()],
        replicas: Vec::new(),
        epoch: None,
        active_version: None,
    };
    (HttpTransitKey::new(cluster, &kek), scripted)
}

/// A seed that only this number has.
fn seed(number: usize) -> Plaintext {
    Plaintext::new(format!("the seed of thirty-two bytes {number:03}").into_bytes())
}

fn sealed(plaintext: &Plaintext, version: u32) -> VaultCiphertext {
    VaultCiphertext::parse(&seal(plaintext.expose(), version)).unwrap()
}

/// A ciphertext that this key did not make.
fn wrong(number: usize) -> VaultCiphertext {
    let mut bytes = vec![7; 12];
    bytes.extend(number.to_be_bytes());
    bytes.extend([9; 16]);
    VaultCiphertext::try_new(1, &STANDARD.encode(bytes)).unwrap()
}

#[allow(clippy::unnecessary_wraps)] // as it is asked for
fn version(number: u32) -> Option<KeyVersion> {
    Some(KeyVersion { number, created: UnixSeconds(1_715_803_200) })
}

/// Something that is decrypted by whoever knows how this is done.
fn seal(plaintext: &[u8], version: u32) -> String {
    let mut bytes = vec![7; 12];
    bytes.extend(plaintext.iter().map(|b| b ^ 0x55));
    bytes.extend([1; 16]);
    format!("vault:v{version}:{}", STANDARD.encode(bytes))
}

fn open(ciphertext: &str, latest: u32) -> Result<Vec<u8>, &'static str> {
    let ciphertext = VaultCiphertext::parse(ciphertext).ok_or("invalid ciphertext: no prefix")?;
    if ciphertext.version() > latest {
        return Err("invalid ciphertext: version is too new");
    }
    let bytes = STANDARD.decode(ciphertext.payload()).unwrap();
    let (rest, tag) = bytes.split_at(bytes.len() - 16);
    if tag != [1; 16] {
        return Err(AUTHENTICATION_FAILED);
    }
    Ok(rest[12..].iter().map(|b| b ^ 0x55).collect())
}

/// What Transit makes of one item.
fn one(verb: Verb, item: &Value, latest: u32) -> Value {
    match verb {
        Verb::Encrypt => {
            let plaintext = STANDARD.decode(item["plaintext"].as_str().unwrap()).unwrap();
            let version = item["key_version"].as_u64().map_or(latest, |v| v as u32);
            json!({ "ciphertext": seal(&plaintext, version), "key_version": version })
        }
        _ => match open(item["ciphertext"].as_str().unwrap(), latest) {
            Ok(plaintext) => json!({ "plaintext": STANDARD.encode(plaintext) }),
            Err(error) => json!({ "error": error }),
        },
    }
}

fn items(seen: &Seen) -> Vec<Value> {
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    body["batch_input"].as_array().cloned().unwrap_or_default()
}

fn is_batch(seen: &Seen) -> bool {
    seen.body.starts_with(r#"{"batch_input""#)
}

/// A Transit engine with versions up to `latest`.
fn serve(seen: &Seen, latest: u32) -> Reply {
    if !is_batch(seen) {
        let data = one(seen.verb, &serde_json::from_str(&seen.body).unwrap(), latest);
        return match data["error"].as_str() {
            Some(error) => Reply::Http(400, json!({ "errors": [error] }).to_string()),
            None => Reply::Http(200, json!({ "data": data }).to_string()),
        };
    }
    batch(seen, |item| one(seen.verb, item, latest))
}

/// The answer to a batch whose items are answered so.
fn batch(seen: &Seen, each: impl Fn(&Value) -> Value) -> Reply {
    let result = |item: &Value| {
        let mut result = each(item);
        result["reference"] = item["reference"].clone();
        result
    };
    results(items(seen).iter().map(result).collect())
}

fn results(results: Vec<Value>) -> Reply {
    let has_error = results.iter().any(|result| !result["error"].is_null());
    let body = json!({ "data": { "batch_results": results } });
    Reply::Http(if has_error { 400 } else { 200 }, body.to_string())
}

/// How many items each request of this verb had; 0 for a single one.
fn sizes(scripted: &Scripted, verb: Verb) -> Vec<usize> {
    scripted.seen().iter().filter(|seen| seen.verb == verb).map(|seen| items(seen).len()).collect()
}

/// Decrypts all of them at once.
async fn decrypt_all(
    key: &HttpTransitKey,
    ciphertexts: &[VaultCiphertext],
) -> Vec<Result<Plaintext, TransitError>> {
    join_all(ciphertexts.iter().map(|ciphertext| key.decrypt(ciphertext, soon()))).await
}

fn ciphertexts(count: usize) -> Vec<VaultCiphertext> {
    (0..count).map(|n| sealed(&seed(n), 1)).collect()
}

/// Each has its own.
fn assert_own(answers: &[Result<Plaintext, TransitError>]) {
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(*answer.as_ref().unwrap(), seed(n), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_never_waits_and_sends_single_requests() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    for n in 0..5 {
        let wrapped = key.encrypt(&seed(n), version(2), soon()).await.unwrap();
        assert_eq!(key.decrypt(&wrapped.ciphertext, soon()).await.unwrap(), seed(n));
    }
    assert_eq!(sizes(&scripted, Verb::Encrypt), [0; 5]);
    assert_eq!(sizes(&scripted, Verb::Decrypt), [0; 5]);
}

#[tokio::test(start_paused = true)]
async fn sixty_four_at_once_are_two_requests() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    assert_own(&decrypt_all(&key, &ciphertexts(64)).await);
    assert_eq!(sizes(&scripted, Verb::Decrypt), [32, 32]);
    // The pause between two storms leaves nothing behind.
    assert_own(&decrypt_all(&key, &ciphertexts(3)).await);
    assert_eq!(sizes(&scripted, Verb::Decrypt), [32, 32, 3]);
}

#[tokio::test(start_paused = true)]
async fn encrypts_and_decrypts_do_not_wait_for_each_other() {
    let (key, scripted) = key(|seen| match seen.verb {
        Verb::Encrypt => Reply::Never,
        _ => serve(seen, LATEST),
    });
    let key = Arc::new(key);
    for n in 0..4 {
        let key = Arc::clone(&key);
        tokio::spawn(async move { key.encrypt(&seed(n), version(2), soon()).await });
    }
    tokio::task::yield_now().await;
    assert_own(&decrypt_all(&key, &ciphertexts(8)).await);
    assert_eq!(sizes(&scripted, Verb::Encrypt), [4]);
}

#[tokio::test(start_paused = true)]
async fn each_encrypt_of_a_batch_has_its_own_pin() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    let encrypt = |n: usize| {
        let (key, pin) = (&key, [version(1), version(2), None][n % 3]);
        async move { key.encrypt(&seed(n), pin, soon()).await }
    };
    let made = join_all((0..30).map(encrypt)).await;
    for (n, made) in made.into_iter().enumerate() {
        let made = made.unwrap().ciphertext;
        assert_eq!(made.version(), [1, 2, LATEST][n % 3], "{n}");
        assert_eq!(open(&made.to_vault(), LATEST).unwrap(), seed(n).expose(), "{n}");
    }
    assert_eq!(sizes(&scripted, Verb::Encrypt), [30]);
}

#[tokio::test(start_paused = true)]
async fn results_in_any_order_go_to_those_who_asked() {
    let (key, scripted) = key(|seen| {
        if !is_batch(seen) {
            return serve(seen, LATEST);
        }
        let mut all: Vec<_> = items(seen)
            .iter()
            .map(|item| {
                let mut result = one(seen.verb, item, LATEST);
                result["reference"] = item["reference"].clone();
                result
            })
            .collect();
        all.reverse();
        all.rotate_left(3);
        results(all)
    });
    assert_own(&decrypt_all(&key, &ciphertexts(64)).await);
    let made = join_all((0..64).map(|n| {
        let key = &key;
        async move { key.encrypt(&seed(n), version(2), soon()).await.unwrap() }
    }));
    for (n, made) in made.await.into_iter().enumerate() {
        assert_eq!(open(&made.ciphertext.to_vault(), LATEST).unwrap(), seed(n).expose(), "{n}");
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [32, 32, 32, 32], "the last two are the proof");
}

#[tokio::test(start_paused = true)]
async fn a_batch_stays_below_what_a_server_takes() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    assert_own(&decrypt_all(&key, &ciphertexts(400)).await);
    assert_eq!(sizes(&scripted, Verb::Decrypt), [190, 190, 20]);
    let bound: Vec<_> = ciphertexts(200).into_iter().map(|c| c.bound_to(b"object")).collect();
    assert_own(&decrypt_all(&key, &bound).await);
    assert_eq!(sizes(&scripted, Verb::Decrypt)[3..], [100, 100]);
    // Large ones: 100 KiB of base64 each.
    let large = |_| Plaintext::new(vec![5; 75 * 1024]);
    let made = join_all((0..6).map(large).map(|plaintext| {
        let key = &key;
        async move { key.encrypt(&plaintext, version(1), soon()).await.map(|_| ()) }
    }));
    assert!(made.await.iter().all(Result::is_ok));
    assert_eq!(sizes(&scripted, Verb::Encrypt), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn identical_decrypts_are_one_item() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    let mut asked = ciphertexts(2);
    asked.extend((0..60).map(|n| sealed(&seed(2 + n % 3), 1)));
    // Other associated data make it another item.
    asked.push(sealed(&seed(2), 1).bound_to(b"object"));
    let answers = decrypt_all(&key, &asked).await;
    for (n, answer) in answers[2..62].iter().enumerate() {
        assert_eq!(*answer.as_ref().unwrap(), seed(2 + n % 3));
    }
    assert_eq!(*answers[62].as_ref().unwrap(), seed(2));
    assert_eq!(sizes(&scripted, Verb::Decrypt), [6]);
}
