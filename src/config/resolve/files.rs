//! A look at the files that a configuration names, without opening them.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Access, access};

/// What a look at a path shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) enum FileFacts {
    /// A regular file that this process may read, and its permission bits.
    Readable {
        /// The permission bits.
        mode: u32,
    },
    /// Something that this process may not read, and why.
    Unreadable(String),
    /// A folder.
    Folder,
    /// A device, a pipe or a socket.
    Special,
    /// Nothing.
    Missing,
}

/// Looks at paths; tests put their own facts in its place.
pub(in crate::config) trait Files {
    /// What there is at `path`; symbolic links are followed.
    fn look(&self, path: &Path) -> FileFacts;

    /// Whether `folder` is one that everybody may write to.
    fn is_open_to_all(&self, folder: &Path) -> bool;
}

/// The real ones.
#[derive(Debug)]
pub(in crate::config) struct OnDisk;

/// The permission bits that let others than owner and group read or change a file.
pub(in crate::config) const OTHERS: u32 = 0o006;

// === impl OnDisk ===

impl Files for OnDisk {
    fn look(&self, path: &Path) -> FileFacts {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return FileFacts::Missing,
            Err(error) => return FileFacts::Unreadable(error.to_string()),
        };
        if metadata.is_dir() {
            return FileFacts::Folder;
        }
        if !metadata.is_file() {
            return FileFacts::Special;
        }
        match access(path, Access::READ_OK) {
            Ok(()) => FileFacts::Readable { mode: metadata.mode() & 0o7777 },
            Err(error) => FileFacts::Unreadable(std::io::Error::from(error).to_string()),
        }
    }

    fn is_open_to_all(&self, folder: &Path) -> bool {
        std::fs::metadata(folder).is_ok_and(|facts| facts.mode() & 0o002 != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn each_kind_of_path_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        let permissions = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(at("file"), permissions).unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink(at("nothing"), at("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(OnDisk.look(&at("file")), FileFacts::Readable { mode: 0o640 });
        assert_eq!(OnDisk.look(&at("link")), FileFacts::Readable { mode: 0o640 });
        assert_eq!(OnDisk.look(&at("dangling")), FileFacts::Missing);
        assert_eq!(OnDisk.look(&at("nothing")), FileFacts::Missing);
        assert_eq!(OnDisk.look(&at("socket")), FileFacts::Special);
        assert_eq!(OnDisk.look(folder.path()), FileFacts::Folder);
        assert!(matches!(OnDisk.look(&at("file/below")), FileFacts::Unreadable(_)));
    }
}
