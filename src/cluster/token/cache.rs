//! A token in a file, so that a restart survives a time when nobody can log in.
//!
//! Nodes without a quorum still encrypt and decrypt, but log nobody in: a daemon that is
//! restarted then would have everything but a token. The file is a secret. It is closed
//! to others, it is refused where others could have put it, and it should be on tmpfs, so
//! that the token ends with the machine. It is believed only for the addresses and the way
//! to log in that it was written for: a token must not be shown to another Vault.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::lease::Lease;
use crate::blocking;
use crate::clock::{UnixSeconds, node_time};
use crate::config::settings::ClusterSettings;

/// The form of the file.
const FORMAT: u32 = 1;

/// Far more than a token takes.
const MAX_BYTES: u64 = 64 * 1024;

/// How long the file may take; a hung mount must not hold the token's task.
const WITHIN: Duration = Duration::from_secs(5);

/// What `statfs` calls tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The file of one cluster.
#[derive(Clone, Debug)]
pub(super) struct TokenCache {
    path: PathBuf,
    /// What the cluster is, before the login is added.
    cluster: Sha256,
}

/// Tells the tokens of one cluster and login from all others, and tells neither.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct BelongsTo(String);

/// A token that an earlier process left.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) token: SecretString,
    pub(super) lease: Lease,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Content<'a> {
    format: u32,
    belongs_to: BelongsTo,
    /// Borrowed, so that the only copies are the buffer that is wiped and the secret: no
    /// token that Vault makes holds what JSON escapes.
    token: &'a str,
    /// By this machine's clock; absent when it never expires.
    expires: Option<i64>,
    granted: u64,
    renewable: bool,
}

// === impl TokenCache ===

impl TokenCache {
    /// The cache that `settings` name.
    pub(super) fn of(settings: &ClusterSettings) -> Option<Self> {
        let path = settings.token_cache.clone()?;
        let mut addresses: Vec<_> = settings.addresses.iter().map(ToString::to_string).collect();
        addresses.sort();
        let namespace = settings.auth_namespace.clone().unwrap_or_default();
        let mut cluster = Sha256::new_with_prefix("vault-kms-proxy/token-cache/v1");
        for text in addresses.iter().chain([&namespace]) {
            add(&mut cluster, text);
        }
        Some(Self { path, cluster })
    }

