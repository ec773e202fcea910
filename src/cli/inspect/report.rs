//! What is said of a value, for people and for programs. Nothing that is encrypted is in it.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::input::Input;
use super::verdict::Verdict;
use crate::stored::{Api, Kms, Local, Plain, Source, Value};

/// How many annotations are shown; kube-apiserver takes 32 KiB of them at most, and what is no
/// value of its may hold millions.
const MAX_ANNOTATIONS: usize = 32;

/// A value, described.
#[derive(Debug, Default)]
pub(super) struct Report {
    lines: Vec<(&'static str, String)>,
    json: Map<String, Json>,
}

// === impl Report ===

impl Report {
    /// Of the value in `input`, and what the daemon said of it, if it was asked.
    pub(super) fn of(input: &Input, verdict: Option<&Verdict>) -> Self {
        let mut report = Self::default();
        if let Some(key) = &input.key {
            report.add("etcd key", "key", printable(key.as_bytes()), key);
        }
        match Value::parse(&input.value) {
            Value::Kms(kms) => report.kms(&kms),
            Value::Local(local) => report.local(local),
            Value::Plain(plain) => report.plain(plain),
            Value::Unknown => {
                report.encrypted_by("in a way that no kube-apiserver has".into(), true);
            }
        }
        report.add("value", "valueBytes", bytes(input.value.len()), input.value.len());
        if let Some(verdict) = verdict {
            report.verdict(verdict);
        }
        report
    }

    /// As one JSON object.
    pub(super) fn to_json(&self) -> String {
        Json::Object(self.json.clone()).to_string()
    }

    fn kms(&mut self, kms: &Kms<'_>) {
        let Kms { provider, api, body } = kms;
        let shown = printable(provider.as_bytes());
        let by = format!("the KMS provider {shown}, with KMS {}", api.as_str());
        self.encrypted_by(by, true);
        self.note("provider", provider);
        self.note("api", api.as_str());
        let body = match body {
            Ok(body) => body,
            Err(damage) => {
                return self.add("trouble", "trouble", damage.to_string(), damage.to_string());
            }
        };
        let said = kms.describe();
        self.add("written by", "writer", said.writer.as_str().to_owned(), said.writer.id());
        let kek = said.kek.map_or_else(|| "not named".into(), |kek| printable(kek.as_bytes()));
        let version =
            said.version.map_or_else(String::new, |version| format!(", version {version}"));
        self.add("KEK", "kek", kek + &version, said.kek);
        self.note("kekVersion", said.version);
        if *api == Api::V2 {
            self.add("key_id", "keyID", printable(body.key_id.as_bytes()), body.key_id);
            let mut annotations = Map::new();
            for (name, value) in body.annotations.iter().take(MAX_ANNOTATIONS) {
                let shown = printable(value);
                self.lines
                    .push(("annotation", format!("{} = {shown}", printable(name.as_bytes()))));
                annotations.insert(name.to_owned(), shown.into());
            }
            let more = body.annotations.iter().count().saturating_sub(MAX_ANNOTATIONS);
            if more > 0 {
                self.add("annotation", "moreAnnotations", format!("and {more} more"), more);
            }
            self.note("annotations", annotations);
        }
        let (source, word) = match body.source {
            Source::Key => ("the object's own key".to_owned(), "key".to_owned()),
            Source::Seed => ("the seed of many objects' keys".to_owned(), "seed".to_owned()),
            Source::Unknown(n) => (format!("of type {n}, which is not known"), n.to_string()),
        };
        let length = body.ciphertext.len();
        self.add(
            "data key",
            "wrappedBytes",
            format!("{source}, wrapped in {}", bytes(length)),
            length,
        );
        self.note("dataKey", word);
        let length = body.data.len();
        self.add("object", "dataBytes", format!("{}, encrypted", bytes(length)), length);
        if let Some(trouble) = kms.trouble() {
            self.add("trouble", "trouble", trouble.clone(), trouble);
        }
    }

    fn local(&mut self, local: Local<'_>) {
        let Local { provider, key, data } = local;
        let by = format!(
            "{provider} with the key {} of kube-apiserver's own configuration; no KMS plugin had a \
             hand in it",
            printable(key.as_bytes())
        );
        self.encrypted_by(by, true);
        self.note("provider", provider);
        self.note("localKey", key);
        self.add("object", "dataBytes", format!("{}, encrypted", bytes(data)), data);
    }

    fn plain(&mut self, plain: Plain) {
        let what = match plain {
            Plain::Protobuf => "an object in protobuf",
            Plain::Json => "an object in JSON",
            Plain::Other => "something that is no object of Kubernetes, or only a part of a value",
            Plain::Empty => "nothing",
        };
        self.encrypted_by(
            format!("nobody: it is {what}, and everybody who reads etcd reads it"),
            false,
        );
        self.note("provider", "identity");
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let (text, code) = match verdict {
            Verdict::Decrypts { length } => {
                (format!("yes, to a data key of {}", bytes(*length)), None)
            }
            Verdict::Refused { code, message } => {
                (format!("no: {code:?}: {message}"), Some(format!("{code:?}")))
            }
            Verdict::NotAsked(why) => (format!("could not be asked: {why}"), None),
        };
        let decrypts = match verdict {
            Verdict::Decrypts { .. } => Json::Bool(true),
            Verdict::Refused { .. } => Json::Bool(false),
            Verdict::NotAsked(_) => Json::Null,
        };
        self.add("decrypts", "decrypts", text.clone(), decrypts);
        if !verdict.is_good() {
            self.note("decryptError", json!({ "code": code, "message": text }));
        }
    }

