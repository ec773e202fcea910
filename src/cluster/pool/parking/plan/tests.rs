use super::*;
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::operation::Answer;
use crate::cluster::stack::testing::{answer, call_of, name};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn seen(index: u8, is_sound: bool) -> Seen {
    let index = AddressIndex(index);
    Seen { index, is_sound, is_trial_due: false, is_probed_bad: false }
}

fn bad(index: u8) -> Seen {
    Seen { is_probed_bad: true, ..seen(index, false) }
}

fn first(verb: Verb) -> Attempt {
    Attempt::first(call_of(verb, ms(3_000)))
}

fn waits(plan: &mut Plan) -> oneshot::Receiver<Grant> {
    plan.enqueue(&first(Verb::Decrypt), 1)
}

fn hears(plan: &mut Plan, result: Result<Answer, Fault>, took: Duration) {
    let (address, index) = (name(0), AddressIndex(0));
    let result = result.map_err(|fault| AttemptError { address, index, fault });
    plan.hear(index, Verb::Decrypt, &result, took, 1, &Jitter::off());
}

fn granted(waiting: &mut [oneshot::Receiver<Grant>]) -> Vec<Grant> {
    waiting.iter_mut().filter_map(|grant| grant.try_recv().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_gone_takes_no_place() {
    let (mut plan, jitter) = (Plan::default(), Jitter::off());
    for _ in 0..100 {
        drop(waits(&mut plan));
    }
    plan.step(&[seen(0, false)], &jitter);
    assert!(plan.queue.is_empty() && plan.scouts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_third_scout_takes_off_only_beside_silent_ones() {
    let (mut plan, jitter) = (Plan::default(), Jitter::off());
    let addresses: Vec<_> = (0..5).map(|index| seen(index, false)).collect();
    let mut waiting: Vec<_> = (0..20).map(|_| waits(&mut plan)).collect();
    let began = Instant::now();
    let mut taken_off = Vec::new();
    loop {
        let (_, again) = plan.step(&addresses, &jitter);
        taken_off.extend(granted(&mut waiting).iter().map(|_| began.elapsed()));
        if taken_off.len() >= 3 {
            break;
        }
        tokio::time::sleep_until(again.unwrap()).await;
    }
    assert!(taken_off[1] >= FIRST_WAIT, "one after the other: {taken_off:?}");
    assert!(taken_off[1] < SILENT, "the second flies beside the first: {taken_off:?}");
    assert!(taken_off[2] >= SILENT, "the third waits for the first: {taken_off:?}");
    assert!(taken_off[2] < SILENT * 2, "and not for its end: {taken_off:?}");
}

#[tokio::test(start_paused = true)]
async fn while_answers_are_late_one_more_leaves_now_and_then() {
    let (mut plan, jitter) = (Plan::default(), Jitter::off());
    let mut waiting: Vec<_> = (0..10).map(|_| waits(&mut plan)).collect();
    let mut left = Vec::new();
    for _ in 0..5 {
        let (_, again) = plan.step(&[seen(0, true)], &jitter);
        left.push(granted(&mut waiting).len());
        tokio::time::sleep_until(again.unwrap()).await;
    }
    assert_eq!(left, [FIRST_OUT, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_address_is_asked_by_one_scout_at_a_time_and_again_after_a_second() {
    let (mut plan, jitter) = (Plan::default(), Jitter::off());
    let mut waiting: Vec<_> = (0..3).map(|_| waits(&mut plan)).collect();
    let (_, again) = plan.step(&[seen(0, false)], &jitter);
    assert_eq!(granted(&mut waiting).len(), 1);
    assert_eq!(again, Some(Instant::now() + PACE));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_finds_an_address_well_sends_a_scout_at_once() {
    let jitter = Jitter::off();
    let due = Seen { is_trial_due: true, ..seen(0, false) };
    for (before, after) in [(bad(0), seen(0, false)), (seen(0, false), due)] {
        let mut plan = Plan::default();
        let mut waiting: Vec<_> = (0..3).map(|_| waits(&mut plan)).collect();
        plan.step(&[before], &jitter);
        assert_eq!(granted(&mut waiting).len(), 1, "one goes in any case");
        tokio::time::sleep(ms(100)).await;
        plan.step(&[before], &jitter);
        assert_eq!(granted(&mut waiting).len(), 0);
        plan.step(&[after], &jitter);
        assert_eq!(granted(&mut waiting).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn to_an_address_that_is_of_no_use_goes_neither_a_repeat_nor_an_errand() {
    let (mut plan, jitter) = (Plan::default(), Jitter::off());
    let repeat = Attempt { number: 2, ..first(Verb::Decrypt) };
    let errands = [Verb::ReadKey, Verb::Login].map(first);
    let mut waiting: Vec<_> =
        std::iter::once(&repeat).chain(&errands).map(|a| plan.enqueue(a, 1)).collect();
    plan.step(&[bad(0)], &jitter);
    assert_eq!(granted(&mut waiting).len(), 0);
    plan.step(&[seen(0, false)], &jitter);
    assert_eq!(granted(&mut waiting).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_says_something_of_an_address_that_had_a_second() {
    let mut plan = Plan::default();
    hears(&mut plan, Err(Fault::Deadline), ms(999));
    assert!(!plan.is_shaken(AddressIndex(0)));
    hears(&mut plan, Err(Fault::Deadline), ms(1_000));
    assert!(plan.is_shaken(AddressIndex(0)));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_again_takes_back_what_its_answers_allowed() {
    let (mut plan, jitter) = (Plan::default(), Jitter::off());
    let mut waiting: Vec<_> = (0..10).map(|_| waits(&mut plan)).collect();
    hears(&mut plan, Ok(answer(200)), ms(5));
    plan.step(&[seen(0, false)], &jitter);
    assert_eq!(granted(&mut waiting).len(), 1, "a scout");
    plan.step(&[seen(0, true)], &jitter);
    assert_eq!(granted(&mut waiting).len(), FIRST_OUT);
}

#[tokio::test(start_paused = true)]
async fn each_fault_in_a_row_doubles_the_wait_up_to_a_second() {
    let mut plan = Plan::default();
    let mut waits = Vec::new();
    for _ in 0..7 {
        hears(&mut plan, Err(Fault::Unreachable("connection refused".into())), ms(1));
        let due = plan.due(&[seen(0, false)], AddressSet::default(), Instant::now());
        waits.push(due.unwrap_err().unwrap() - Instant::now());
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1_000, 1_000].map(ms));
}
