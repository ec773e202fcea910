use std::net::IpAddr;

use super::*;
use crate::clock::Jitter;
use crate::cluster::breaker::{BreakerPolicy, BreakerState};

fn cluster() -> ClusterName {
    ClusterName::try_new("test").unwrap()
}

/// The addresses of `host`, whose last bytes these are.
fn sites(host: &str, bytes: impl IntoIterator<Item = u8>) -> Vec<Site> {
    let url: Uri = format!("https://{host}:8200").parse().unwrap();
    let site = |byte| Site {
        configured: AddressName::of(&url),
        url: url.clone(),
        peer: Some(SocketAddr::new(IpAddr::from([10, 0, 0, byte]), 8200)),
    };
    bytes.into_iter().map(site).collect()
}

fn make(address: Address) -> Endpoint<()> {
    let jitter = Arc::new(Jitter::off());
    let policy = BreakerPolicy::default();
    let breaker = BreakerState::new(cluster(), address.name.clone(), policy, jitter);
    Endpoint { address, breaker, service: (), transport: () }
}

fn names(members: &Members<()>) -> Vec<String> {
    members.roster().iter().map(|e| e.address.name.to_string()).collect()
}

fn number(members: &Members<()>, name: &str) -> AddressIndex {
    let roster = members.roster();
    let found = roster.iter().find(|e| e.address.name.as_str().contains(name));
    found.unwrap_or_else(|| panic!("{name} is not among {members:?}")).address.index
}