    /// Whose tokens those of `login` are, which tells one way to log in from another.
    pub(super) fn belongs_to(&self, login: &str) -> BelongsTo {
        let mut digest = self.cluster.clone();
        add(&mut digest, login);
        BelongsTo(hex::encode(digest.finalize()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The token that is there, which must be `owner`'s; `None` when there is no file.
    ///
    /// # Errors
    /// When what is there must not or cannot be used; the text says why.
    pub(super) async fn read(&self, owner: BelongsTo) -> Result<Option<Cached>, String> {
        let this = self.clone();
        blocking(&self.path, move || this.read_now(&owner, node_time())).await
    }

    /// Replaces what is there by a token of `owner`.
    ///
    /// # Errors
    /// When it cannot be; the text says why.
    pub(super) async fn write(
        &self,
        owner: BelongsTo,
        token: &SecretString,
        lease: Option<Lease>,
    ) -> Result<(), String> {
        let (this, token) = (self.clone(), token.clone());
        blocking(&self.path, move || this.write_now(owner, &token, lease, node_time())).await
    }

    /// Removes what is there.
    pub(super) async fn remove(&self) {
        let path = self.path.clone();
        let work = move || std::fs::remove_file(path).map_err(|e| e.to_string());
        let _ = blocking(&self.path, work).await;
    }

    /// Whether the file lies in memory, or in an unknown place.
    pub(super) async fn is_in_memory(&self) -> bool {
        let folder = self.folder().to_owned();
        let ask = move || rustix::fs::statfs(&folder).map_err(|e| e.to_string());
        let kind = blocking(&self.path, ask).await;
        // The type's width and sign differ between machines; the number does not.
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
        kind.map_or(true, |kind| IN_MEMORY.contains(&(kind.f_type as u64 & 0xffff_ffff)))
    }

    fn read_now(&self, owner: &BelongsTo, now: UnixSeconds) -> Result<Option<Cached>, String> {
        self.check_folder()?;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let facts = file.metadata().map_err(|error| error.to_string())?;
        if !facts.is_file() {
            return Err("it is not a regular file".into());
        }
        if facts.uid() != rustix::process::geteuid().as_raw() {
            return Err(format!("it belongs to user {}, not to this one", facts.uid()));
        }
        if facts.mode() & 0o077 != 0 {
            return Err(format!("others may read or change it (mode {:o})", facts.mode() & 0o777));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(4_096));
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| error.to_string())?;
        parse(&text, owner, now).map(Some)
    }

    fn write_now(
        &self,
        owner: BelongsTo,
        token: &SecretString,
        lease: Option<Lease>,
        now: UnixSeconds,
    ) -> Result<(), String> {
        self.check_folder()?;
        let content = Content {
            format: FORMAT,
            belongs_to: owner,
            token: token.expose_secret(),
            expires: lease.and_then(|lease| lease.ttl).map(|ttl| now.plus(ttl).0),
            granted: lease.map_or(0, |lease| lease.granted.as_secs()),
            renewable: lease.is_some_and(|lease| lease.renewable),
        };
        let mut text = Zeroizing::new(Vec::with_capacity(4_096));
        serde_json::to_writer(&mut *text, &content).map_err(|error| error.to_string())?;
        self.replace(&text).map_err(|error| error.to_string())
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".new");
        let next = self.folder().join(name);
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.path)?;
        File::open(self.folder())?.sync_all()
    }

