//! One event as one line.

use std::borrow::Cow;
use std::fmt::{self, Write};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::{Map, Value};
use tracing::Event;
use tracing::field::{Field, Visit};

use crate::clock::node_timestamp;

/// `2026-11-24T22:00:00.000Z INFO  vault_kms_proxy::daemon: Reloaded. generation=3`
pub(super) fn text(event: &Event<'_>) -> String {
    let mut fields = TextFields::default();
    event.record(&mut fields);
    let metadata = event.metadata();
    let TextFields { message, mut rest } = fields;
    if let Some(span) = current_span() {
        let _ = write!(rest, " trace_id={} span_id={}", span.trace_id(), span.span_id());
    }
    format!("{} {:5} {}: {message}{rest}\n", node_timestamp(), metadata.level(), metadata.target())
}

/// The same as one JSON object, with the fields beside `timestamp`, `level`, `target` and
/// `message`.
pub(super) fn json(event: &Event<'_>) -> String {
    let mut fields = JsonFields::default();
    let metadata = event.metadata();
    let mut put = |key: &str, value: String| fields.0.insert(key.to_owned(), Value::String(value));
    put("timestamp", node_timestamp().to_string());
    put("level", metadata.level().to_string());
    put("target", metadata.target().to_owned());
    if let Some(span) = current_span() {
        put("trace_id", span.trace_id().to_string());
        put("span_id", span.span_id().to_string());
    }
    event.record(&mut fields);
    let mut line = Value::Object(fields.0).to_string();
    line.push('\n');
    line
}

/// `text`, or its head.
fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST_VALUE {
        return Cow::Borrowed(text);
    }
    let end = (0..=LONGEST_VALUE).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
}

/// The span that is traced and in which this thread now works.
fn current_span() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| span.clone())
    })
}

/// A longer value is cut: what waits in the queue must stay small whatever an error quotes.
const LONGEST_VALUE: usize = 4_096;

/// Writes text without anything that could end the line or speak to a terminal.
struct OneLine<'a>(&'a mut String);

#[derive(Default)]
struct TextFields {
    message: String,
    rest: String,
}

#[derive(Default)]
struct JsonFields(Map<String, Value>);

// === impl OneLine ===

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

// === impl TextFields ===

impl TextFields {
    fn say(&mut self, message: &str) {
        let _ = OneLine(&mut self.message).write_str(&cut(message));
    }

    /// A word stands as it is; anything else in quotes, so that a line can be taken apart.
    fn put(&mut self, field: &Field, value: &str) {
        let value = cut(value);
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
        let _ = if !value.is_empty() && value.chars().all(plain) {
            write!(self.rest, " {field}={value}")
        } else {
            write!(self.rest, " {field}={value:?}")
        };
    }
}

impl Visit for TextFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.say(&format!("{value:?}"));
        } else {
            self.put(field, &format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.say(value);
        } else {
            self.put(field, value);
        }
    }
}

// === impl JsonFields ===

impl JsonFields {
    /// A field never takes the place of what the line itself says.
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            taken @ ("timestamp" | "level" | "target" | "trace_id" | "span_id") => {
                format!("field.{taken}")
            }
            name => name.to_owned(),
        };
        self.0.insert(name, value);
    }
}

impl Visit for JsonFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(cut(&format!("{value:?}")).into_owned()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(cut(value).into_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}
