//! Moves of a whole control plane's objects, end to end: a real etcd, a kube-apiserver's storage
//! over it, real OpenBao, and the daemon in the middle of calls.
//!
//! Each is walked as `docs/migration.md` walks it, checks at each step what must hold there, and
//! keeps what its commands print. So the tests, the page and `lab migrate` are of one piece.

use std::path::Path;

use crate::{Config, DevNode, Result};

/// Ends a move with an error that says `words` unless `holds`.
macro_rules! demand {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            $crate::fail!($($words)*);
        }
    };
}

mod api;
mod keys;
mod plane;
mod plugin;
mod told;
mod version;

pub use told::Told;

use keys::Steps;

/// What moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From one key to another.
    Key,
    /// From a key's version to the next.
    Version,
    /// From Vault to OpenBao, which call the key the same.
    Vault,
    /// From KMS v1 to KMS v2.
    Api,
    /// From another plugin to this one, and to another key.
    Plugin,
}

// === impl Kind ===

impl Kind {
    /// All of them, in the order of the page.
    pub const ALL: [Self; 5] = [Self::Key, Self::Version, Self::Vault, Self::Api, Self::Plugin];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Version => "version",
            Self::Vault => "vault",
            Self::Api => "api",
            Self::Plugin => "plugin",
        }
    }

    /// Its section of the page.
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Key => "## An old key to a new one",
            Self::Version => "## One key to its next version",
            Self::Vault => "## Vault to OpenBao, both with a key of the same name",
            Self::Api => "## KMS v1 to KMS v2",
            Self::Plugin => "## Another plugin to this one",
        }
    }

    /// Moves everything with the daemon's binary; answers what its commands printed.
    ///
    /// # Errors
    /// When something does not hold that must, such as one failed call.
    pub async fn walk(self, daemon: &Path) -> Result<Told> {
        match self {
            Self::Key => Box::pin(key(daemon)).await,
            Self::Version => Box::pin(version::walk(daemon)).await,
            Self::Vault => Box::pin(vault(daemon)).await,
            Self::Api => Box::pin(api::walk(daemon)).await,
            Self::Plugin => Box::pin(plugin::walk(daemon)).await,
        }
    }
}

async fn key(daemon: &Path) -> Result<Told> {
    const OLD: &str = "kube-2025";
    const NEW: &str = "kube-2026";
    let bao = DevNode::start().await?;
    bao.create_keys(&[OLD, NEW]).await?;
    let both = bao.config(&[OLD, NEW]).await?;
    let keys = |keys: &[&str]| both.clone().keys(keys);
    let steps = Steps {
        from: OLD,
        to: NEW,
        start: keys(&[OLD]),
        before: None,
        last: keys(&[OLD, NEW]),
        first: keys(&[NEW, OLD]),
        without: keys(&[NEW]).with("retired", serde_json::json!([OLD])),
    };
    steps.walk(daemon, Told::of(&[("bao", &bao, &both)]), || {}).await
}

async fn vault(daemon: &Path) -> Result<Told> {
    use serde_json::{Value, json};
    let (old, new) = tokio::try_join!(DevNode::start(), DevNode::start())?;
    tokio::try_join!(old.create_keys(&["kube"]), new.create_keys(&["kube"]))?;
    let (at_old, at_new) = (old.config(&["kube"]).await?, new.config(&["kube"]).await?);
    let told = Told::of(&[("vault", &old, &at_old), ("bao", &new, &at_new)]);
    let clusters = [("vault", &at_old), ("bao", &at_new)];
    let both = Config::replicas(&clusters, &["kube"]);
    let from = json!({ "name": "kube", "clusters": ["vault"] });
    let to = json!({ "name": "kube-2026", "transitKey": "kube", "clusters": ["bao"] });
    let keys = |keys: &[&Value]| both.clone().with("keyNames", json!(keys));
    let steps = Steps {
        from: "kube",
        to: "kube-2026",
        start: at_old.clone(),
        before: Some(Config::replicas(&clusters[..1], &[]).with("keyNames", json!([from]))),
        last: keys(&[&from, &to]),
        first: keys(&[&to, &from]),
        without: Config::replicas(&clusters[1..], &[])
            .with("keyNames", json!([to]))
            .with("retired", json!(["kube"])),
    };
    steps.walk(daemon, told, || old.kill()).await
}
