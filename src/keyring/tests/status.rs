//! What Status says in every state of a key, from its first read to its loss, and over a
//! restart: each row of the table in `condition`, reached as it is reached in life.

use super::*;

/// What Status says.
#[derive(Debug)]
enum Says {
    Ok,
    /// A reason with these words, with key_id.
    Reason(&'static str),
    /// An RPC error with these words.
    Error(&'static str),
}

/// Something happens, so many seconds pass, and Status says this with `onOutage: report`
/// and that with `onOutage: ok`.
type Row = (&'static str, fn(&mut Bench), u64, Says, Says);

fn away(bench: &mut Bench) {
    bench.script(0, |s| s.down = true);
}

fn back(bench: &mut Bench) {
    bench.script(0, |s| s.down = false);
}

fn nothing(_: &mut Bench) {}

async fn follow(rows: &[Row], first_key_id: &str) {
    for on_outage in [OnOutage::Report, OnOutage::Ok] {
        let mut bench = Bench::start(&["kube"], |s| s.status.on_outage = on_outage);
        for (what, event, seconds, report, stay) in rows {
            event(&mut bench);
            bench.wait(*seconds).await;
            let wanted = if on_outage == OnOutage::Report { report } else { stay };
            let status = bench.keyring.status();
            let is_right = match (&status, wanted) {
                (Ok(said), Says::Ok) => said.healthz == "ok",
                (Ok(said), Says::Reason(words)) => said.healthz.contains(words),
                (Err(error), Says::Error(words)) => error.to_string().contains(words),
                _ => false,
            };
            assert!(is_right, "{what}, {on_outage:?}: {wanted:?}, not {status:?}");
            // Whoever looks at /readyz sees the same.
            let is_ready = matches!(wanted, Says::Ok);
            assert_eq!(bench.keyring.condition().is_ready(), is_ready, "{what}");
            if let Ok(said) = status {
                assert!(said.key_id.as_str().starts_with(first_key_id), "{what}: {said:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn from_the_first_read_over_an_outage_and_a_loss() {
    use Says::{Error, Ok, Reason};
    let rows: [Row; 12] = [
        ("never seen", away, 0, Error("no address"), Error("no address")),
        ("still not", nothing, 300, Error("no address"), Error("no address")),
        ("seen and proven", back, 6, Ok, Ok),
        ("away, within the grace", away, 90, Ok, Ok),
        ("the grace is over", nothing, 61, Reason("not proven for"), Ok),
        ("long over", nothing, 3_600, Reason("no address could answer"), Ok),
        ("back", back, 31, Ok, Ok),
        (
            "it answers, but proves nothing",
            |b| b.script(0, |s| s.refuse_encrypt = Some(Refusal::BadRequest("odd".into()))),
            151,
            Reason("odd"),
            Reason("odd"),
        ),
        ("well again", |b| b.script(0, |s| s.refuse_encrypt = None), 11, Ok, Ok),
        (
            "forbidden for good",
            |b| b.script(0, |s| s.refuse_encrypt = Some(Refusal::PolicyDenied)),
            31,
            Error("policy does not allow it"),
            Error("policy does not allow it"),
        ),
        ("and then away", away, 600, Error("policy"), Error("policy")),
        (
            "allowed and back",
            |b| b.script(0, |s| (s.refuse_encrypt, s.down) = (None, false)),
            31,
            Ok,
            Ok,
        ),
    ];
    follow(&rows, "kube:v1:").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_an_outage_changes_nothing_that_the_apiserver_sees() {
    use Says::{Error, Ok, Reason};
    let rows: [Row; 13] = [
        ("proven", nothing, 1, Ok, Ok),
        ("away", away, 10, Ok, Ok),
        ("restarted within the grace", |b| b.restart(10, |_| ()), 0, Ok, Ok),
        ("the grace ends", nothing, 110, Reason("not proven for 120 s"), Ok),
        ("restarted after it", |b| b.restart(7_000, |_| ()), 0, Reason("not proven for 700"), Ok),
        ("and the reason is found", nothing, 10, Reason("no address could answer"), Ok),
        ("back", back, 6, Ok, Ok),
        (
            "the key may not be read, and it is restarted",
            |b| {
                b.script(0, |s| s.refuse_read = Some(Refusal::PolicyDenied));
                b.restart(1, |_| ());
            },
            5,
            Reason("its metadata could not be read"),
            Reason("its metadata could not be read"),
        ),
        ("it may", |b| b.script(0, |s| s.refuse_read = None), 31, Ok, Ok),
        (
            "the version is lost",
            |b| b.script(0, |s| s.refuse_decrypt = Some(Refusal::TooOld)),
            31,
            Error("below min_decryption"),
            Error("below min_decryption"),
        ),
        (
            "restarted while Vault is away, it is lost as before",
            |b| {
                away(b);
                b.restart(1, |_| ());
            },
            5,
            Error("below min_decryption"),
            Error("below min_decryption"),
        ),
        (
            "the key is gone, too, and all is restarted",
            |b| {
                back(b);
                b.script(0, |s| s.key = None);
                b.restart(1, |_| ());
            },
            31,
            Error("vault write -f"),
            Error("vault write -f"),
        ),
        (
            "restored",
            |b| b.script(0, |s| (s.key, s.refuse_decrypt) = (Some(key(1, 1_000)), None)),
            31,
            Ok,
            Ok,
        ),
    ];
    follow(&rows, "kube:v1:").await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_nothing_is_encrypted_on_the_word_of_a_file() {
    let mut bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| s.down = true);
    bench.restart(1, |_| ());
    let told = bench.keyring.status().unwrap();
    assert_eq!(told.healthz, "ok");
    for reported in [None, Some(told.key_id.clone())] {
        let error = bench.encrypt(EncryptFor::V2 { reported }).await.unwrap_err();
        assert!(matches!(error, KeyringError::NotReady { .. }), "{error}");
    }
    bench.script(0, |s| s.down = false);
    bench.wait(6).await;
    assert_eq!(bench.encrypt_v2().await.unwrap().key_id, told.key_id);
}

#[tokio::test(start_paused = true)]
async fn a_restart_names_the_version_that_was_active_until_the_one_that_was_seen_is_due() {
    let mut bench = Bench::ready(&["kube"]).await;
    bench.fakes[0].rotate();
    bench.wait(31).await;
    let before = bench.keyring.status().unwrap();
    assert_eq!(bench.primary().latest_version, Some(2));
    bench.script(0, |s| s.down = true);
    bench.restart(1, |_| ());
    assert_eq!(bench.keyring.status().unwrap(), before);
    // Where Vault's clock is not known, nobody can say when that is.
    bench.script(0, |s| s.knows_time = false);
    bench.wait(31).await;
    assert_eq!(bench.keyring.status().unwrap(), before);
    // Those that were not restarted name it from that second on.
    bench.script(0, |s| s.knows_time = true);
    bench.wait(30).await;
    let named = bench.keyring.status().unwrap().key_id;
    assert!(named.as_str().starts_with("kube:v2:"), "{named:?}");
    assert!(matches!(bench.encrypt_v2().await, Err(KeyringError::NotReady { .. })));
    bench.restart(1, |_| ());
    assert_eq!(bench.keyring.status().unwrap().key_id, named);
    bench.script(0, |s| s.down = false);
    bench.wait(6).await;
    assert_eq!(bench.encrypt_v2().await.unwrap().key_id, named);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_is_new_at_a_restart_is_not_answered_from_memory() {
    let mut bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| s.down = true);
    let pin = |version| {
        move |settings: &mut KeyringSettings| {
            let kek = KekSettings { active_version: Some(version), ..fake::kek_settings("kube") };
            settings.keks = vec![Arc::new(kek)];
        }
    };
    bench.restart(1, pin(2));
    assert!(matches!(bench.keyring.status(), Err(KeyringError::NotReady { .. })));
    bench.restart(1, pin(1));
    assert!(bench.keyring.status().unwrap().key_id.as_str().starts_with("kube:v1:"));
}

#[tokio::test(start_paused = true)]
async fn what_the_first_read_waits_for_is_told_at_once() {
    let mut bench = Bench::start(&["kube"], |_| ());
    bench.script(0, |s| (s.latency, s.trouble) = (Duration::from_secs(60), Some("login refused")));
    let error = bench.keyring.status().unwrap_err().to_string();
    assert!(error.contains("has not been read yet: login refused"), "{error}");
    // An earlier process knew the key.
    bench.script(0, |s| s.latency = Duration::ZERO);
    bench.wait(6).await;
    bench.script(0, |s| s.latency = Duration::from_secs(60));
    bench.restart(3_600, |_| ());
    let report = bench.keyring.status().unwrap();
    assert!(report.healthz.contains("login refused"), "{}", report.healthz);
}
