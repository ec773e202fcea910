use super::Standing::{LeftOut, Sound, TrialDue};
use super::*;

#[test]
fn the_order_can_be_read_aloud() {
    struct Row {
        says: &'static str,
        standings: &'static [Standing],
        tried: &'static [u8],
        preferred: Option<u8>,
        carries_trial: bool,
        expected: &'static [u8],
    }
    let row = |says, standings, tried, preferred, carries_trial, expected| Row {
        says,
        standings,
        tried,
        preferred,
        carries_trial,
        expected,
    };
    let table = [
        row("as configured", &[Sound, Sound, Sound], &[], None, true, &[0, 1, 2]),
        row("who answered last comes first", &[Sound; 3], &[], Some(2), true, &[2, 0, 1]),
        row("untried before tried", &[Sound; 3], &[2, 0], Some(2), true, &[1, 2, 0]),
        row("sound before left out", &[LeftOut, Sound, Sound], &[], Some(0), true, &[1, 2, 0]),
        row("a due trial rides along", &[Sound, TrialDue, Sound], &[], Some(0), true, &[1, 0, 2]),
        row("but not on a repeat", &[Sound, TrialDue, LeftOut], &[], Some(0), false, &[0, 1, 2]),
        row("due before left out", &[LeftOut, TrialDue], &[], None, false, &[1, 0]),
        row("untried, left out, before tried", &[Sound, LeftOut], &[0], None, false, &[1, 0]),
        row("a sole address is never rejected", &[LeftOut], &[0], None, false, &[0]),
    ];
    for Row { says, standings, tried, preferred, carries_trial, expected } in table {
        let candidates: Vec<_> = (0_u8..)
            .zip(standings)
            .map(|(index, standing)| Candidate { index: AddressIndex(index), standing: *standing })
            .collect();
        let tried = tried.iter().fold(AddressSet::default(), |set, i| set.with(AddressIndex(*i)));
        let order = order(&candidates, tried, preferred.map(AddressIndex), carries_trial);
        let order: Vec<_> = order.into_iter().map(|index| index.0).collect();
        assert_eq!(order, expected, "{says}");
    }
}