    fn encrypted_by(&mut self, by: String, encrypted: bool) {
        self.add("encrypted by", "encrypted", by, encrypted);
    }

    fn add(&mut self, label: &'static str, name: &str, text: String, value: impl Serialize) {
        self.lines.push((label, text));
        self.note(name, value);
    }

    fn note(&mut self, name: &str, value: impl Serialize) {
        // Only of types that JSON has.
        self.json.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(label, text)| writeln!(f, "{label:<13} {text}"))
    }
}

fn bytes(length: usize) -> String {
    if length == 1 { "1 byte".into() } else { format!("{length} bytes") }
}

/// Text as it stands when a terminal can show it, else hex; cut after 200 characters.
fn printable(bytes: &[u8]) -> String {
    let mut text = match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => text.to_owned(),
        _ => format!("0x{}", hex::encode(bytes)),
    };
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const V2: &[u8] = b"k8s:enc:kms:v2:vkp:\
        \x0a\x06object\
        \x12\x1dkube-2026:v3:0123456789abcdef\
        \x1a\x11kube-2026:v3:AAEC\
        \x22\x23\x0a\x16kek.vault-kms-proxy.io\x12\x09kube-2026\
        \x22\x08\x0a\x02\x61\x62\x12\x02\x00\xff\
        \x28\x01";

    fn report(value: &[u8], verdict: Option<Verdict>) -> Report {
        let key = Some("/registry/secrets/a".to_owned());
        Report::of(&Input { key, value: value.to_vec() }, verdict.as_ref())
    }

    #[test]
    fn a_v2_value_is_told_line_by_line() {
        let report = report(V2, Some(Verdict::Decrypts { length: 32 }));
        assert_eq!(
            report.to_string(),
            "\
etcd key      /registry/secrets/a
encrypted by  the KMS provider vkp, with KMS v2
written by    vault-kms-proxy
KEK           kube-2026, version 3
key_id        kube-2026:v3:0123456789abcdef
annotation    kek.vault-kms-proxy.io = kube-2026
annotation    ab = 0x00ff
data key      the seed of many objects' keys, wrapped in 17 bytes
object        6 bytes, encrypted
value         126 bytes
decrypts      yes, to a data key of 32 bytes
"
        );
        let json: Json = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(
            json,
            json!({
                "key": "/registry/secrets/a", "encrypted": true,
                "provider": "vkp", "api": "v2", "writer": "vault-kms-proxy",
                "kek": "kube-2026", "kekVersion": 3, "keyID": "kube-2026:v3:0123456789abcdef",
                "annotations": { "kek.vault-kms-proxy.io": "kube-2026", "ab": "0x00ff" },
                "dataKey": "seed", "wrappedBytes": 17, "dataBytes": 6, "valueBytes": 126,
                "decrypts": true,
            })
        );
    }

    #[test]
    fn of_annotations_without_end_only_the_first_are_told() {
        let many = b"\x22\x05\x0a\x03abc".repeat(100_000);
        let value = [b"k8s:enc:kms:v2:p:\x1a\x0ckube:v1:AAEC", &many[..]].concat();
        let report = report(&value, None);
        let text = report.to_string();
        assert_eq!(text.matches("\nannotation ").count(), 33);
        assert!(text.contains("annotation    and 99968 more\n"), "{text}");
        assert!(report.to_json().contains("\"moreAnnotations\":99968"));
    }

    #[test]
    fn what_cannot_be_decrypted_says_why() {
        let lost = report(b"k8s:enc:kms:v1:old:\x00\x09vault:-:\nobject", None).to_string();
        assert!(lost.contains("written by    Trousseau 2"), "{lost}");
        assert!(lost.contains("trouble       the ciphertext was written by Trousseau"), "{lost}");
        let cut = report(b"k8s:enc:kms:v1:old:\x00", None).to_string();
        assert!(cut.contains("trouble       it ends before the wrapped data key does"), "{cut}");
        let refused = Verdict::Refused { code: Code::NotFound, message: "no such key".into() };
        let said = report(V2, Some(refused));
        assert!(said.to_string().contains("decrypts      no: NotFound: no such key"), "{said}");
        assert!(said.to_json().contains("\"decrypts\":false"));
        let said = report(V2, Some(Verdict::NotAsked("/run/x.sock: refused".into())));
        assert!(said.to_string().contains("could not be asked: /run/x.sock"), "{said}");
        assert!(said.to_json().contains("\"decrypts\":null"));
    }

    #[test]
    fn what_no_plugin_encrypted_is_named_and_never_shown() {
        for (value, said) in [
            (&b"k8s\x00hunter2"[..], "nobody: it is an object in protobuf"),
            (b"{\"data\":\"hunter2\"}", "nobody: it is an object in JSON"),
            (b"hunter2", "nobody: it is something that is no object"),
            (b"k8s:enc:aescbc:v1:key1:hunter2", "aescbc with the key key1 of kube-apiserver's own"),
            (b"k8s:enc:secretbox:v1:k:hunter2", "secretbox with the key k"),
            (b"k8s:enc:rot13:v1:k:hunter2", "in a way that no kube-apiserver has"),
        ] {
            let report = report(value, None);
            assert!(report.to_string().contains(said), "{report}");
            for text in [report.to_string(), report.to_json()] {
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
    }
}
