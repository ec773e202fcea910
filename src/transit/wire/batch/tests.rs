use super::*;

fn plaintext(length: usize) -> Plaintext {
    Plaintext::new(vec![9; length])
}

fn result(tag: &Tag, place: usize) -> String {
    format!(r#"{{"plaintext":"AAEC","reference":"{}"}}"#, tag.reference(place))
}

fn answered(results: &[String]) -> Vec<u8> {
    format!(r#"{{"data":{{"batch_results":[{}]}}}}"#, results.join(",")).into_bytes()
}

#[test]
fn each_item_carries_its_own_pin_and_reference() {
    let (a, b) = (plaintext(3), plaintext(4));
    let tag = Tag("7-1".to_owned());
    let entries = [Entry::Encrypt(&a, Some(3)), Entry::Encrypt(&b, None)];
    assert_eq!(
        String::from_utf8(request(entries.into_iter(), &tag).to_vec()).unwrap(),
        r#"{"batch_input":[{"plaintext":"CQkJ","key_version":3,"reference":"7-1-0"},{"plaintext":"CQkJCQ==","reference":"7-1-1"}]}"#
    );
    let bound = VaultCiphertext::parse("vault:v12:AAEC").unwrap().bound_to(b"{}");
    let plain = VaultCiphertext::parse("vault:v3:AAEC").unwrap();
    let entries = [Entry::Decrypt(&bound), Entry::Decrypt(&plain)];
    assert_eq!(
        String::from_utf8(request(entries.into_iter(), &tag).to_vec()).unwrap(),
        r#"{"batch_input":[{"ciphertext":"vault:v12:AAEC","associated_data":"e30=","reference":"7-1-0"},{"ciphertext":"vault:v3:AAEC","reference":"7-1-1"}]}"#
    );
}

#[test]
fn a_batch_with_key_material_never_outgrows_its_buffer() {
    for lengths in [&[0, 1, 2][..], &[32; 190], &[65_535, 4]] {
        for pin in [None, Some(1), Some(10), Some(u32::MAX)] {
            let plaintexts: Vec<_> = lengths.iter().map(|n| plaintext(*n)).collect();
            let entries = || plaintexts.iter().map(|p| Entry::Encrypt(p, pin));
            let body = request(entries(), &Tag::next());
            assert_eq!(body.len() + 1, body.capacity(), "{lengths:?} {pin:?}");
            let said: usize = entries().map(Entry::bytes).sum();
            assert!(said + HEAD.len() + TAIL.len() >= body.len());
        }
    }
}

#[test]
fn no_two_batches_have_a_reference_in_common() {
    let (a, b) = (Tag::next(), Tag::next());
    assert_ne!(a.0, b.0);
    assert!(answer(&answered(&[result(&a, 0)]), &a, 1).is_ok());
    assert!(answer(&answered(&[result(&a, 0)]), &b, 1).is_err());
}

#[test]
fn results_are_put_in_order_by_their_references() {
    let tag = Tag::next();
    let with = |place: usize, plain: &str| {
        format!(r#"{{"plaintext":"{plain}","reference":"{}"}}"#, tag.reference(place))
    };
    let body = answered(&[with(2, "Ag=="), with(0, "AA=="), with(1, "AQ==")]);
    let found = answer(&body, &tag, 3).unwrap();
    let plain: Vec<_> = found.iter().map(|f| f.plaintext().unwrap().expose().to_vec()).collect();
    assert_eq!(plain, [[0], [1], [2]]);
}

#[test]
fn an_answer_whose_references_are_not_those_that_were_sent_is_no_answer() {
    let tag = Tag::next();
    let r = |place| result(&tag, place);
    let stranger = result(&Tag::next(), 1);
    let without = r#"{"plaintext":"AAEC"}"#.to_owned();
    let padded = format!(r#"{{"plaintext":"AAEC","reference":"{}-01"}}"#, tag.0);
    for (what, results) in [
        ("one is missing", vec![r(0)]),
        ("one too many", vec![r(0), r(1), r(2)]),
        ("one comes twice", vec![r(0), r(0)]),
        ("one is another batch's", vec![r(0), stranger]),
        ("one has none", vec![r(0), without]),
        ("one is written in another way", vec![r(0), padded]),
        ("nothing", vec![]),
    ] {
        assert!(answer(&answered(&results), &tag, 2).is_err(), "{what}");
    }
    for body in ["", "{}", r#"{"data":{}}"#, r#"{"data":{"plaintext":"AAEC"}}"#, "<html>"] {
        assert!(answer(body.as_bytes(), &tag, 2).is_err(), "{body}");
    }
}

#[test]
fn an_items_error_is_its_own() {
    let tag = Tag::next();
    let bad = format!(r#"{{"error":"no \u003cprefix\u003e","reference":"{}"}}"#, tag.reference(1));
    let body = answered(&[result(&tag, 0), bad]);
    let found = answer(&body, &tag, 2).unwrap();
    assert_eq!((found[0].error(), found[1].error()), (None, Some("no <prefix>")));
    assert!(found[1].plaintext().is_err());
}

#[test]
fn an_escaped_plaintext_is_read_like_any_other() {
    let tag = Tag::next();
    let escaped = format!(r#"{{"plaintext":"\u0041AEC","reference":"{}"}}"#, tag.reference(0));
    let body = answered(&[escaped]);
    let found = answer(&body, &tag, 1).unwrap();
    assert_eq!(found[0].plaintext().unwrap().expose(), [0, 1, 2]);
}
