use super::*;
use crate::keyring::fake::{EPOCH, key};

const DELAY: Duration = Duration::from_secs(60);

/// What was seen, and a clock for it.
struct Watch {
    seen: SeenKey,
    start: Instant,
}

impl Watch {
    fn new() -> Self {
        Self { seen: SeenKey::default(), start: Instant::now() }
    }

    /// The active node says this.
    fn observe(&mut self, second: u64, read: KeyMetadata) -> Observation {
        self.seen.observe(read, Teller::Active, self.start + Duration::from_secs(second)).unwrap()
    }

    /// Some node says this.
    fn hear(&mut self, second: u64, read: KeyMetadata) -> Observation {
        self.seen.observe(read, Teller::Someone, self.start + Duration::from_secs(second)).unwrap()
    }

    fn choose(&mut self, pin: Option<u32>, second: u64, known: bool) -> Choice {
        let span = Duration::from_secs(second);
        let vault_now = known.then(|| UnixSeconds(EPOCH).plus(span));
        self.seen.choose(pin, DELAY, vault_now, self.start + span)
    }

    fn active(&mut self, second: u64) -> u32 {
        self.choose(None, second, true).active.unwrap().version
    }

    fn latest(&self) -> u32 {
        self.seen.metadata().unwrap().latest_version
    }
}

fn why_not(key: KeyMetadata) -> String {
    let mut watch = Watch::new();
    watch.observe(0, key);
    match watch.choose(None, 0, true).active.unwrap_err() {
        Inactive::Unusable(why) | Inactive::Gone(why) => why,
        Inactive::Unread => "unread".into(),
    }
}

#[test]
fn a_version_encrypts_from_the_second_in_which_it_is_old_enough() {
    let mut watch = Watch::new();
    assert_eq!(watch.observe(0, key(3, 30)), Observation::First);
    let choice = watch.choose(None, 29, true);
    assert_eq!(choice.active.unwrap().version, 2);
    assert_eq!(choice.again, Again::At(UnixSeconds(EPOCH + 30)));
    let choice = watch.choose(None, 30, true);
    assert_eq!(choice.active.unwrap().version, 3);
    assert_eq!(choice.again, Again::No);
}

#[test]
fn a_new_key_encrypts_with_the_lowest_version_that_may() {
    let mut young = key(3, 0);
    young.versions.values_mut().for_each(|created| *created = UnixSeconds(EPOCH));
    let mut watch = Watch::new();
    watch.observe(0, young.clone());
    assert_eq!(watch.active(1), 1);
    let mut watch = Watch::new();
    watch.observe(0, KeyMetadata { min_encryption_version: 2, ..young });
    assert_eq!(watch.active(1), 2);
}

#[test]
fn activation_never_goes_back_while_the_version_may_encrypt() {
    let mut watch = Watch::new();
    watch.observe(0, key(2, 0));
    assert_eq!(watch.active(60), 2);
    assert_eq!(watch.active(10), 2, "Vault's clock stepped back");
    assert_eq!(watch.choose(None, 10, false).active.unwrap().version, 2, "it is unknown");
    // A process that begins later learns it from the one before.
    let activation = watch.seen.activation().unwrap();
    let mut later = Watch { seen: SeenKey::remembered(Some(activation), None), ..Watch::new() };
    later.observe(0, key(2, 0));
    assert_eq!(later.active(10), 2);
    // But not for another key's version of the same number.
    let mut other = Watch { seen: SeenKey::remembered(Some(activation), None), ..Watch::new() };
    other.observe(0, key(2, -1));
    assert_eq!(other.active(10), 1);
}

#[test]
fn min_encryption_version_moves_the_active_version_up_even_when_it_is_young() {
    let mut watch = Watch::new();
    watch.observe(0, key(2, 0));
    assert_eq!(watch.active(1), 1);
    watch.observe(2, KeyMetadata { min_encryption_version: 2, ..key(2, 0) });
    assert_eq!(watch.active(2), 2);
    // What is written must be readable, so min_decryption_version counts as well.
    let mut watch = Watch::new();
    watch.observe(0, KeyMetadata { min_decryption_version: 2, ..key(2, 0) });
    assert_eq!(watch.active(1), 2);
}

#[test]
fn a_pin_decides_and_leaves_no_trace_when_it_goes_back() {
    let mut watch = Watch::new();
    watch.observe(0, key(3, 1_000));
    assert_eq!(watch.active(0), 3);
    assert_eq!(watch.choose(Some(2), 0, true).active.unwrap().version, 2);
    assert_eq!(watch.choose(Some(2), 0, false).active.unwrap().version, 2);
    assert_eq!(watch.active(0), 3);
    let Err(Inactive::Unusable(why)) = watch.choose(Some(9), 0, true).active else { panic!() };
    assert!(why.contains("activeVersion pins v9"), "{why}");
}

