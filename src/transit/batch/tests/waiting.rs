//! Those who wait: their deadlines, and what becomes of a batch when they go.

use tokio::task::JoinSet;

use super::super::GRACE;
use super::*;
use crate::clock::Lane;

/// Serves single calls after `latency`, and no batch ever.
fn silent_to_batches(seen: &Seen) -> Reply {
    if is_batch(seen) { Reply::Never } else { serve(seen, LATEST) }
}

fn after(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}

#[tokio::test(start_paused = true)]
async fn a_batch_ends_with_its_last_waiter_and_gives_its_place_back() {
    let (key, scripted) = key(silent_to_batches);
    let key = Arc::new(key);
    let mut waiters = JoinSet::new();
    for n in 0..8 {
        let key = Arc::clone(&key);
        waiters.spawn(async move { key.decrypt(&sealed(&seed(n), 1), soon()).await });
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(sizes(&scripted, Verb::Decrypt), [8]);
    waiters.abort_all();
    while waiters.join_next().await.is_some() {}
    tokio::task::yield_now().await;
    let began = tokio::time::Instant::now();
    assert_own(&decrypt_all(&key, &ciphertexts(1)).await);
    assert_eq!(began.elapsed(), Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_takes_nothing_from_the_others() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    let key = Arc::new(key);
    let mut tasks = Vec::new();
    for n in 0..64 {
        let key = Arc::clone(&key);
        tasks.push(tokio::spawn(async move { key.decrypt(&sealed(&seed(n), 1), soon()).await }));
    }
    tokio::task::yield_now().await;
    for task in tasks.iter().skip(10).step_by(2) {
        task.abort();
    }
    for (n, task) in tasks.into_iter().enumerate() {
        match task.await {
            Ok(answer) => assert_eq!(answer.unwrap(), seed(n)),
            Err(gone) => assert!(gone.is_cancelled() && n >= 10 && n % 2 == 0),
        }
    }
    let sent: usize = sizes(&scripted, Verb::Decrypt).iter().sum();
    assert_eq!(sent, 37, "those that are gone are left out");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_single_call_gives_its_place_back() {
    let (key, _) = key(|seen| match serde_json::from_str::<Value>(&seen.body).unwrap() {
        body if body["ciphertext"] == seal(seed(900).expose(), 1) => Reply::Never,
        _ => serve(seen, LATEST),
    });
    let stuck = sealed(&seed(900), 1);
    for _ in 0..5 {
        let call = key.decrypt(&stuck, soon());
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
    }
    let began = tokio::time::Instant::now();
    assert_own(&decrypt_all(&key, &ciphertexts(2)).await);
    assert_eq!(began.elapsed(), Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn each_item_has_its_own_deadline() {
    let (key, _) = key(silent_to_batches);
    let began = tokio::time::Instant::now();
    let (asked, key) = (ciphertexts(6), &key);
    let decrypt = |n: usize| {
        let ciphertext = &asked[n];
        async move {
            let deadline = after(200 * n as u64 + 100);
            let answer = key.decrypt(ciphertext, deadline).await;
            (answer, began.elapsed())
        }
    };
    for (n, (answer, took)) in join_all((0..6).map(decrypt)).await.into_iter().enumerate() {
        let error = answer.unwrap_err();
        assert!(error.is_outage(), "{error}");
        let error = error.to_string();
        assert_eq!(error, "key `transit/kube`: cluster bao: no answer in time", "{n}");
        assert_eq!(took, Duration::from_millis(200 * n as u64 + 100) + GRACE, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_sent() {
    let (key, scripted) = key(but_two);
    let key = Arc::new(key);
    let mut two = silent_two(&key, &scripted).await;
    let mut tasks = Vec::new();
    for n in [1, 2, 3, 4] {
        let key = Arc::clone(&key);
        let deadline = if n < 3 { after(10) } else { after(3_000) };
        tasks.push(tokio::spawn(async move { key.decrypt(&sealed(&seed(n), 1), deadline).await }));
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    two.abort_all();
    for (n, task) in tasks.into_iter().enumerate() {
        let answer = task.await.unwrap();
        assert_eq!(answer.is_ok(), n > 1, "{answer:?}");
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [0, 0, 2]);
}

/// Which seed a single decrypt is for; 0 for a batch.
fn scripted_number(seen: &Seen) -> usize {
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    let Some(ciphertext) = body["ciphertext"].as_str() else { return 0 };
    let plaintext = open(ciphertext, LATEST).unwrap();
    std::str::from_utf8(&plaintext[29..]).unwrap().parse().unwrap()
}

/// Serves all but the calls of [`silent_two`].
fn but_two(seen: &Seen) -> Reply {
    match scripted_number(seen) {
        900.. => Reply::Never,
        _ => serve(seen, LATEST),
    }
}

/// Two single calls in flight that have no answer.
async fn silent_two(key: &Arc<HttpTransitKey>, scripted: &Scripted) -> JoinSet<()> {
    silent(key, scripted, &[900, 901]).await
}

/// One of them.
async fn silent_one(key: &Arc<HttpTransitKey>, scripted: &Scripted) -> JoinSet<()> {
    silent(key, scripted, &[900]).await
}

async fn silent(key: &Arc<HttpTransitKey>, scripted: &Scripted, numbers: &[usize]) -> JoinSet<()> {
    let mut silent = JoinSet::new();
    for &n in numbers {
        let key = Arc::clone(key);
        silent.spawn(async move { drop(key.decrypt(&sealed(&seed(n), 1), soon()).await) });
        while scripted.count(Verb::Decrypt) < n - 899 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    silent
}

#[tokio::test(start_paused = true)]
async fn two_silent_requests_hold_up_nobody_for_long() {
    let (key, scripted) = key(but_two);
    let key = Arc::new(key);
    let _silent = silent_two(&key, &scripted).await;
    let began = tokio::time::Instant::now();
    assert_own(&decrypt_all(&key, &ciphertexts(30)).await);
    let took = began.elapsed();
    assert!(took > OVERDUE && took <= OVERDUE * 2 + Duration::from_millis(1), "{took:?}");
    assert_eq!(sizes(&scripted, Verb::Decrypt), [0, 0, 30]);
    let began = tokio::time::Instant::now();
    assert_own(&decrypt_all(&key, &ciphertexts(2)).await);
    assert_eq!(began.elapsed(), Duration::from_millis(1), "nobody waits for them any more");
}

#[tokio::test(start_paused = true)]
async fn few_calls_and_very_many_do_not_wait_for_a_single_one() {
    for (calls, waits) in [(1, false), (7, false), (8, true), (23, true), (24, false)] {
        let (key, scripted) = key(but_two);
        let key = Arc::new(key);
        let _silent = silent_one(&key, &scripted).await;
        let began = tokio::time::Instant::now();
        assert_own(&decrypt_all(&key, &ciphertexts(calls)).await);
        let took = began.elapsed();
        assert_eq!(took > Duration::from_millis(1), waits, "{calls}: {took:?}");
        assert!(took <= OVERDUE + Duration::from_millis(1), "{calls}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_came_first_is_among_the_first() {
    let (key, _) = key(|seen| serve(seen, LATEST));
    let (asked, key) = (ciphertexts(1_000), &key);
    let began = tokio::time::Instant::now();
    let decrypt = |ciphertext| async move {
        key.decrypt(ciphertext, soon()).await.unwrap();
        began.elapsed()
    };
    let took = join_all(asked.iter().map(decrypt)).await;
    // A token, then five batches of 190, two at a time, and one of 50.
    assert_eq!(took[999], Duration::from_millis(5));
    assert_eq!(took[0], Duration::from_millis(2));
    assert!(took.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_the_first_go_on_when_it_is_gone() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    let (asked, key) = (ciphertexts(4), &key);
    let mut first = tokio_test::task::spawn(key.decrypt(&asked[3], soon()));
    assert!(first.poll().is_pending());
    let began = tokio::time::Instant::now();
    let others = async {
        let answers = decrypt_all(key, &asked[..3]).await;
        (answers, began.elapsed())
    };
    let gone = async { drop(first) };
    let ((answers, took), ()) = tokio::join!(others, gone);
    assert_own(&answers);
    // A token, and the request.
    assert_eq!(took, Duration::from_millis(2));
    assert_eq!(sizes(&scripted, Verb::Decrypt), [3]);
}

#[tokio::test(start_paused = true)]
async fn who_shares_anothers_outage_with_time_left_asks_anew() {
    let batch_is_sent = Arc::new(tokio::sync::Notify::new());
    let sent = Arc::clone(&batch_is_sent);
    let (key, scripted) = key(move |seen| match scripted_number(seen) {
        0 if is_batch(seen) => {
            sent.notify_one();
            Reply::Unreachable
        }
        900.. => Reply::Never, // one place is taken
        _ => serve(seen, LATEST),
    });
    let (asked, key) = (ciphertexts(5), &key);
    let stuck = sealed(&seed(900), 1);
    let late = async {
        batch_is_sent.notified().await;
        key.decrypt(&asked[4], soon()).await
    };
    let early = async {
        while scripted.count(Verb::Decrypt) < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        join_all(asked[1..].iter().map(|ciphertext| key.decrypt(ciphertext, soon()))).await
    };
    let silent = key.decrypt(&stuck, soon());
    tokio::select! {
        biased;
        _ = silent => unreachable!(),
        (late, early) = async { tokio::join!(late, early) } => {
            assert!(early[3].is_err());
            assert_eq!(late.unwrap(), seed(4));
        }
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [0, 4, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_one_kms_version_holds_up_nobody_of_the_other() {
    for (storm, other) in [(Lane::Objects, Lane::Keys), (Lane::Keys, Lane::Objects)] {
        let (key, scripted) = key(|seen| serve(seen, LATEST));
        let (asked, last, key) = (ciphertexts(2_000), sealed(&seed(2_000), 1), &key);
        let began = tokio::time::Instant::now();
        let storm = join_all(asked.iter().map(|c| key.decrypt(c, soon().in_lane(storm))));
        let calm = async {
            let answer = key.decrypt(&last, soon().in_lane(other)).await;
            (answer, began.elapsed())
        };
        let (storm, (answer, took)) = tokio::join!(storm, calm);
        assert_own(&storm);
        assert_eq!(answer.unwrap(), seed(2_000));
        // A token, and the first batch: a millisecond each.
        assert!(took <= Duration::from_millis(2), "{took:?}");
        // Full ones, but that the last two share what is left.
        assert_eq!(sizes(&scripted, Verb::Decrypt).len(), 2_001_usize.div_ceil(190) + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_full_turns_calls_away() {
    let (key, _) = key(|_| Reply::Never);
    let key = &key;
    let encrypt =
        |n| tokio_test::task::spawn(async move { key.encrypt(&seed(n), version(1), soon()).await });
    let mut calls: Vec<_> = (0..8_193).map(encrypt).collect();
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    let error = key.encrypt(&seed(1), version(1), soon()).await.unwrap_err();
    assert!(error.is_outage());
    assert!(error.to_string().contains("8192 calls wait for it already"), "{error}");
    drop(calls);
    assert!(encrypt(1).poll().is_pending(), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn the_tasks_end_with_their_key() {
    let (key, scripted) = key(silent_to_batches);
    {
        let decrypts = ciphertexts(6);
        let all = decrypt_all(&key, &decrypts);
        assert!(tokio::time::timeout(Duration::from_millis(10), all).await.is_err());
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [6]);
    drop(key);
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    // The cluster's own reference to the script is the last, but for this one.
    while Arc::strong_count(&scripted) > 1 {
        assert!(tokio::time::Instant::now() < end, "something holds the key");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
