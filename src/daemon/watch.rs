//! Notices that the configuration file holds something else.
//!
//! It reads the file once a second and compares what it holds. That costs a few kilobytes
//! out of the page cache, and works where notifications do not: on network file systems, in
//! containers with a folder mounted from elsewhere, for a file that is replaced by rename
//! and for one behind links of which any may be turned, as those of a ConfigMap are.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// What is new must stay the same for so long: whoever writes it may not be done.
const SETTLED: Duration = Duration::from_millis(300);
/// What is larger is no configuration, and its first bytes tell as much.
const MAX_BYTES: u64 = 2 << 20;

/// What a file holds, as far as it can be told apart; `None` when it cannot be read.
type Content = Option<[u8; 32]>;

/// Follows one file.
#[derive(Debug)]
pub(super) struct FileWatch {
    path: PathBuf,
    /// What it held when the configuration was read last, whatever came of that.
    known: Content,
}

// === impl FileWatch ===

impl FileWatch {
    /// Follows the file at `path` from what it holds now. To be called before it is read for
    /// the first time; a file system that hangs holds it up as that read would be.
    pub(super) fn begin(path: PathBuf) -> Self {
        let known = read(&path);
        Self { path, known }
    }

    /// Takes what the file holds now for known. To be called before it is read as a
    /// configuration: what is written meanwhile is a change then.
    pub(super) async fn note(&mut self) {
        self.known = self.look().await;
    }

    /// Waits until the file holds something else than what is known, and goes on doing so.
    pub(super) async fn changed(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let mut seen = self.look().await;
            while seen != self.known {
                tokio::time::sleep(SETTLED).await;
                let again = self.look().await;
                if again == seen {
                    return;
                }
                seen = again;
            }
        }
    }

    async fn look(&self) -> Content {
        let path = self.path.clone();
        // A file system that hangs holds up a thread beside the calls, and this watch.
        tokio::task::spawn_blocking(move || read(&path)).await.ok()?
    }
}

fn read(path: &Path) -> Content {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(Sha256::digest(&bytes).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn is_seen(watch: &FileWatch) -> bool {
        timeout(LONG, watch.changed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_other_content_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, "a: 1").unwrap();
        let mut watch = FileWatch::begin(path.clone());
        assert!(!is_seen(&watch).await);
        std::fs::write(&path, "a: 1").unwrap();
        assert!(!is_seen(&watch).await, "another time, the same content");
        std::fs::write(&path, "a: 2").unwrap();
        assert!(is_seen(&watch).await);
        watch.note().await;
        assert!(!is_seen(&watch).await, "known by now");

        let next = folder.path().join("next");
        std::fs::write(&next, "a: 3").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert!(is_seen(&watch).await, "replaced by rename");
        watch.note().await;
        std::fs::remove_file(&path).unwrap();
        assert!(is_seen(&watch).await, "gone");
        watch.note().await;
        assert!(!is_seen(&watch).await, "told once");
    }

    /// Two folders and a link to one of them, which the file's own path goes through.
    #[tokio::test(start_paused = true)]
    async fn a_link_on_the_way_that_is_turned_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, content) in [("..1", "a: 1"), ("..2", "a: 2"), ("..3", "a: 2")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("config.yaml"), content).unwrap();
        }
        let turn = |version: &str| {
            symlink(version, at("..data_tmp")).unwrap();
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        turn("..1");
        symlink(Path::new("..data/config.yaml"), at("config.yaml")).unwrap();
        let mut watch = FileWatch::begin(at("config.yaml"));
        assert!(!is_seen(&watch).await);
        turn("..2");
        assert!(is_seen(&watch).await);
        watch.note().await;
        turn("..3");
        assert!(!is_seen(&watch).await, "the same content elsewhere");
    }
}