#[test]
fn without_vaults_clock_a_version_is_as_old_as_it_was_watched() {
    let mut watch = Watch::new();
    watch.observe(0, key(3, 10_000));
    let choice = watch.choose(None, 59, false);
    let Err(Inactive::Unusable(why)) = choice.active else { panic!("an old version was guessed") };
    assert!(why.contains("clock"), "{why}");
    assert_eq!(choice.again, Again::Always);
    assert_eq!(watch.choose(None, 60, false).active.unwrap().version, 3);
    let mut rotated = key(3, 10_000);
    rotated.versions.insert(4, UnixSeconds(EPOCH + 70));
    rotated.latest_version = 4;
    watch.observe(70, rotated);
    let choice = watch.choose(None, 129, false);
    assert_eq!((choice.active.unwrap().version, choice.again), (3, Again::Always));
    assert_eq!(watch.choose(None, 130, false).active.unwrap().version, 4);
}

#[test]
fn a_rotation_is_told_from_a_key_that_was_made_again() {
    let mut watch = Watch::new();
    watch.observe(0, key(2, 1_000));
    assert_eq!(watch.observe(1, key(2, 1_000)), Observation::Same);
    let mut rotated = key(2, 1_000);
    rotated.versions.insert(3, UnixSeconds(EPOCH));
    rotated.latest_version = 3;
    assert_eq!(watch.observe(2, rotated), Observation::Rotated);
    assert_eq!(watch.observe(3, key(1, -3)), Observation::Recreated);
    assert_eq!((watch.latest(), watch.active(3)), (1, 1));
    // Made again and rotated past the old one between two reads.
    assert_eq!(watch.observe(9, key(2, -9)), Observation::Recreated);
}

#[test]
fn an_older_answer_is_believed_after_three_times_over_a_minute() {
    let stale = |times| Observation::Stale { times };
    let mut watch = Watch::new();
    watch.observe(0, key(2, 10));
    let old = || key(1, 86_410);
    assert_eq!(watch.observe(30, old()), stale(1));
    assert_eq!(watch.observe(60, old()), stale(2));
    assert_eq!(watch.observe(89, old()), stale(3));
    assert_eq!(watch.latest(), 2);
    assert_eq!(watch.active(100), 2);
    assert_eq!(watch.observe(90, old()), Observation::RolledBack);
    assert_eq!((watch.latest(), watch.active(100)), (1, 1));
}

#[test]
fn two_older_answers_are_not_believed_however_far_apart() {
    let mut watch = Watch::new();
    watch.observe(0, key(2, 10));
    watch.observe(30, key(1, 86_410));
    assert_eq!(watch.observe(630, key(1, 86_410)), Observation::Stale { times: 2 });
    assert_eq!(watch.observe(631, key(1, 86_410)), Observation::RolledBack);
}

#[test]
fn a_standby_that_is_behind_is_forgotten_with_the_next_good_answer() {
    let mut watch = Watch::new();
    watch.observe(0, key(2, 10));
    for second in [10, 50, 90, 130] {
        let observed = watch.observe(second, key(1, 86_410));
        assert_eq!(observed, Observation::Stale { times: 1 }, "{second}");
        assert_eq!(watch.observe(second + 1, key(2, 10)), Observation::Same);
    }
    // Two different older states do not add up either.
    watch.observe(200, key(1, 86_410));
    assert_eq!(watch.observe(270, key(1, 86_411)), Observation::Stale { times: 1 });
}

#[test]
fn a_key_that_is_gone_is_back_with_the_next_read() {
    let mut watch = Watch::new();
    watch.observe(0, key(1, 1_000));
    watch.seen.lose("no such key".into());
    assert_eq!(watch.choose(None, 0, true).active, Err(Inactive::Gone("no such key".into())));
    watch.observe(1, key(1, 1_000));
    assert_eq!(watch.active(1), 1);
}

#[test]
fn only_authenticated_keys_are_used() {
    for good in USABLE_TYPES {
        let mut watch = Watch::new();
        watch.observe(0, KeyMetadata { key_type: good.into(), ..key(1, 100) });
        assert_eq!(watch.active(0), 1, "{good}");
    }
    for bad in ["rsa-2048", "ecdsa-p256", "hmac", "aes256-cbc", ""] {
        let why = why_not(KeyMetadata { key_type: bad.into(), ..key(1, 100) });
        assert!(why.contains("aes256-gcm96"), "{bad}: {why}");
    }
    assert!(why_not(KeyMetadata { derived: true, ..key(1, 100) }).contains("derived=false"));
    assert!(why_not(KeyMetadata { soft_deleted: true, ..key(1, 100) }).contains("restore it"));
    let none = why_not(KeyMetadata { min_encryption_version: 5, ..key(1, 100) });
    assert!(none.contains("min_encryption_version 5"), "{none}");
}

