//! What etcd's refusals mean, and what an operator can do about them.

use std::error::Error as _;
use std::io;

use tonic::{Code, Status};

use super::Revision;
use crate::cluster::http::{explain_io, find, innermost};
use crate::cluster::tls::{self, TlsError};

/// Why etcd could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// There is nobody to ask.
    #[error("there is no etcd to ask: write its members with --endpoints")]
    NoEndpoint,
    /// A certificate's file cannot be used.
    #[error("etcd's certificates: {0}")]
    Tls(#[from] TlsError),
    /// No member answered.
    #[error("no etcd member answers: {0}")]
    NoAnswer(String),
    /// etcd has dropped the history that the revision belongs to.
    #[error(
        "etcd has compacted revision {0} away while it was read (kube-apiserver does that every \
         five minutes)"
    )]
    Compacted(Revision),
    /// So many keys do not fit into one answer.
    #[error("an answer of etcd with {limit} keys is larger than can be taken")]
    TooLarge {
        /// How many keys were asked for.
        limit: u32,
    },
    /// They are not members of one etcd.
    #[error(
        "{member} belongs to another etcd cluster than {other}; write the members of one, and \
         read each cluster by itself"
    )]
    TwoClusters {
        /// The URL of one.
        member: String,
        /// The URL of one that was asked before.
        other: String,
    },
    /// A member refused.
    #[error("{member} refuses: {message}")]
    Refused {
        /// Its URL.
        member: String,
        /// What it said, and what to do.
        message: String,
    },
}

/// What follows from a member's failure.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The others would say the same.
    Final(EtcdError),
    /// Another one, or this one later, may answer; for this reason it did not.
    AskAnother(String),
}

/// Judges what `member` answered to a question of `limit` keys at `revision`. `anonymous`: we
/// have shown it no certificate.
pub(super) fn judge(
    member: &str,
    status: &Status,
    (revision, limit): (i64, i64),
    anonymous: bool,
) -> Verdict {
    let said = status.message();
    let refused =
        |message| Verdict::Final(EtcdError::Refused { member: member.to_owned(), message });
    if status.source().is_some() {
        return Verdict::AskAnother(connection(status, anonymous));
    }
    match status.code() {
        Code::OutOfRange if said.contains("compacted") => {
            Verdict::Final(EtcdError::Compacted(Revision(revision)))
        }
        // The first is ours, the second that of the member's own gRPC.
        Code::OutOfRange if said.contains("message length too large") => too_large(limit),
        Code::ResourceExhausted if said.contains("larger than max") => too_large(limit),
        Code::InvalidArgument if said.contains("user name is empty") => refused(format!(
            "{said}. This etcd has users; show a client certificate (--cert, --key) whose common \
             name is a user that may read"
        )),
        Code::PermissionDenied | Code::Unauthenticated => refused(format!(
            "{said}. The client certificate's user must be allowed to read all keys under the \
             prefix"
        )),
        Code::Unimplemented => {
            refused(format!("{said}. Does etcd's v3 API listen there (usually port 2379)?"))
        }
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition => {
            refused(said.to_owned())
        }
        _ => Verdict::AskAnother(said.to_owned()),
    }
}

fn too_large(limit: i64) -> Verdict {
    Verdict::Final(EtcdError::TooLarge { limit: limit.try_into().unwrap_or(u32::MAX) })
}

/// Why there is no connection.
fn connection(status: &Status, anonymous: bool) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
    match find::<Tls>(status) {
        Some(Tls::InvalidCertificate(Bad::UnknownIssuer)) => {
            return "its certificate is not signed by the CA in --cacert".to_owned();
        }
        Some(Tls::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure)) => {
            return "it asks for a client certificate; give --cert and --key".to_owned();
        }
        Some(Tls::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateExpired
            | Alert::CertificateUnknown),
        )) => return format!("it does not accept the certificate in --cert ({alert:?})"),
        Some(Tls::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        )) => {
            return "its certificate is for another name; write --endpoints with a name or an \
                    address that it carries"
                .to_owned();
        }
        Some(other) => return tls::explain(other),
        None => {}
    }
    let why = match find::<io::Error>(status) {
        Some(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            return explain_io(cause);
        }
        Some(cause) => explain_io(cause),
        None => innermost(status).to_string(),
    };
    // With TLS 1.3 a server refuses after the handshake, and its reason may be lost with the
    // connection that it closes.
    if anonymous {
        return format!("{why} (if it asks for a client certificate, give --cert and --key)");
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: Code, said: &str) -> Verdict {
        judge("https://a:2379", &Status::new(code, said), (42, 500), false)
    }

    #[test]
    fn what_every_member_would_say_ends_the_question() {
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        match judged(Code::OutOfRange, compacted) {
            Verdict::Final(EtcdError::Compacted(Revision(42))) => {}
            other => panic!("{other:?}"),
        }
        let ours = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        for (code, said) in [
            (Code::OutOfRange, ours),
            (Code::ResourceExhausted, "grpc: trying to send message larger than max (9 vs. 8)"),
        ] {
            match judged(code, said) {
                Verdict::Final(EtcdError::TooLarge { limit: 500 }) => {}
                other => panic!("{other:?}"),
            }
        }
        match judged(Code::PermissionDenied, "etcdserver: permission denied") {
            Verdict::Final(error) => {
                let told = error.to_string();
                assert!(told.starts_with("https://a:2379 refuses: etcdserver: perm"), "{told}");
            }
            other @ Verdict::AskAnother(_) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_without_a_leader_is_passed_over() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown] {
            match judged(code, "etcdserver: no leader") {
                Verdict::AskAnother(why) => assert_eq!(why, "etcdserver: no leader"),
                other @ Verdict::Final(_) => panic!("{other:?}"),
            }
        }
    }
}
