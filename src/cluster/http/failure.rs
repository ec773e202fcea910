//! Why an exchange failed, in the words of an operator.

use std::error::Error as StdError;
use std::io;

use hyper_util::client::legacy::Error as ClientError;

use super::dial::Served;
use crate::cluster::error::Fault;
use crate::cluster::tls;

/// Why one exchange failed, and whether its connection was closed before it began.
pub(super) struct Failure {
    pub(super) fault: Fault,
    pub(super) pooled_connection_was_closed: bool,
}

// === impl Failure ===

impl Failure {
    /// A failure after the answer began: its connection was in order.
    pub(super) const fn fresh(fault: Fault) -> Self {
        Self { fault, pooled_connection_was_closed: false }
    }

    /// Of an answer that broke off.
    pub(super) fn of_body(error: &hyper::Error) -> Self {
        Self::fresh(explain_body(error))
    }

    /// Of a request without an answer.
    pub(super) fn of_client(error: ClientError) -> Self {
        let mut extensions = http::Extensions::new();
        if let Some(connection) = error.connect_info() {
            connection.get_extras(&mut extensions);
        }
        let reused = extensions.get::<Served>().is_some_and(Served::has);
        let hyper = find::<hyper::Error>(&error);
        let never_sent = hyper.is_some_and(hyper::Error::is_canceled);
        let broke = hyper.is_some_and(hyper::Error::is_incomplete_message)
            || find::<io::Error>(&error).is_some_and(is_disconnect);
        let fault = explain_client(&error, never_sent);
        Self {
            pooled_connection_was_closed: reused
                && !matches!(fault, Fault::Tls(_))
                && (never_sent || broke),
            fault,
        }
    }
}

fn explain_body(error: &hyper::Error) -> Fault {
    let cut_short = find::<io::Error>(error).map_or_else(
        || "the connection ended in the middle of it".to_owned(),
        |cause| format!("the connection broke in the middle of it ({})", explain_io(cause)),
    );
    Fault::Broken(cut_short)
}

fn explain_client(error: &ClientError, never_sent: bool) -> Fault {
    if let Some(cause) = find::<rustls::Error>(error) {
        return Fault::Tls(tls::explain(cause));
    }
    let io = find::<io::Error>(error);
    if error.is_connect() {
        return Fault::Unreachable(match io {
            Some(cause) => format!("cannot connect: {}", explain_io(cause)),
            None => format!("cannot connect: {}", innermost(error)),
        });
    }
    if never_sent {
        return Fault::Unreachable("the connection was closed before the request".into());
    }
    match (io, find::<hyper::Error>(error)) {
        (Some(cause), _) => Fault::Connection(format!("connection broke: {}", explain_io(cause))),
        (None, Some(e)) if e.is_incomplete_message() => {
            Fault::Connection("the connection was closed before an answer".into())
        }
        (None, Some(e)) if e.is_parse() => Fault::Broken(format!("not HTTP: {e}")),
        _ => Fault::Connection(format!("connection broke: {}", innermost(error))),
    }
}

/// The kinds of I/O error in the words that an operator knows from other tools.
pub(crate) fn explain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        io::ErrorKind::TimedOut => "timed out".into(),
        io::ErrorKind::UnexpectedEof => "the peer closed the connection".into(),
        _ => innermost(error).to_string(),
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
    )
}

/// The first `T` among an error and its causes; looks inside `io::Error`, whose `source`
/// skips the error that it wraps.
pub(crate) fn find<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = cause_of(error);
    }
    None
}

pub(crate) fn innermost<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut last = error;
    while let Some(cause) = cause_of(last) {
        last = cause;
    }
    last
}

fn cause_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}
