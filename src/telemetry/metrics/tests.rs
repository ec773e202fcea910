use std::collections::HashSet;

use super::*;

#[test]
fn each_metric_has_a_unique_valid_name_a_unit_and_a_description() {
    let mut names = HashSet::new();
    for metric in Metric::ALL {
        let Description { name, unit, description, labels, .. } = metric.describe();
        assert!(names.insert(metric.describe().prometheus_name()), "{name} stands twice");
        let sound = |text: &str| {
            text.split('.').all(|part| {
                part.starts_with(|c: char| c.is_ascii_lowercase())
                    && part.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            })
        };
        assert!(sound(name), "{name}");
        assert!(labels.iter().all(|label| sound(label)), "{name}: {labels:?}");
        assert!(unit == "s" || unit.starts_with('{') && unit.ends_with('}'), "{name}: {unit}");
        assert!(description.ends_with('.') && !description.contains('|'), "{description}");
    }
}

#[test]
fn moving_a_metric_shows_in_the_text_under_the_name_that_the_table_promises() {
    let (instruments, text) = Instruments::new().unwrap();
    for metric in Metric::ALL {
        let row = metric.describe();
        let labels: Vec<_> = row.labels.iter().map(|l| KeyValue::new(*l, "x\"y")).collect();
        match row.kind {
            Kind::Counter => instruments.add(*metric, 3, &labels),
            Kind::UpDownCounter => {
                instruments.add(*metric, 3, &labels);
                instruments.add(*metric, -1, &labels);
            }
            Kind::Histogram(_) => instruments.record(*metric, 0.3, &labels),
            Kind::Gauge => instruments.set(*metric, 7.0, &labels),
        }
    }
    let text = text.render().unwrap();
    for metric in Metric::ALL {
        let row = metric.describe();
        let name = row.prometheus_name();
        assert!(text.contains(&format!("# HELP {name} {}\n", row.description)), "{text}");
        let value = match row.kind {
            Kind::Counter => " 3",
            Kind::UpDownCounter => " 2",
            Kind::Gauge => " 7",
            Kind::Histogram(_) => " 1",
        };
        let suffix = if matches!(row.kind, Kind::Histogram(_)) { "_count" } else { "" };
        let found = text.lines().any(|l| {
            l.strip_prefix(&format!("{name}{suffix}"))
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.ends_with(value))
        });
        assert!(found, "{name}: {text}");
    }
    assert!(text.contains(r#"vault_kms_proxy_calls_in_flight{api="x\"y"} 2"#), "{text}");
    assert!(text.contains(r#"service_name="vault-kms-proxy""#), "{text}");
}

#[test]
fn buckets_reach_from_a_tenth_of_a_millisecond_to_five_seconds() {
    let (instruments, text) = Instruments::new().unwrap();
    instruments.record(Metric::CallDuration, 0.00009, &[]);
    instruments.record(Metric::CallDuration, 4.9, &[]);
    let text = text.render().unwrap();
    let bucket =
        |le: &str, n: u32| format!("rpc_server_call_duration_seconds_bucket{{le=\"{le}\"}} {n}\n");
    for (le, n) in [("0.0001", 1), ("2.5", 1), ("5", 2), ("+Inf", 2)] {
        assert!(text.contains(&bucket(le, n)), "{le} {n}: {text}");
    }
}

#[test]
fn the_documentation_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, documentation()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == documentation(),
        "docs/metrics.md is out of date; \
         run UPDATE_DOCS=1 cargo test --lib telemetry::metrics"
    );
}
