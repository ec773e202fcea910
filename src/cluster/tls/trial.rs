//! Files of certificates that have changed are tried before they are used: a bundle that is
//! sound and belongs to somebody else would cut the cluster off.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::TlsSnapshot;

/// Asks a cluster's addresses what they make of a TLS configuration.
pub trait Ask: Send + Sync + 'static {
    /// The best word that there is.
    fn ask(&self, tls: Arc<TlsSnapshot>) -> BoxFuture<'_, Word>;
}

/// What addresses make of a TLS configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// One of them that could serve answered over it, or there is none that speaks TLS.
    Accepted,
    /// None did, and this is what TLS failed of at one of them.
    Refused(String),
    /// None did, and TLS is not to blame.
    Silent,
}

/// What becomes of files that have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// They are used.
    Take,
    /// Those before them work and they do not, for this reason.
    Leave(String),
    /// Nobody answers who could tell.
    Wait,
}

/// Tries `next`, and if no address accepts it, whether `held` still works.
pub(super) async fn try_out(
    asked: &dyn Ask,
    held: Arc<TlsSnapshot>,
    next: Arc<TlsSnapshot>,
) -> Fate {
    let said = asked.ask(next).await;
    if said == Word::Accepted {
        return Fate::Take;
    }
    match (said, asked.ask(held).await) {
        (Word::Refused(why), Word::Accepted) => Fate::Leave(why),
        (_, Word::Accepted) => Fate::Leave("no address answers over them".to_owned()),
        // Neither works, so what the operator wrote last is the better guess.
        (_, Word::Refused(_)) => Fate::Take,
        _ => Fate::Wait,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::cluster::tls::LoadedTls;
    use crate::config::settings::TlsSettings;

    /// Says one word after the other.
    struct Says(Mutex<Vec<Word>>);

    impl Ask for Says {
        fn ask(&self, _: Arc<TlsSnapshot>) -> BoxFuture<'_, Word> {
            Box::pin(std::future::ready(self.0.lock().unwrap().remove(0)))
        }
    }

    #[tokio::test]
    async fn what_works_stays_until_what_comes_works() {
        use Word::{Accepted, Silent};
        let refused = || Word::Refused("b0: not signed by the CA".into());
        let leave = |why: &str| Fate::Leave(why.into());
        let snapshot = LoadedTls::read(&TlsSettings::default()).unwrap().snapshot();
        for (said, fate) in [
            (vec![Accepted], Fate::Take),
            (vec![refused(), Accepted], leave("b0: not signed by the CA")),
            (vec![Silent, Accepted], leave("no address answers over them")),
            (vec![refused(), refused()], Fate::Take),
            (vec![refused(), Silent], Fate::Wait),
            (vec![Silent, refused()], Fate::Take),
            (vec![Silent, Silent], Fate::Wait),
        ] {
            let asked = Says(Mutex::new(said.clone()));
            let found = try_out(&asked, Arc::clone(&snapshot), Arc::clone(&snapshot)).await;
            assert_eq!(found, fate, "{said:?}");
            assert!(asked.0.lock().unwrap().is_empty(), "{said:?}");
        }
    }
}
