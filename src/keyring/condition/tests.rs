use super::*;
use crate::config::settings::StatusVersion;

/// What this machine's clock says at the start.
const TIME: UnixSeconds = UnixSeconds(1_800_000_000);

fn settings(on_outage: OnOutage) -> StatusSettings {
    StatusSettings { version: StatusVersion::V2, grace: Duration::from_secs(120), on_outage }
}

fn reason(text: &str) -> Saying {
    Saying::Reason(text.into())
}

fn lost(text: &str) -> Saying {
    Saying::Lost(text.into())
}

/// Says what is proven at `second`, with `onOutage: report` and with `ok`.
fn says(proofs: &Proofs, seen: Seen<'_>, at: Instant) -> [Saying; 2] {
    [OnOutage::Report, OnOutage::Ok].map(|on_outage| proofs.say(1, seen, at, &settings(on_outage)))
}

#[tokio::test(start_paused = true)]
async fn status_says_what_is_proven_in_each_state() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut proofs = Proofs::default();
    type Step = (u64, fn(&mut Proofs, Instant), Saying, Saying);
    let unproven = "not proven since the start: no answer yet";
    let never = "not proven since the start: refused";
    let stale = "not proven for 120 s: refused";
    let odd = "not proven for 135 s: HTTP 400";
    let silent = "not proven for 121 s: no answer yet";
    let steps: [Step; 15] = [
        (0, |_, _| (), reason(unproven), reason(unproven)),
        (1, |p, _| _ = p.miss("refused".into()), reason(never), reason(never)),
        (10, |p, now| _ = p.prove(now, TIME), Saying::Ok, Saying::Ok),
        (20, |p, _| _ = p.miss("refused".into()), Saying::Ok, Saying::Ok),
        (129, |_, _| (), Saying::Ok, Saying::Ok),
        (130, |_, _| (), reason(stale), Saying::Ok),
        // An answer that proves nothing is no outage, and an outage after it is one again.
        (145, |p, _| _ = p.reject("HTTP 400".into()), reason(odd), reason(odd)),
        (146, |p, _| _ = p.miss("x".into()), reason("not proven for 136 s: x"), Saying::Ok),
        (150, |p, now| _ = p.prove(now, TIME), Saying::Ok, Saying::Ok),
        (160, |p, _| _ = p.lose(1, "gone".into()), lost("gone"), lost("gone")),
        (170, |p, _| _ = p.miss("x".into()), lost("gone"), lost("gone")),
        (180, |p, now| _ = p.prove(now, TIME), Saying::Ok, Saying::Ok),
        // The loss of a version that is not the active one means nothing.
        (190, |p, _| _ = p.lose(2, "too old".into()), Saying::Ok, Saying::Ok),
        (200, |p, now| _ = p.prove(now, TIME), Saying::Ok, Saying::Ok),
        (321, |_, _| (), reason(silent), Saying::Ok),
    ];
    for (second, event, report, stay) in steps {
        event(&mut proofs, at(second));
        assert_eq!(says(&proofs, Seen::Here, at(second)), [report, stay], "{second}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_process_proved_counts_with_its_age() {
    let now = Instant::now();
    let restored = |age| Proofs::restored(TIME, UnixSeconds(TIME.0 + age), now);
    let unread = Seen::Before { why: None, refused: false };
    let away = Seen::Before { why: Some("no route"), refused: false };
    let refused = Seen::Before { why: Some("forbidden"), refused: true };
    let future = "not proven since the start: no route";
    for (age, seen, report, stay) in [
        (0, unread, Saying::Ok, Saying::Ok),
        (119, away, Saying::Ok, Saying::Ok),
        (120, unread, reason("not proven for 120 s: no answer yet"), Saying::Ok),
        (9_000, away, reason("not proven for 9000 s: no route"), Saying::Ok),
        (-5, away, reason(future), reason(future)),
        (1, refused, reason("forbidden"), reason("forbidden")),
        (9_000, refused, reason("forbidden"), reason("forbidden")),
    ] {
        assert_eq!(says(&restored(age), seen, now), [report, stay], "{age} {seen:?}");
    }
    let mut gone = restored(1);
    gone.lose(1, "gone".into());
    assert_eq!(says(&gone, unread, now), [lost("gone"), lost("gone")]);
    // It goes on ageing, is no proof of ours, and makes room for the first that is.
    let mut old = restored(100);
    let later = now + Duration::from_secs(20);
    let stale = reason("not proven for 120 s: no answer yet");
    assert_eq!(says(&old, Seen::Here, later)[0], stale);
    assert_eq!((old.last(), old.age(later)), (None, Some(Duration::from_secs(120))));
    assert_eq!(old.prove(later, TIME), Change::Proven);
    assert_eq!((old.last(), old.age(later)), (Some(later), Some(Duration::ZERO)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_version_is_no_loss_of_the_next_one() {
    let mut proofs = Proofs::default();
    let now = Instant::now();
    proofs.prove(now, TIME);
    proofs.lose(1, "too old".into());
    let settings = settings(OnOutage::Report);
    assert_eq!(proofs.say(1, Seen::Here, now, &settings), lost("too old"));
    assert_eq!(proofs.say(2, Seen::Here, now, &settings), Saying::Ok);
}

#[tokio::test(start_paused = true)]
async fn each_change_is_told_once() {
    let mut proofs = Proofs::default();
    let now = Instant::now();
    assert_eq!(proofs.prove(now, TIME), Change::Proven);
    assert_eq!(proofs.prove(now, TIME), Change::None);
    assert_eq!(proofs.miss("a".into()), Change::Unproven);
    assert_eq!(proofs.miss("b".into()), Change::None);
    assert_eq!(proofs.lose(1, "c".into()), Change::Lost);
    assert_eq!(proofs.lose(1, "c".into()), Change::None);
    assert_eq!(proofs.prove(now, TIME), Change::Proven);
}
