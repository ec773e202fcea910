use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// What was written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

/// A stderr that takes nothing until it is told to.
struct Stuck {
    go: Receiver<()>,
    written: Written,
}

impl Written {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).unwrap()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.go.recv(); // an error once the sender is gone: then it takes all
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stuck() -> (Stuck, Sender<()>, Written) {
    let (sender, go) = channel();
    let written = Written::default();
    (Stuck { go, written: written.clone() }, sender, written)
}

fn settings(filter: &str, format: LogFormat) -> LogSettings {
    LogSettings { filter: filter.to_owned(), format }
}

/// Runs `work` with a log at `filter` and answers its lines.
async fn logged(filter: &str, format: LogFormat, work: impl FnOnce(&LogControl)) -> String {
    let written = Written::default();
    let lines = LineQueue::start(written.clone()).unwrap();
    let (layer, control) = layer(parse_filter(filter).unwrap(), format, lines);
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || work(&control));
    control.flush(Deadline::after(Duration::from_secs(5))).await;
    written.text()
}

/// A context in which ids are 0x0a… and 0x0b….
fn traced() -> opentelemetry::Context {
    opentelemetry::Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from(0x0a),
        SpanId::from(0x0b),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    ))
}

#[tokio::test]
async fn a_line_has_time_level_target_sentence_and_fields() {
    let text = logged("info", LogFormat::Text, |_| {
        tracing::info!(generation = 3, error = "no such host", empty = "", "Reloaded.");
    })
    .await;
    let (time, rest) = text.split_once(' ').unwrap();
    assert!(humantime::parse_rfc3339(time).is_ok() && time.len() == 24, "{time}");
    let target = module_path!();
    let expected =
        format!("INFO  {target}: Reloaded. generation=3 error=\"no such host\" empty=\"\"\n");
    assert_eq!(rest, expected);
}

#[tokio::test]
async fn an_event_is_one_line_without_escapes_whatever_its_values_hold() {
    let evil = "a\nERROR forged\u{1b}[31m";
    for format in [LogFormat::Text, LogFormat::Json] {
        let text = logged("info", format, |_| {
            tracing::info!(evil, debug = ?evil, display = %evil, "{evil}");
        })
        .await;
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

#[tokio::test]
async fn a_value_as_long_as_a_book_is_cut() {
    let book = "é".repeat(1_000_000);
    for format in [LogFormat::Text, LogFormat::Json] {
        let text = logged("info", format, |_| tracing::info!(book, debug = ?book, "{book}")).await;
        assert!(text.len() < 16_384, "{}", text.len());
        assert!(
            format == LogFormat::Text || serde_json::from_str::<serde_json::Value>(&text).is_ok()
        );
    }
}

#[tokio::test]
async fn json_keeps_types_and_a_field_cannot_pose_as_the_level() {
    let text = logged("info", LogFormat::Json, |_| {
        tracing::warn!(attempts = 2, ok = false, level = "lie", "Slow.");
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["message"], "Slow.");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["field.level"], "lie");
    assert_eq!(line["attempts"], 2);
    assert_eq!(line["ok"], false);
    assert!(line.get("trace_id").is_none());
}

#[tokio::test]
async fn a_line_inside_a_trace_names_it() {
    let (trace, span) = ("0000000000000000000000000000000a", "000000000000000b");
    let speak = |_: &LogControl| {
        let _inside = traced().attach();
        tracing::info!("Here.");
    };
    let text = logged("info", LogFormat::Text, speak).await;
    assert!(text.ends_with(&format!("Here. trace_id={trace} span_id={span}\n")), "{text}");
    let text = logged("info", LogFormat::Json, speak).await;
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((line["trace_id"].as_str(), line["span_id"].as_str()), (Some(trace), Some(span)));
}

#[tokio::test]
async fn a_reload_changes_filter_and_format_and_a_bad_filter_changes_nothing() {
    let text = logged("info", LogFormat::Text, |control| {
        tracing::debug!("Unseen.");
        control.apply(&settings("debug", LogFormat::Json)).unwrap();
        tracing::debug!("Seen.");
        let error = control.apply(&settings("vault_kms_proxy=loud", LogFormat::Text)).unwrap_err();
        assert!(error.to_string().contains("`vault_kms_proxy=loud`"), "{error}");
        tracing::debug!("Still seen.");
    })
    .await;
    let messages: Vec<_> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["message"].clone())
        .collect();
    assert_eq!(messages, ["Seen.", "Still seen."]);
}

#[tokio::test]
async fn a_lone_level_is_ours_and_other_crates_stay_quiet_unless_they_are_named() {
    let speak = |_: &LogControl| {
        tracing::debug!("ours");
        tracing::debug!(target: "h2::frame", "frames");
        tracing::warn!(target: "hyper", "foreign warning");
        tracing::error!(target: "opentelemetry_sdk", "export failed");
    };
    let text = logged("debug", LogFormat::Text, speak).await;
    assert!(text.contains("ours") && text.contains("foreign warning"), "{text}");
    assert!(!text.contains("frames") && !text.contains("export failed"), "{text}");
    let text = logged("error,h2=debug,opentelemetry=error", LogFormat::Text, speak).await;
    assert!(!text.contains("ours"), "{text}");
    assert!(text.contains("frames") && text.contains("export failed"), "{text}");
}

#[test]
fn an_empty_or_unreadable_filter_is_refused_with_advice() {
    for bad in ["", " ", "vault_kms_proxy=loud", "a=b=c"] {
        let error = check_filter(bad).unwrap_err().to_string();
        assert!(error.contains("write a level"), "{error}");
    }
    for good in ["info", "INFO", "warn,vault_kms_proxy::cluster=debug", "off"] {
        check_filter(good).unwrap();
    }
}

#[tokio::test]
async fn a_reader_of_stderr_that_stalls_holds_nobody_up_and_the_loss_is_told() {
    let (out, go, written) = stuck();
    let lines = LineQueue::start(out).unwrap();
    // Without a bound this would go on for ever; with a blocking queue, never return.
    for n in 0..20_000 {
        lines.push(format!("{n}\n"));
    }
    drop(go);
    lines.flush(Deadline::after(Duration::from_secs(10))).await;
    lines.push("last\n".to_owned());
    lines.flush(Deadline::after(Duration::from_secs(10))).await;
    let text = written.text();
    let numbers: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    assert!(numbers.is_sorted() && (4_096..20_000).contains(&numbers.len()), "{}", numbers.len());
    let told: u32 = text
        .lines()
        .filter_map(|l| l.split_once("Log lines were lost. lines=")?.1.parse::<u32>().ok())
        .sum();
    assert_eq!(numbers.len() + told as usize, 20_000);
    assert!(text.contains("last\n"), "{text}");
}

#[tokio::test]
async fn a_flush_ends_at_its_deadline_when_stderr_stalls() {
    let (out, go, _) = stuck();
    let lines = LineQueue::start(out).unwrap();
    lines.push("stuck\n".to_owned());
    let flush = lines.flush(Deadline::after(Duration::from_millis(50)));
    tokio::time::timeout(Duration::from_secs(5), flush).await.unwrap();
    drop(go);
}
