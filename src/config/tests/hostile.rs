//! Whatever is written, there is an answer and never a panic, and no secret in it.

use proptest::prelude::*;

use super::*;

const SECRET: &str = "hvs.hunter2";

const GOOD: &str = "\
keyNames: [kube, { name: old, transitKey: k, epoch: 1 }]
addr: [https://a:8200, https://b:8200]
secretID: hvs.hunter2
roleID: r
socket: { path: /run/kms.sock, mode: '0660', allowedUids: [0] }
rotation: { refresh: 30s }
";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}", toml: bool) {
        let _ = Case::new(if toml { "vkp.toml" } else { "vkp.yaml" }, text).load();
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Case::new("vkp.yaml", bytes).load();
    }

    #[test]
    fn a_good_file_with_one_wrong_place_is_answered_without_its_secret(
        at in 0..GOOD.len(),
        removed in 0..4_usize,
        added in "[\\[\\]{}:,#&*!|>'\"%@`?\\- \n\ta-z0-9./]{0,4}",
        oracle: bool,
    ) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + removed).min(GOOD.len()), &added);
        let mut case = Case::yaml(&text);
        case.sources.form = if oracle { FileForm::Oracle } else { FileForm::Ours };
        let said = match case.load() {
            Ok(loaded) => format!("{loaded:?}"),
            Err(problems) => format!("{problems}{problems:?}"),
        };
        // A secret under another key (`epoch: 1 }…`) is not known as one.
        let key_is_intact = text.contains("\nsecretID: ") || text.contains("\nsecretID:");
        prop_assert!(!key_is_intact || !said.contains(SECRET), "{text}\n{said}");
    }

    #[test]
    fn any_variable_is_answered(name in "[A-Za-z_]{0,30}", value in "\\PC{0,60}") {
        let _ = Case::yaml(FLAT).env(&format!("VAULT_KMS_PROXY_{name}"), &value).load();
    }

    #[test]
    fn any_address_is_answered_without_its_password(
        before in "[a-z:/@.?#\\[\\]0-9]{0,12}",
        after in "[a-z:/@.?#\\[\\]0-9]{0,12}",
    ) {
        let addr = format!("https://{before}:hunter2@{after}");
        let case = Case::yaml(&format!("keyNames: [k]\ntokenFile: /t\naddr: \"{addr}\"\n"));
        if let Err(problems) = case.load() {
            prop_assert!(!problems.to_string().contains("hunter2"), "{problems}");
        }
    }
}
