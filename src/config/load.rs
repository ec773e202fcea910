//! Reads the sources and merges them: defaults, then the file, then the environment,
//! then flags. `resolve` turns the result into [`Settings`].

mod environment;
mod layer;
mod places;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use figment::Figment;
use serde::{Deserialize, Serialize};

use super::diagnostics::{Place, Problem, Problems};
use super::file::conform::conform;
use super::file::schema::FILE;
use super::file::{self, Node};
use super::resolve::files::{FileFacts, Files};
use super::resolve::resolve;
use super::settings::Settings;
use super::written::Written;

pub(super) use environment::OTEL_WHOLE_ENDPOINT;
pub(super) use layer::{Field, Layer, Merged};
pub use places::Places;

/// Everything that a configuration is made from; a pure input.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file; without one, the environment and the flags must say all.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// Command-line flags.
    pub flags: Flags,
    /// How strictly the file is read.
    pub form: FileForm,
}

/// The flags that override the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Flags {
    /// `socket.path`.
    pub socket: Option<String>,
    /// `log.level`.
    pub log_level: Option<String>,
    /// `log.format`.
    pub log_format: Option<String>,
    /// `admin.listen`.
    pub admin_listen: Option<String>,
    /// `stateDir`.
    pub state_dir: Option<String>,
}

/// Whose file it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileForm {
    /// Ours: everything that is not understood is refused.
    #[default]
    Ours,
    /// The Oracle plugin's, which came through its flags: what that plugin took is taken,
    /// with warnings.
    Oracle,
}

/// An accepted configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the daemon runs on.
    pub settings: Settings,
    /// What an operator should know about it, in the order of the file.
    pub warnings: Vec<Problem>,
    /// What the file says; `None` when there is none.
    pub written: Option<Written>,
    /// Where it was written.
    pub places: Places,
}

/// What holds where nothing else is written.
pub(super) const DEFAULTS: &str = include_str!("defaults.yaml");

/// Reads, merges and resolves. Nothing is changed anywhere: the configuration file is
/// read, and the files that it names are looked at but not opened.
///
/// # Errors
/// Every problem that makes the configuration unusable, and the warnings beside them.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    load_with(sources, &super::resolve::files::OnDisk)
}

pub(super) fn load_with(sources: &Sources, files: &dyn Files) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let mut file_mode = None;
    let mut written = None;
    let mut merged = Figment::new();
    let mut layers = Vec::new();
    let mut merge = |layer: Layer| {
        merged = std::mem::take(&mut merged).merge(&layer);
        layers.push(layer);
    };

    let defaults = file::parse_flow(DEFAULTS, &Place::Default, &mut problems);
    merge(Layer::new("defaults", defaults));
    if let Some(path) = &sources.file {
        let read = read(path, files, &mut problems).and_then(|(bytes, mode)| {
            file_mode = Some(mode);
            file::parse(path, &bytes, &mut problems)
        });
        let Some(root) = read else { return Err(Problems::new(problems)) };
        let root = conform(root, FILE, sources.form, &mut problems);
        written = Some(Written::of(&root));
        merge(Layer::new("file", Some(root)));
    }
    let own = environment::own(&sources.environment, &mut problems);
    merge(Layer::new("environment", Some(own)));
    merge(Layer::new("flags", Some(sources.flags.tree(sources.form))));

    let so_far = Merged::new(&merged, &layers);
    let ambient = environment::ambient(&sources.environment, &so_far, &mut problems);
    let ambient = Layer::new("tools' environment", Some(ambient));
    merged = merged.join(&ambient);
    layers.push(ambient);

    let merged = Merged::new(&merged, &layers);
    let whole = sources.file.as_deref().map(|path| Place::File(path.into()));
    let settings = resolve(&merged, sources.form, whole.clone(), file_mode, files, &mut problems);
    match settings {
        Some(settings) if !problems.iter().any(Problem::is_error) => {
            let warnings = Problems::new(problems).into_inner();
            let places = Places::of(&merged, whole);
            Ok(Loaded { settings, warnings, written, places })
        }
        _ => Err(Problems::new(problems)),
    }
}

/// The file's bytes and its permission bits.
fn read(path: &Path, files: &dyn Files, problems: &mut Vec<Problem>) -> Option<(Vec<u8>, u32)> {
    let place = || Some(Place::File(path.into()));
    let mut refuse = |what: String, advice: &str| {
        problems.push(Problem::error("", place(), what, advice));
        None
    };
    match files.look(path) {
        FileFacts::Missing => refuse(
            "there is no such file".to_owned(),
            "give the path of the configuration file; config/vault-plugin.yaml is an example",
        ),
        FileFacts::Folder => refuse(
            "this is a folder, not a file".to_owned(),
            "give the path of the configuration file in it",
        ),
        FileFacts::Special => refuse(
            "this is not a regular file".to_owned(),
            "give the path of the configuration file",
        ),
        FileFacts::Unreadable(why) => {
            refuse(format!("the file cannot be read: {why}"), READABLE_ADVICE)
        }
        FileFacts::Readable { mode } => {
            let mut bytes = Vec::new();
            // One byte more than a configuration may have shows that it has too many.
            let limit = file::MAX_BYTES as u64 + 1;
            match std::fs::File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes)) {
                Ok(_) => Some((bytes, mode)),
                Err(error) => refuse(format!("the file cannot be read: {error}"), READABLE_ADVICE),
            }
        }
    }
}

const READABLE_ADVICE: &str =
    "make it readable for the user that the daemon runs as (chown, or chgrp and chmod 0640)";

// === impl Sources ===

/// Shows the names of variables and not their values, which hold tokens.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, environment, flags, form } = self;
        let names: Vec<_> = environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("Sources")
            .field("file", file)
            .field("environment", &names)
            .field("flags", flags)
            .field("form", form)
            .finish()
    }
}

// === impl Flags ===

impl Flags {
    fn tree(&self, form: FileForm) -> Node {
        let socket_flag = if form == FileForm::Oracle { "-socketFile" } else { "--socket" };
        let Self { socket, log_level, log_format, admin_listen, state_dir } = self;
        let flags: [(&'static str, &[&str], &Option<String>); 5] = [
            (socket_flag, &["socket", "path"], socket),
            ("--log-level", &["log", "level"], log_level),
            ("--log-format", &["log", "format"], log_format),
            ("--admin-listen", &["admin", "listen"], admin_listen),
            ("--state-dir", &["stateDir"], state_dir),
        ];
        let mut root = Node::block(Place::Flag("--"));
        for (name, path, value) in flags {
            if let Some(value) = value {
                let path: Vec<_> = path.iter().map(|&key| key.to_owned()).collect();
                root.insert(&path, Node::text(value, Place::Flag(name)));
            }
        }
        root
    }
}
