use super::Standing::{LeftOut, Sound, TrialDue};
use super::*;

/// An address as a row of the table writes it.
fn at(standing: Standing) -> Candidate {
    let index = AddressIndex(0);
    Candidate { index, standing, role: Role::Unknown, redirects: false, cost: None }
}

fn is(role: Role) -> Candidate {
    Candidate { role, ..at(Sound) }
}

fn costs(ms: u64) -> Candidate {
    Candidate { cost: Some(Duration::from_millis(ms)), ..at(Sound) }
}

fn set(indices: &[u8]) -> AddressSet {
    indices.iter().fold(AddressSet::default(), |set, index| set.with(AddressIndex(*index)))
}

fn asked(candidates: &[Candidate], wanted: &Wanted) -> Vec<u8> {
    let candidates: Vec<_> = (0_u8..)
        .zip(candidates)
        .map(|(index, candidate)| Candidate { index: AddressIndex(index), ..*candidate })
        .collect();
    order(&candidates, wanted).into_iter().map(|index| index.0).collect()
}

fn prefers(index: u8) -> Wanted {
    Wanted { preferred: Some(AddressIndex(index)), ..Wanted::default() }
}

#[test]
fn the_order_can_be_read_aloud() {
    let any = Wanted::default;
    let tried = |tried: &[u8]| Wanted { tried: set(tried), ..any() };
    let active = || Wanted { needs_active: true, ..any() };
    let first = |preferred| Wanted { carries_trial: true, ..prefers(preferred) };
    let redirects = Candidate { redirects: true, ..is(Role::Standby) };
    let behind = |standing, candidate| Candidate { standing, ..candidate };
    let (leader, standby, sealed) = (is(Role::Active), is(Role::Standby), is(Role::Sealed));
    let table: [(&str, &[Candidate], Wanted, &[u8]); 31] = [
        ("as configured", &[at(Sound); 3], any(), &[0, 1, 2]),
        ("who answered last comes first", &[at(Sound); 3], prefers(2), &[2, 0, 1]),
        (
            "untried before tried",
            &[at(Sound); 3],
            Wanted { tried: set(&[2, 0]), ..prefers(2) },
            &[1, 2, 0],
        ),
        ("sound before left out", &[at(LeftOut), at(Sound), at(Sound)], prefers(0), &[1, 2, 0]),
        ("a due trial rides along", &[at(Sound), at(TrialDue), at(Sound)], first(0), &[1, 0, 2]),
        ("but not on a repeat", &[at(Sound), at(TrialDue), at(LeftOut)], prefers(0), &[0, 1, 2]),
        ("due before left out", &[at(LeftOut), at(TrialDue)], any(), &[1, 0]),
        ("untried, left out, before tried", &[at(Sound), at(LeftOut)], tried(&[0]), &[1, 0]),
        ("a sole address is never rejected", &[at(LeftOut)], tried(&[0]), &[0]),
        ("not even a sealed one", &[behind(LeftOut, sealed)], tried(&[0]), &[0]),
        ("sealed is last", &[sealed, at(Sound), at(Sound)], prefers(0), &[1, 2, 0]),
        ("and without storage", &[is(Role::Uninitialised), at(Sound)], any(), &[1, 0]),
        ("and a secondary", &[is(Role::DrSecondary), at(Sound)], any(), &[1, 0]),
        ("and one that was removed", &[is(Role::Removed), at(Sound)], any(), &[1, 0]),
        ("sealed after left out", &[sealed, at(LeftOut)], any(), &[1, 0]),
        ("sealed after tried", &[sealed, at(Sound)], tried(&[1]), &[1, 0]),
        ("a standby serves as well as the active", &[standby, leader, standby], any(), &[0, 1, 2]),
        ("and as one that is not known", &[at(Sound), leader, standby], any(), &[0, 1, 2]),
        ("what needs the active node", &[standby, leader, at(Sound)], active(), &[1, 0, 2]),
        (
            "goes there though another answered last and is quicker",
            &[costs(1), Candidate { cost: Some(Duration::from_secs(1)), ..leader }],
            Wanted { needs_active: true, ..prefers(0) },
            &[1, 0],
        ),
        ("but not when it is left out", &[standby, behind(LeftOut, leader)], active(), &[0, 1]),
        ("or was tried", &[standby, leader], Wanted { needs_active: true, ..tried(&[1]) }, &[0, 1]),
        ("one that redirects comes behind", &[redirects, at(Sound)], prefers(0), &[1, 0]),
        ("but before one that was tried", &[redirects, at(Sound)], tried(&[1]), &[0, 1]),
        ("clearly quicker", &[costs(30), costs(14)], prefers(0), &[1, 0]),
        ("not quicker by enough", &[costs(30), costs(15)], prefers(0), &[0, 1]),
        ("a few milliseconds are nothing", &[costs(6), costs(1)], prefers(0), &[0, 1]),
        ("and one more is something", &[costs(7), costs(1)], prefers(0), &[1, 0]),
        ("among the slow the quickest", &[costs(900), costs(300), costs(9)], any(), &[2, 1, 0]),
        ("what is not known may be quick", &[costs(40), at(Sound)], prefers(1), &[1, 0]),
        (
            "costs are compared among peers",
            &[Candidate { standing: LeftOut, ..costs(1) }, costs(90), costs(80)],
            prefers(1),
            &[1, 2, 0],
        ),
    ];
    for (says, candidates, wanted, expected) in table {
        assert_eq!(asked(candidates, &wanted), expected, "{says}");
    }
}

#[test]
fn three_equal_addresses_do_not_take_turns() {
    // Each answers in 1 to 3 ms, as it comes; whoever answered last is asked next.
    let mut last = 0;
    for round in 0_u64..1_000 {
        let candidates: Vec<_> = (0..3).map(|n| costs(1 + (round * 7 + n * 5) % 3)).collect();
        let first = asked(&candidates, &prefers(last))[0];
        assert_eq!(first, 0, "round {round}");
        last = first;
    }
}
