//! What several clusters answered together, when none of them did what was asked.

use std::fmt::Write as _;

use crate::config::settings::ClusterName;
use crate::transit::{Refusal, TransitCause, TransitError};

/// Why one of a key's clusters did not do what was asked.
#[derive(Clone, Debug)]
pub struct ClusterFailure {
    /// The cluster.
    pub cluster: ClusterName,
    /// Why.
    pub why: Why,
}

/// See [`ClusterFailure`].
#[derive(Clone, Debug)]
pub enum Why {
    /// It was asked and failed.
    Failed(Box<TransitError>),
    /// It was not asked to encrypt, and why not.
    Unproven(String),
}

/// What each cluster said, as one text.
pub(in crate::transit) fn told(clusters: &[ClusterFailure]) -> String {
    let mut text = String::new();
    for (n, ClusterFailure { cluster, why }) in clusters.iter().enumerate() {
        text.push_str(if n == 0 { "" } else { "; " });
        let _ = match why {
            // its text begins with the cluster
            Why::Failed(error) if matches!(error.cause, TransitCause::Unavailable(_)) => {
                write!(text, "{}", error.cause)
            }
            Why::Failed(error) => write!(text, "cluster {cluster}: {}", error.cause),
            Why::Unproven(why) => write!(text, "cluster {cluster} may not encrypt: {why}"),
        };
    }
    text
}

/// The error of a decrypt that none of the clusters did. It is final only when each of
/// `failed` was asked and refused: one that could not be asked may be the one that can.
pub(super) fn of_decrypt(mut failed: Vec<(ClusterName, TransitError)>) -> Option<TransitError> {
    if !failed.iter().all(|(_, error)| error.is_final()) {
        return together(failed, Vec::new());
    }
    // A cluster whose key may not be used says nothing of the ciphertext, so its words
    // weigh more: nobody shall believe that the ciphertext is bad.
    let weighs = |(_, error): &&(ClusterName, TransitError)| {
        error.refusal().is_some_and(|refusal| !is_about_the_ciphertext(refusal))
    };
    let chosen = failed.iter().position(|failure| weighs(&failure)).unwrap_or(0);
    if failed.is_empty() {
        return None;
    }
    let (cluster, mut error) = failed.remove(chosen);
    if let TransitCause::Refused { address, .. } = &mut error.cause {
        let mut text = format!("cluster {cluster}: {address}");
        for (cluster, other) in &failed {
            let _ = write!(text, "; cluster {cluster}: {}", other.cause);
        }
        *address = text;
    }
    Some(error)
}

/// The error that names every cluster; never a final one.
pub(super) fn together(
    failed: Vec<(ClusterName, TransitError)>,
    not_asked: Vec<ClusterFailure>,
) -> Option<TransitError> {
    let (_, first) = failed.first()?;
    let (mount, key) = (first.mount.clone(), first.key.clone());
    let failed = failed.into_iter().map(|(cluster, error)| {
        let why = Why::Failed(Box::new(error));
        ClusterFailure { cluster, why }
    });
    let cause = TransitCause::Clusters(failed.chain(not_asked).collect());
    Some(TransitError { mount, key, cause })
}

/// Whether a refusal to decrypt says that this key did not write the ciphertext.
const fn is_about_the_ciphertext(refusal: &Refusal) -> bool {
    !matches!(refusal, Refusal::PolicyDenied | Refusal::KeyDeleted | Refusal::Misconfigured(_))
}