#[test]
fn metadata_that_contradicts_itself_changes_nothing() {
    let mut watch = Watch::new();
    watch.observe(0, key(1, 100));
    let odd = KeyMetadata { latest_version: 7, ..key(1, 100) };
    assert!(watch.seen.observe(odd, Teller::Active, Instant::now()).is_err());
    assert_eq!(watch.latest(), 1);
}

#[test]
fn a_first_read_below_what_is_remembered_is_doubted() {
    let created = key(3, 1_000).versions[&3];
    let remembered = Activation { version: 3, created };
    let watch = || Watch { seen: SeenKey::remembered(Some(remembered), None), ..Watch::new() };
    let older = || key(2, 1_000 + 86_400);
    let mut behind = watch();
    assert_eq!(behind.observe(0, older()), Observation::Stale { times: 1 });
    assert_eq!(behind.choose(None, 0, true).active, Err(Inactive::Unread));
    assert_eq!(behind.seen.activation(), Some(remembered));
    assert_eq!(behind.observe(5, key(3, 1_000)), Observation::First);
    assert_eq!(behind.active(5), 3);
    // Restored from a snapshot meanwhile: that lasts.
    let mut restored = watch();
    for (second, times) in [(0, 1), (30, 2)] {
        assert_eq!(restored.observe(second, older()), Observation::Stale { times });
    }
    assert_eq!(restored.observe(60, older()), Observation::RolledBack);
    assert_eq!(restored.active(60), 2);
    // Made again meanwhile: a lower number, but newer.
    let mut again = watch();
    assert_eq!(again.observe(0, key(1, 500)), Observation::First);
    assert_eq!(again.active(0), 1);
}

#[test]
fn a_version_that_was_seen_and_is_not_active_yet_is_remembered() {
    let mut before = Watch::new();
    before.observe(0, key(2, 1_000));
    assert_eq!(before.active(0), 2);
    let mut rotated = key(2, 1_000);
    rotated.versions.insert(3, UnixSeconds(EPOCH + 10));
    rotated.latest_version = 3;
    before.observe(10, rotated.clone());
    assert_eq!(before.active(20), 2);
    let after = || {
        let seen = SeenKey::remembered(before.seen.activation(), before.seen.newest());
        Watch { seen, ..Watch::new() }
    };

    // Beside a standby that is behind, it encrypts with what both have until it is due.
    let mut behind = after();
    assert_eq!(behind.observe(20, key(2, 1_000)), Observation::Stale { times: 1 });
    let choice = behind.choose(None, 69, true);
    assert_eq!(choice.active.unwrap().version, 2);
    assert_eq!(choice.again, Again::At(UnixSeconds(EPOCH + 70)));
    assert_eq!(behind.choose(None, 70, true).active, Err(Inactive::Unread));
    assert_eq!(behind.seen.activation().unwrap().version, 3, "every other node has switched");
    assert_eq!(behind.choose(None, 60, true).active, Err(Inactive::Unread));
    assert_eq!(behind.observe(80, rotated.clone()), Observation::First);
    assert_eq!(behind.active(80), 3);

    // Without Vault's clock nothing comes of age.
    let mut away = after();
    assert_eq!(away.choose(None, 9_999, false).active, Err(Inactive::Unread));
    assert_eq!(away.seen.activation().unwrap().version, 2);
    away.observe(9_999, rotated);
    assert_eq!(away.active(9_999), 3);

    // Another key of that name has nothing that could encrypt.
    let mut other = after();
    assert_eq!(other.observe(0, key(2, 2_000)), Observation::Stale { times: 1 });
    assert_eq!(other.choose(None, 20, true).active, Err(Inactive::Unread));
}

#[test]
fn only_the_active_node_makes_an_older_state_true_while_it_can_be_asked() {
    let stale = |times| Observation::Stale { times };
    let old = || key(1, 86_410);
    let mut watch = Watch::new();
    watch.observe(0, key(2, 10));
    for second in [30, 60, 90, 120] {
        assert_eq!(watch.hear(second, old()), stale(0), "{second}");
    }
    for (second, times) in [(130, 1), (160, 2)] {
        assert_eq!(watch.observe(second, old()), stale(times));
    }
    // Of those that came before, and from others, none counts.
    assert_eq!(watch.hear(200, old()), stale(2));
    assert_eq!(watch.hear(999, old()), stale(2));
    assert_eq!(watch.observe(1_000, old()), Observation::RolledBack);
    // Where it is never heard, there is an end as well.
    let mut away = Watch::new();
    away.observe(0, key(2, 10));
    for second in [30, 300, 629] {
        assert_eq!(away.hear(second, old()), stale(0), "{second}");
    }
    assert_eq!(away.hear(630, old()), Observation::RolledBack);
}
