//! Answers that may be stale, and who may make them final.

use super::*;
use crate::cluster::address::Role;
use crate::cluster::operation::Operation;
use crate::cluster::stack::testing::operation;

const STALE: Does = Does::Says(Verdict::Stale(""));

fn is_final(result: Result<Answer, CallError>) -> bool {
    match result.unwrap_err().kind {
        CallErrorKind::Agreed(_) => true,
        CallErrorKind::Undecided | CallErrorKind::Exhausted => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_active_node_is_asked_next_and_its_word_is_final() {
    let mut scripted = Scripted::new(3, |_, _| STALE);
    for (index, role) in [(0, Role::Standby), (1, Role::Standby), (2, Role::Active)] {
        scripted.is(index, role);
    }
    let began = Instant::now();
    assert!(is_final(scripted.stack.call(call()).await));
    assert_eq!((scripted.asked(), began.elapsed()), (vec![0, 2], ms(0)));
}

#[tokio::test(start_paused = true)]
async fn the_active_nodes_good_answer_ends_it() {
    let mut scripted = Scripted::new(3, |index, _| if index == 2 { Does::Answers } else { STALE });
    scripted.is(2, Role::Active);
    assert_eq!(scripted.stack.call(call()).await.unwrap().address, name(2));
    assert_eq!(scripted.asked(), [0, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_all_addresses_say_is_not_final_when_none_is_the_active_one() {
    for role in [Role::Unknown, Role::Standby] {
        let scripted = Scripted::new(3, |_, _| STALE);
        (0..3).for_each(|index| scripted.is(index, role));
        let began = Instant::now();
        assert!(!is_final(scripted.stack.call(call()).await), "{role}");
        assert!(began.elapsed() < ms(500), "it burned {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_active_and_is_so_no_longer_makes_nothing_final() {
    let scripted = Scripted::new(3, |_, _| STALE);
    scripted.is(2, Role::Active);
    scripted.says_now(2, Role::Standby);
    assert!(!is_final(scripted.stack.call(call()).await));
}

#[tokio::test(start_paused = true)]
async fn what_a_standby_said_is_not_final_because_it_was_elected_meanwhile() {
    // It answers as a standby that is behind, and as the active node when it is asked again.
    for again in [Does::Answers, STALE] {
        let role = Arc::new(std::sync::OnceLock::<crate::cluster::address::RoleCell>::new());
        let (elected, then) = (Arc::clone(&role), again.clone());
        let mut scripted = Scripted::new(3, move |index, number| match (index, number) {
            (0, 1) => {
                elected.get().unwrap().set(Role::Active);
                STALE
            }
            (0, _) => then.clone(),
            _ => Does::Refuses,
        });
        assert!(role.set(scripted.role(0)).is_ok());
        scripted.says_now(0, Role::Active);
        let began = Instant::now();
        let result = scripted.stack.call(call()).await;
        assert_eq!((scripted.asked(), began.elapsed()), (vec![0, 0], ms(0)), "{again:?}");
        match again {
            Does::Answers => assert_eq!(result.unwrap().address, name(0)),
            _ => assert!(is_final(result)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_will_do_only_from_the_active_node_where_its_word_is_wanted() {
    let wanted = || {
        let operation = Operation { needs_active: true, ..operation(Verb::ReadKey) };
        Call { operation: Arc::new(operation), ..call() }
    };
    // It is known; or it is not, and whoever is asked hands it on.
    for knows in [true, false] {
        let mut scripted = Scripted::new(3, |_, _| Does::Answers);
        for index in 0..3 {
            scripted.is(index, if index == 2 && knows { Role::Active } else { Role::Standby });
            if !knows {
                scripted.hands_on(index);
            }
        }
        assert!(is_final(scripted.stack.call(wanted()).await), "{knows}");
        assert_eq!(scripted.asked(), [if knows { 2 } else { 0 }]);
    }
    let scripted = Scripted::new(3, |_, _| Does::Answers);
    (0..3).for_each(|index| scripted.is(index, Role::Standby));
    assert!(!is_final(scripted.stack.call(wanted()).await));
}

#[tokio::test(start_paused = true)]
async fn of_two_nodes_that_say_that_they_are_active_neither_makes_anything_final() {
    for hands_on in [false, true] {
        let scripted = Scripted::new(3, |_, _| STALE);
        for index in [1, 2] {
            scripted.is(index, Role::Active);
            if hands_on {
                scripted.hands_on(index);
            }
        }
        assert!(!is_final(scripted.stack.call(call()).await), "{hands_on}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_standbys_answer_is_final_when_it_has_asked_the_active_node() {
    // behind a load balancer; and where the active node is not in the list
    for (addresses, asked) in [(1, vec![0, 0]), (2, vec![0, 1, 0])] {
        let mut scripted = Scripted::new(addresses, |_, _| STALE);
        for index in 0..addresses {
            scripted.is(index, Role::Standby);
            scripted.hands_on(index);
        }
        let began = Instant::now();
        assert!(is_final(scripted.stack.call(call()).await));
        assert_eq!((scripted.asked().len(), began.elapsed()), (asked.len(), ms(0)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_is_behind_asks_the_active_node() {
    for addresses in [1, 2, 3] {
        let scripted = Scripted::new(addresses, |_, _| Does::IsBehind);
        (0..addresses).for_each(|index| scripted.hands_on(index));
        let began = Instant::now();
        scripted.stack.call(call()).await.unwrap();
        assert_eq!(began.elapsed(), ms(0), "{addresses}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_active_node_out_of_reach_is_asked_by_way_of_a_standby() {
    let scripted =
        Scripted::new(3, |index, _| if index == 2 { Does::Refuses } else { Does::IsBehind });
    scripted.is(2, Role::Active);
    (0..3).for_each(|index| scripted.hands_on(index));
    let answer = scripted.stack.call(call()).await.unwrap();
    assert_ne!(answer.address, name(2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_handed_on_is_not_final_though_somebody_would() {
    let mut scripted = Scripted::new(1, |_, number| match number {
        1 => STALE,
        _ => Does::Refuses,
    });
    scripted.is(0, Role::Active);
    scripted.hands_on(0);
    assert!(!is_final(scripted.stack.call(call()).await));
    assert!(scripted.asked().len() > 1);
}

#[tokio::test(start_paused = true)]
async fn a_sole_address_that_knows_no_index_must_repeat_what_it_says() {
    for (role, expected) in [(Role::Active, true), (Role::Standby, false)] {
        let mut scripted = Scripted::new(1, |_, _| STALE);
        scripted.is(0, role);
        let began = Instant::now();
        assert_eq!(is_final(scripted.stack.call(call()).await), expected, "{role}");
        assert_eq!(scripted.asked().len(), if expected { 2 } else { 3 });
        assert!(began.elapsed() >= ms(150) && began.elapsed() < ms(500));
    }
}

#[tokio::test(start_paused = true)]
async fn behind_a_load_balancer_one_node_does_not_vouch_for_anothers_answer() {
    // Whoever is asked first says that it is active; the answers are a standby's.
    for others in [Role::Standby, Role::Unknown] {
        let scripted = Scripted::new(1, |_, _| STALE);
        scripted.is(0, Role::Active);
        scripted.say_in_turn(0, &[Role::Active, Role::Active, others]);
        assert!(!is_final(scripted.stack.call(call()).await), "{others}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sole_address_that_was_a_standbys_of_late_makes_nothing_final() {
    let scripted = Scripted::new(1, |_, _| STALE);
    scripted.is(0, Role::Standby);
    scripted.is(0, Role::Active);
    assert!(!is_final(scripted.stack.call(call()).await));
    // What a caller has heard counts like what a probe has.
    tokio::time::advance(Duration::from_secs(300)).await;
    scripted.says_now(0, Role::Standby);
    assert!(!is_final(scripted.stack.call(call()).await));
    scripted.says_now(0, Role::Active);
    assert!(!is_final(scripted.stack.call(call()).await));
    tokio::time::advance(Duration::from_secs(300)).await;
    assert!(is_final(scripted.stack.call(call()).await));
}

#[tokio::test(start_paused = true)]
async fn a_sole_address_is_asked_until_each_of_three_nodes_may_have_answered() {
    for role in [Role::Unknown, Role::Standby] {
        let mut scripted =
            Scripted::new(1, |_, number| if number == 3 { Does::Answers } else { STALE });
        scripted.is(0, role);
        let began = Instant::now();
        scripted.stack.call(call()).await.unwrap();
        assert_eq!(scripted.asked().len(), 3);
        assert!(began.elapsed() < ms(500), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_active_node_does_not_keep_a_standby_from_catching_up() {
    let caught_up_at = Instant::now() + ms(130);
    let scripted = Scripted::new(3, move |index, _| match index {
        2 => Does::Freezes,
        _ if Instant::now() < caught_up_at => STALE,
        _ => Does::Answers,
    });
    scripted.is(2, Role::Active);
    let began = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert!(began.elapsed() < ms(2_000), "{:?}", began.elapsed());
}
