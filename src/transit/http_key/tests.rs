use super::*;
use crate::cluster::testing::{self, POLICY_403, ROOT, Reply, Scripted, Seen, ok, rooted, soon};
use crate::config::settings::KekName;
use crate::transit::Refusal;

fn kek(namespace: Option<&str>) -> KekSettings {
    KekSettings {
        name: KekName::try_new("kube-2026").unwrap(),
        transit_key: "kube".to_owned(),
        mount: "team a/transit".to_owned(),
        namespace: namespace.map(str::to_owned),
        clusters: vec![ClusterName::try_new("bao").unwrap()],
        replicas: Vec::new(),
        epoch: None,
        active_version: None,
    }
}

fn key(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (HttpTransitKey, Arc<Scripted>) {
    let (cluster, scripted) = rooted(script);
    (HttpTransitKey::new(cluster, &kek(None)), scripted)
}

#[allow(clippy::unnecessary_wraps)] // as it is asked for
fn version(number: u32) -> Option<KeyVersion> {
    Some(KeyVersion { number, created: UnixSeconds(1_715_803_200) })
}

fn seed() -> Plaintext {
    Plaintext::new(b"secret seed of thirty two bytes!".to_vec())
}

/// A ciphertext of version 3 whose payload has `length` bytes.
fn encrypted(length: usize) -> Reply {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(vec![7; length]);
    ok(format!(r#"{{"data":{{"ciphertext":"vault:v3:{payload}","key_version":3}}}}"#))
}

fn metadata(key_type: &str) -> Reply {
    ok(format!(
        r#"{{"data":{{"keys":{{"3":1715803200}},"latest_version":3,"type":"{key_type}"}}}}"#
    ))
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_is_known_before_anything_that_waits_for_it_has_failed() {
    let (cluster, _) = testing::cluster(testing::app_role(), |_| {
        Reply::Http(400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned())
    });
    let key = HttpTransitKey::new(cluster, &kek(None));
    assert_eq!(key.trouble(), None);
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    let trouble = key.trouble().unwrap();
    assert!(trouble.contains("cluster bao: no token: AppRole login refused"), "{trouble}");
    let (cluster, _) = rooted(|_| ok(r#"{"data":{}}"#));
    cluster.ready(soon()).await.unwrap();
    assert_eq!(HttpTransitKey::new(cluster, &kek(None)).trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn each_verb_goes_to_its_path_with_token_and_namespace() {
    let (key, scripted) = key(|seen| match seen.verb {
        Verb::Encrypt => encrypted(60),
        Verb::Decrypt => ok(r#"{"data":{"plaintext":"cGluZw=="}}"#),
        Verb::ReadKey => metadata("aes256-gcm96"),
        _ => ok(r#"{"data":{"team a/transit/encrypt/kube":["update"]}}"#),
    });
    let wrapped = key.encrypt(&seed(), version(3), soon()).await.unwrap();
    assert_eq!(wrapped.ciphertext.version(), 3);
    assert_eq!(wrapped.address, "https://b0:8200");
    let plaintext = key.decrypt(&wrapped.ciphertext, soon()).await.unwrap();
    assert_eq!(plaintext.expose(), b"ping");
    assert_eq!(key.read(soon()).await.unwrap().latest_version, 3);
    assert_eq!(key.encrypt_capabilities(soon()).await.unwrap(), ["update"]);

    let seen = scripted.seen();
    let paths: Vec<_> = seen.iter().map(|s| format!("{} {}", s.method, s.path)).collect();
    assert_eq!(
        paths,
        [
            "GET /v1/auth/token/lookup-self",
            "POST /v1/team%20a/transit/encrypt/kube",
            "POST /v1/team%20a/transit/decrypt/kube",
            "GET /v1/team%20a/transit/keys/kube",
            "POST /v1/sys/capabilities-self",
        ]
    );
    for request in seen {
        assert_eq!(request.token.as_deref(), Some(ROOT), "{}", request.path);
        assert_eq!(request.namespace.as_deref(), Some("ops"), "{}", request.path);
    }
}

#[tokio::test(start_paused = true)]
async fn the_namespace_of_the_kek_goes_before_that_of_its_cluster() {
    let (cluster, scripted) = rooted(|_| metadata("aes256-gcm96"));
    let key = HttpTransitKey::new(cluster, &kek(Some("team")));
    key.read(soon()).await.unwrap();
    assert_eq!(scripted.seen()[1].namespace.as_deref(), Some("team"));
}

#[tokio::test(start_paused = true)]
async fn once_the_type_is_known_only_its_nonce_is_accepted() {
    let (key, _) = key(|seen| match seen.verb {
        Verb::ReadKey => metadata("aes256-gcm96"),
        _ => encrypted(72), // the length that XChaCha20 makes
    });
    key.encrypt(&seed(), None, soon()).await.unwrap();
    key.read(soon()).await.unwrap();
    let error = key.encrypt(&seed(), None, soon()).await.unwrap_err();
    assert!(matches!(error.cause, TransitCause::Unacceptable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_is_unacceptable_and_names_who_gave_it() {
    let (key, _) = key(|seen| match seen.verb {
        Verb::Encrypt => encrypted(60),
        _ => ok(r#"{"data":{"plaintext":""}}"#),
    });
    let error = key.encrypt(&seed(), version(4), soon()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "key `team a/transit/kube`: https://b0:8200 answered a ciphertext of key version 3 \
         although version 4 was asked for; the answer was thrown away"
    );
    let ciphertext = VaultCiphertext::parse("vault:v3:AAEC").unwrap();
    let error = key.decrypt(&ciphertext, soon()).await.unwrap_err();
    assert!(error.to_string().contains("an empty plaintext"), "{error}");
    assert!(!error.is_final());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_and_an_outage_is_not() {
    let (key, _) = key(|seen| match seen.verb {
        Verb::Decrypt => {
            Reply::Http(400, r#"{"errors":["cipher: message authentication failed"]}"#.to_owned())
        }
        Verb::Encrypt => Reply::Http(403, POLICY_403.to_owned()),
        Verb::ReadKey => Reply::Http(404, r#"{"errors":[]}"#.to_owned()),
        _ => Reply::Unreachable,
    });
    let ciphertext = VaultCiphertext::parse("vault:v3:AAEC").unwrap();
    let decrypt = key.decrypt(&ciphertext, soon()).await.unwrap_err();
    assert_eq!(decrypt.refusal(), Some(&Refusal::WrongKey));
    let encrypt = key.encrypt(&seed(), version(3), soon()).await.unwrap_err();
    assert_eq!(encrypt.refusal(), Some(&Refusal::PolicyDenied));
    let read = key.read(soon()).await.unwrap_err();
    assert_eq!(read.refusal(), Some(&Refusal::KeyNotFound));
    let outage = key.encrypt_capabilities(soon()).await.unwrap_err();
    assert!(matches!(outage.cause, TransitCause::Unavailable(_)), "{outage}");
    assert!(!outage.is_final());
}

#[tokio::test(start_paused = true)]
async fn vaults_time_is_learnt_from_its_answers_and_does_not_step_back() {
    let (key, _) = key(|seen| {
        let date = match seen.verb {
            Verb::Decrypt => "Thu, 16 May 2024 00:00:00 GMT",
            Verb::ReadKey => "Thu, 16 May 2024 00:00:02 GMT",
            _ => "nonsense",
        };
        Reply::Dated(200, r#"{"data":{"plaintext":"cGluZw=="}}"#.to_owned(), date)
    });
    let ciphertext = VaultCiphertext::parse("vault:v3:AAEC").unwrap();
    assert_eq!(key.vault_now(), None);
    key.decrypt(&ciphertext, soon()).await.unwrap();
    assert_eq!(key.vault_now(), Some(UnixSeconds(1_715_817_600)));
    // Vault's second may be cut: one less than we thought is no news, one more is.
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    key.decrypt(&ciphertext, soon()).await.unwrap();
    assert_eq!(key.vault_now(), Some(UnixSeconds(1_715_817_601)));
    key.read(soon()).await.unwrap_err();
    assert_eq!(key.vault_now(), Some(UnixSeconds(1_715_817_602)));
    key.encrypt_capabilities(soon()).await.unwrap_err();
    assert_eq!(key.vault_now(), Some(UnixSeconds(1_715_817_602)));
    // Further back is a clock that was set.
    key.decrypt(&ciphertext, soon()).await.unwrap();
    assert_eq!(key.vault_now(), Some(UnixSeconds(1_715_817_600)));
}

#[tokio::test(start_paused = true)]
async fn no_error_shows_what_was_sent() {
    let sent = "c2VjcmV0IHNlZWQgb2YgdGhpcnR5IHR3byBieXRlcyE=";
    for status in [400, 403, 404, 429, 500, 503] {
        // A Vault that echoes everything it was sent.
        let (key, _) = key(move |seen| {
            let echo = format!("bad: {} with token {:?}", seen.body, seen.token);
            Reply::Http(status, serde_json::json!({ "errors": [echo] }).to_string())
        });
        let error = key.encrypt(&seed(), version(3), soon()).await.unwrap_err();
        for shown in [error.to_string(), format!("{error:?}"), format!("{key:?}")] {
            for secret in [sent, "c2VjcmV0", "secret seed", ROOT] {
                assert!(!shown.contains(secret), "HTTP {status}: {shown}");
            }
        }
    }
}
