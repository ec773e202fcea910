//! The configuration from the outside: a file in, settings or messages out.

mod accepted;
mod changes;
mod documents;
mod hostile;
mod oracle;
mod refused;
mod sources;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::load::load_with;
use super::resolve::files::{FileFacts, Files, OnDisk};
use super::{FileForm, Flags, Loaded, Problems, Sources};

/// The shortest file that works.
const FLAT: &str = "keyNames: [kube]\naddr: https://v:8200\ntokenFile: /t\n";

/// A configuration file in a folder of its own, and what else `load` is given.
struct Case {
    _folder: tempfile::TempDir,
    sources: Sources,
    files: Pretended,
}

/// The configuration file is real. Any other path is a private file, or a folder below
/// `/var/lib`, unless the test says what it is.
struct Pretended {
    config: PathBuf,
    facts: HashMap<PathBuf, FileFacts>,
}

// === impl Case ===

impl Case {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join(name);
        std::fs::write(&config, content).unwrap();
        let case = Self {
            _folder: folder,
            sources: Sources { file: Some(config.clone()), ..Sources::default() },
            files: Pretended { config, facts: HashMap::new() },
        };
        case.config_mode(0o600)
    }

    fn yaml(content: &str) -> Self {
        Self::new("vkp.yaml", content)
    }

    fn config_mode(self, mode: u32) -> Self {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&self.files.config, permissions).unwrap();
        self
    }

    fn oracle(mut self) -> Self {
        self.sources.form = FileForm::Oracle;
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flags(mut self, flags: Flags) -> Self {
        self.sources.flags = flags;
        self
    }

    fn file(mut self, path: &str, facts: FileFacts) -> Self {
        self.files.facts.insert(path.into(), facts);
        self
    }

    fn load(&self) -> Result<Loaded, Problems> {
        load_with(&self.sources, &self.files)
    }

    #[track_caller]
    fn accepted(&self) -> Loaded {
        self.load().unwrap_or_else(|problems| panic!("refused:\n{problems}"))
    }

    /// All messages, with the folder of the file cut off.
    #[track_caller]
    fn refused(&self) -> String {
        let text = match self.load() {
            Ok(loaded) => panic!("accepted: {loaded:?}"),
            Err(problems) => problems.to_string(),
        };
        self.without_folder(&text)
    }

    fn warnings(&self) -> Vec<String> {
        let warnings = self.accepted().warnings;
        warnings.iter().map(|warning| self.without_folder(&warning.to_string())).collect()
    }

    fn without_folder(&self, text: &str) -> String {
        let folder = self.files.config.parent().unwrap();
        text.replace(&format!("{}/", folder.display()), "")
    }
}

// === impl Pretended ===

impl Files for Pretended {
    fn look(&self, path: &Path) -> FileFacts {
        if path == self.config {
            return OnDisk.look(path);
        }
        let fallback = if path.starts_with("/var/lib") {
            FileFacts::Folder
        } else {
            FileFacts::Readable { mode: 0o600 }
        };
        self.facts.get(path).cloned().unwrap_or(fallback)
    }

    fn is_open_to_all(&self, folder: &Path) -> bool {
        folder == Path::new("/tmp")
    }
}
