//! Where the daemon shows what it does: admin address, logs, traces.

use std::net::SocketAddr;

use http::Uri;

use super::report::Report;
use super::values::{self, Path};
use crate::config::diagnostics::Place;
use crate::config::load::{Field, OTEL_WHOLE_ENDPOINT};
use crate::config::settings::{LogFormat, LogSettings, OtlpProtocol, TraceSettings};
use crate::telemetry::logs::check_filter;

/// `admin.listen`; `None` inside when it is off.
pub(super) fn admin(report: &mut Report<'_>, file: &Field<'_>) -> Option<Option<SocketAddr>> {
    let field = file.find(&["admin", "listen"])?;
    if field.text() == "off" {
        return Some(None);
    }
    let Ok(address) = field.text().parse::<SocketAddr>() else {
        report.error(
            &field,
            format!("`{}` is no address to listen on", values::shown(field.text())),
            "write an IP address and a port, such as 127.0.0.1:9480, or `off`",
        );
        return None;
    };
    if !address.ip().is_loopback() {
        report.warn(
            &field,
            format!("{address} can be reached from other machines, without a login"),
            "write 127.0.0.1 or [::1], or see that a firewall stands before it",
        );
    }
    Some(Some(address))
}

/// The block `log`.
pub(super) fn log(report: &mut Report<'_>, file: &Field<'_>) -> Option<LogSettings> {
    let filter = file.find(&["log", "level"]).and_then(|field| {
        let text = field.text();
        if check_filter(text).is_err() {
            report.error(
                &field,
                format!("`{}` is no log level", values::shown(text)),
                "write error, warn, info, debug or trace, alone or per module \
                 (info,vault_kms_proxy::cluster=debug)",
            );
            return None;
        }
        Some(text.to_owned())
    });
    let format = file.find(&["log", "format"]).and_then(|field| {
        values::choice(report, &field, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
    });
    Some(LogSettings { filter: filter?, format: format? })
}

/// The block `traces`; `None` inside when it names no endpoint.
pub(super) fn traces(report: &mut Report<'_>, file: &Field<'_>) -> Option<Option<TraceSettings>> {
    let endpoint = file.find(&["traces", "endpoint"]).filter(|field| field.text() != "off");
    let protocol = file.find(&["traces", "protocol"]).map(|field| {
        let choices = [
            ("grpc", OtlpProtocol::Grpc),
            ("http", OtlpProtocol::Http),
            ("http/protobuf", OtlpProtocol::Http),
        ];
        values::choice(report, &field, &choices)
    });
    let sample_ratio = file
        .find(&["traces", "sampleRatio"])
        .and_then(|field| values::number(report, &field, 0.0..=1.0));
    let Some(field) = endpoint else { return Some(None) };
    let endpoint = values::url(report, &field, Path::Allowed, "http://127.0.0.1:4317")?;
    let protocol = match protocol {
        Some(written) => written?,
        // The port that OTLP over HTTP is registered with.
        None if endpoint.port_u16() == Some(4318) => OtlpProtocol::Http,
        None => OtlpProtocol::Grpc,
    };
    let is_whole = matches!(
        field.place(), Some(Place::Environment(name)) if &*name == OTEL_WHOLE_ENDPOINT
    );
    let endpoint = match protocol {
        OtlpProtocol::Http if !is_whole => with_traces_path(endpoint),
        OtlpProtocol::Http => endpoint,
        OtlpProtocol::Grpc => {
            if !matches!(endpoint.path(), "" | "/") {
                let what = format!("OTLP over gRPC knows no path; {} is ignored", endpoint.path());
                let advice = "leave it out, or write `http` in traces.protocol";
                report.warn(&field, what, advice);
            }
            endpoint
        }
    };
    Some(Some(TraceSettings { endpoint, protocol, sample_ratio: sample_ratio? }))
}

/// The path that OTLP over HTTP appends to a base URL.
fn with_traces_path(base: Uri) -> Uri {
    let text = base.to_string();
    let text = text.trim_end_matches('/');
    if text.ends_with("/v1/traces") {
        return base;
    }
    // What was a URL still is one with a path behind it.
    format!("{text}/v1/traces").parse().unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_otlp_over_http_is_appended_once() {
        for (base, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel/tenant/a/", "https://otel/tenant/a/v1/traces"),
            ("https://otel/v1/traces", "https://otel/v1/traces"),
        ] {
            assert_eq!(with_traces_path(base.parse().unwrap()), url);
        }
    }
}