#[tokio::test(start_paused = true)]
async fn an_address_that_stays_keeps_its_number_and_what_is_known_of_it() {
    let members = Members::new(cluster(), 2);
    members.set(1, sites("b", [1]), make);
    members.set(0, sites("a", [1, 2]), make);
    let expected = ["https://a:8200 (10.0.0.1)", "https://a:8200 (10.0.0.2)"];
    assert_eq!(names(&members)[..2], expected, "in the configuration's order");
    assert_eq!(names(&members)[2], "https://b:8200 (10.0.0.1)");
    let before = number(&members, "10.0.0.2");
    members.roster().get(before).unwrap().address.latency.observe(Duration::from_millis(7));

    members.set(0, sites("a", [3, 2]), make);
    assert_eq!(number(&members, "10.0.0.2"), before);
    let latency = members.roster().get(before).unwrap().address.latency.average();
    assert_eq!(latency, Some(Duration::from_millis(7)));
    assert_eq!(members.roster().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_number_goes_to_another_address_only_when_no_call_can_remember_it() {
    let members = Members::new(cluster(), 1);
    members.set(0, sites("a", [1]), make);
    let first = number(&members, "10.0.0.1");
    members.set(0, sites("a", [2]), make);
    let second = number(&members, "10.0.0.2");
    assert_ne!(second, first);

    tokio::time::advance(REMEMBERED - Duration::from_secs(1)).await;
    members.set(0, sites("a", [2, 3]), make);
    assert_ne!(number(&members, "10.0.0.3"), first);
    members.set(0, sites("a", [2, 1]), make);
    assert_eq!(number(&members, "10.0.0.1"), first, "it has come back");

    members.set(0, sites("a", [2]), make);
    tokio::time::advance(REMEMBERED).await;
    members.set(0, sites("a", [2, 4]), make);
    assert_eq!(number(&members, "10.0.0.4"), first, "the lowest that is free");
}

#[tokio::test(start_paused = true)]
async fn a_name_with_too_many_addresses_does_not_push_the_others_out() {
    let members = Members::new(cluster(), 2);
    members.set(0, sites("a", 0..100), make);
    assert_eq!(members.roster().len(), MAX_ADDRESSES);
    members.set(1, sites("b", [1]), make);
    assert_eq!(members.roster().len(), MAX_ADDRESSES - 1, "its number is still remembered");
    tokio::time::advance(REMEMBERED).await;
    members.set(1, sites("b", [1]), make);
    let names = names(&members);
    assert_eq!(names.len(), MAX_ADDRESSES);
    assert_eq!(names[0], "https://a:8200 (10.0.0.0)");
    assert_eq!(names[62..], ["https://a:8200 (10.0.0.62)", "https://b:8200 (10.0.0.1)"]);
}

#[tokio::test(start_paused = true)]
async fn addresses_that_change_faster_than_numbers_are_free_leave_the_last_good_ones() {
    let second = Duration::from_secs(1);
    let members = Members::new(cluster(), 2);
    members.set(1, sites("b", [1]), make);
    assert_eq!(members.set(0, sites("a", 0..40), make), None);
    let first_change = Instant::now();
    let again = members.set(0, sites("a", 100..140), make);
    assert_eq!(again, Some(first_change + REMEMBERED));
    let of_a = |members: &Members<()>, from: u8, to: u8| {
        let octets = (from..to).map(|byte| format!("https://a:8200 (10.0.0.{byte})"));
        octets.filter(|name| names(members).contains(name)).count()
    };
    assert_eq!((of_a(&members, 100, 140), of_a(&members, 0, 40)), (23, 17));

    // All numbers are taken or remembered by now.
    tokio::time::advance(second).await;
    members.set(0, sites("a", 200..240), make);
    assert_eq!(members.roster().len(), 41, "those that were there serve on");
    assert_eq!(of_a(&members, 200, 240), 0);
    assert_eq!(names(&members).last().unwrap(), "https://b:8200 (10.0.0.1)", "in order");

    // As numbers become free, whoever sets them again at the time that was told.
    let mut rounds = 0;
    while let Some(at) = members.set(0, sites("a", 200..240), make) {
        rounds += 1;
        assert!(rounds < 5 && at > Instant::now(), "{rounds} rounds");
        assert_eq!(members.roster().len(), 41);
        tokio::time::sleep_until(at).await;
    }
    assert_eq!((members.roster().len(), of_a(&members, 200, 240)), (41, 40));
    assert!(first_change.elapsed() <= REMEMBERED * 2 + second, "{:?}", first_change.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_has_every_number_takes_replacements_for_all_of_its_addresses() {
    // All 64, or nearly all, or one beside 63 of another name.
    for (count, others) in [(64, 0), (60, 0), (33, 31), (1, 63)] {
        let members = Members::new(cluster(), 2);
        members.set(1, sites("b", 0..others), make);
        members.set(0, sites("a", 0..count), make);
        let new = || sites("a", 100..100 + count);
        let is_new = |members: &Members<()>| {
            let is_new = |e: &&Endpoint<()>| new().iter().any(|site| e.address.is_at(site));
            members.roster().iter().filter(is_new).count()
        };
        let mut rounds = 0;
        while let Some(at) = members.set(0, new(), make) {
            rounds += 1;
            assert!(rounds <= 3, "{count} of {} after {rounds} rounds", is_new(&members));
            let roster = members.roster().len() - usize::from(others);
            assert!(roster >= usize::from(count / 2), "{roster} of {count} serve on");
            tokio::time::sleep_until(at).await;
        }
        assert_eq!(is_new(&members), usize::from(count));
        assert_eq!(members.roster().len(), usize::from(count + others));
    }
}

#[tokio::test(start_paused = true)]
async fn what_two_urls_stand_for_is_one_address() {
    let members = Members::new(cluster(), 2);
    members.set(0, sites("a", [1, 2]), make);
    let before = number(&members, "10.0.0.2");
    members.set(1, sites("a", [2, 2]), make);
    assert_eq!(members.roster().len(), 2);
    members.set(0, sites("a", [1]), make);
    assert_eq!(number(&members, "10.0.0.2"), before);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_hears_of_a_change() {
    let members = Members::new(cluster(), 1);
    let mut changes = members.changes();
    members.set(0, sites("a", [1]), make);
    changes.next().await;
    members.set(0, sites("a", [2]), make);
    changes.forget();
    let silence = tokio::time::timeout(Duration::from_secs(1), changes.next()).await;
    assert!(silence.is_err());
}
