//! Which key a stored ciphertext needs, in the forms that are told apart.

use std::hint::black_box;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use criterion::Criterion;
use vault_kms_proxy::benched;
use vault_kms_proxy::config::settings::KekName;

pub(crate) fn all(c: &mut Criterion) {
    let payload = STANDARD.encode([7; 60]);
    let whole = STANDARD.encode(format!("vault:v1:{payload}"));
    let names = ["kube-2024", "kube-2025", "kube-2026"];
    let keks = names.map(|name| KekName::try_new(name).expect("a valid name"));
    let mut group = c.benchmark_group("envelope");
    for (form, text) in [
        ("named", format!("kube-2026:v1:{payload}")),
        ("bare", format!("vault:v1:{payload}")),
        ("trousseau", format!("vault:-:{whole}\n")),
    ] {
        assert!(benched::reads(text.as_bytes(), &keks), "{form} is a form that is read");
        let read = || benched::reads(black_box(text.as_bytes()), &keks);
        group.bench_function(form, |b| b.iter(read));
    }
    group.finish();
}