    /// Where others may write, they may put a token of their own into our hands.
    fn check_folder(&self) -> Result<(), String> {
        let folder = self.folder();
        let facts = std::fs::metadata(folder)
            .map_err(|error| format!("{}: {error}; make it, mode 0700", folder.display()))?;
        if facts.mode() & 0o002 != 0 {
            return Err(format!(
                "everybody may write to {}; put tokenCache into a folder of the daemon's own",
                folder.display()
            ));
        }
        Ok(())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

fn parse(text: &[u8], owner: &BelongsTo, now: UnixSeconds) -> Result<Cached, String> {
    // What the parser says may quote the token.
    let content: Content<'_> =
        serde_json::from_slice(text).map_err(|_| "it holds no token in our form".to_owned())?;
    if content.format != FORMAT {
        return Err(format!("its format is {}, this version reads {FORMAT}", content.format));
    }
    if content.belongs_to != *owner {
        return Err("its token is for other addresses or another way to log in".into());
    }
    if content.token.is_empty() || !content.token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("it holds no token".into());
    }
    let ttl = match content.expires {
        None => None,
        Some(expires) => match u64::try_from(expires.saturating_sub(now.0)) {
            Ok(left) if left > 0 => Some(Duration::from_secs(left)),
            Ok(_) | Err(_) => return Err("its token has expired".into()),
        },
    };
    let granted = Duration::from_secs(content.granted);
    // A clock that was set back must not lend the token a longer life than it was given.
    let ttl = ttl.map(|ttl| ttl.min(granted));
    let lease = Lease { ttl, granted, renewable: content.renewable, uses: 0 };
    Ok(Cached { token: SecretString::from(content.token), lease })
}

fn add(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_be_bytes());
    digest.update(text);
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    blocking::at(path, WITHIN, work).await.unwrap_or_else(|why| Err(why.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cluster::testing::{app_role, settings};

    const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
    const TOKEN: &str = "hvs.CAESIJcachedtoken";

    fn lease(ttl: Option<u64>) -> Lease {
        let ttl = ttl.map(Duration::from_secs);
        Lease { ttl, granted: Duration::from_secs(3_600), renewable: true, uses: 0 }
    }

    fn cache(folder: &tempfile::TempDir) -> TokenCache {
        let mut settings = ClusterSettings::clone(&settings(app_role()));
        settings.token_cache = Some(folder.path().join("token"));
        TokenCache::of(&settings).unwrap()
    }

    fn ours(cache: &TokenCache) -> BelongsTo {
        cache.belongs_to("appRole approle kms")
    }

    fn look(cache: &TokenCache, now: UnixSeconds) -> Result<Option<Cached>, String> {
        cache.read_now(&ours(cache), now)
    }

    fn write(cache: &TokenCache, ttl: Option<u64>) {
        cache.write_now(ours(cache), &TOKEN.into(), Some(lease(ttl)), NOW).unwrap();
    }

    #[test]
    fn what_was_written_is_read_with_the_life_that_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        assert!(look(&cache, NOW).unwrap().is_none());
        for ttl in [None, Some(600)] {
            write(&cache, ttl);
            let read = look(&cache, NOW.plus(Duration::from_secs(100))).unwrap().unwrap();
            assert_eq!(read.token.expose_secret(), TOKEN);
            assert_eq!(read.lease, lease(ttl.map(|ttl| ttl - 100)));
        }
        let mode = std::fs::metadata(cache.path()).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_expired_or_belongs_elsewhere_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        write(&cache, Some(600));
        let late = NOW.plus(Duration::from_secs(600));
        assert_eq!(look(&cache, late).unwrap_err(), "its token has expired");
        // A clock that was set back does not make it live longer.
        let early = UnixSeconds(NOW.0 - 1_000_000);
        let read = look(&cache, early).unwrap().unwrap();
        assert_eq!(read.lease.ttl, Some(Duration::from_secs(3_600)));

        let mut settings = ClusterSettings::clone(&settings(app_role()));
        settings.token_cache = Some(cache.path().to_owned());
        for change in [
            |s: &mut ClusterSettings| s.addresses.push("https://b1:8200".parse().unwrap()),
            |s: &mut ClusterSettings| s.addresses = vec!["https://b1:8200".parse().unwrap()],
            |s: &mut ClusterSettings| s.auth_namespace = None,
        ] {
            let mut other = settings.clone();
            change(&mut other);
            let other = TokenCache::of(&other).unwrap();
            let refused = look(&other, NOW).unwrap_err();
            assert!(refused.contains("other addresses"), "{refused}");
        }
        let other = cache.belongs_to("appRole approle other");
        assert!(cache.read_now(&other, NOW).is_err());
    }

    #[test]
    fn a_file_or_a_folder_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        write(&cache, None);
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(cache.path(), 0o640);
        assert!(look(&cache, NOW).unwrap_err().contains("mode 640"));
        allow(cache.path(), 0o600);
        allow(folder.path(), 0o1777);
        for refused in [
            look(&cache, NOW).map(drop).unwrap_err(),
            cache.write_now(ours(&cache), &TOKEN.into(), None, NOW).unwrap_err(),
        ] {
            assert!(refused.starts_with("everybody may write to"), "{refused}");
        }
        allow(folder.path(), 0o700);
        let elsewhere = folder.path().join("elsewhere");
        std::fs::rename(cache.path(), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, cache.path()).unwrap();
        assert!(look(&cache, NOW).is_err(), "a link may lead anywhere");
    }

    #[test]
    fn what_cannot_be_understood_is_told_without_a_byte_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        write(&cache, None);
        let whole = std::fs::read_to_string(cache.path()).unwrap();
        let mut bad: Vec<String> = (0..whole.len()).map(|n| whole[..n].to_owned()).collect();
        bad.push(whole.replace("\"format\":1", "\"format\":2"));
        bad.push(r#"{"format":1,"token":5}"#.to_owned());
        for text in bad {
            let why = parse(text.as_bytes(), &ours(&cache), NOW).unwrap_err();
            assert!(!why.contains("hvs"), "{why}");
        }
    }
}
