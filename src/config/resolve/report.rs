//! What the readers of single values share: where problems go, and how strict to be.

use std::path::{Path, PathBuf};

use super::files::{FileFacts, Files, OTHERS};
use super::values::shown;
use crate::config::diagnostics::{Place, Problem};
use crate::config::load::{Field, FileForm};

/// Collects problems while values are read.
pub(super) struct Report<'a> {
    /// How strict to be.
    pub(super) form: FileForm,
    /// Looks at files.
    pub(super) files: &'a dyn Files,
    /// The configuration file, for what is missing from it.
    pub(super) whole: Option<Place>,
    /// The configuration file's permission bits.
    pub(super) file_mode: Option<u32>,
    /// What was found so far.
    pub(super) problems: &'a mut Vec<Problem>,
}

/// Whether a file's permission bits must keep others out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A secret.
    Secret,
    /// Something that anybody may know.
    Public,
}

// === impl Report ===

impl Report<'_> {
    /// `field` makes the configuration unusable.
    pub(super) fn error(
        &mut self,
        field: &Field<'_>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.problems.push(Problem::error(field.path(), field.place(), what, advice));
    }

    /// `field` is worth a word.
    pub(super) fn warn(
        &mut self,
        field: &Field<'_>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.problems.push(Problem::warning(field.path(), field.place(), what, advice));
    }

    /// An error in our own form, a warning in the Oracle form, whose plugin took it.
    pub(super) fn refuse_unless_oracle(
        &mut self,
        field: &Field<'_>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        match self.form {
            FileForm::Ours => self.error(field, what, advice),
            FileForm::Oracle => self.warn(field, what, advice),
        }
    }

    /// Something is missing from the file.
    pub(super) fn missing(
        &mut self,
        key_path: impl Into<String>,
        place: Option<Place>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let place = place.or_else(|| self.whole.clone());
        self.problems.push(Problem::error(key_path, place, what, advice));
    }

    /// A path that does not depend on where the daemon was started.
    pub(super) fn path(&mut self, field: &Field<'_>, holds: Holds) -> PathBuf {
        let path = PathBuf::from(field.text());
        if !path.is_absolute() {
            // A secret may have been written where the path of its file belongs.
            let what = match holds {
                Holds::Public => format!("`{}` is a relative path", shown(field.text())),
                Holds::Secret => "this is a relative path, or no path at all".to_owned(),
            };
            self.refuse_unless_oracle(
                field,
                what,
                "write the whole path, from `/`: where the daemon starts must not matter",
            );
        }
        path
    }

    /// The path of a file that is there and can be read.
    pub(super) fn file(&mut self, field: &Field<'_>, holds: Holds) -> PathBuf {
        let path = self.path(field, holds);
        if !path.is_absolute() && (self.form == FileForm::Ours || holds == Holds::Secret) {
            return path; // looking there would say nothing, or show too much
        }
        let facts = self.files.look(&path);
        self.judge(field, &path, &facts, holds);
        path
    }

    /// The path of a file that somebody else writes, perhaps later than this.
    pub(super) fn file_to_come(&mut self, field: &Field<'_>, holds: Holds) -> PathBuf {
        let path = self.path(field, holds);
        if !path.is_absolute() {
            return path;
        }
        match self.files.look(&path) {
            FileFacts::Missing => self.warn(
                field,
                format!("there is no file {} yet", path.display()),
                "correct the path, or start what writes it; until then no login succeeds",
            ),
            facts => self.judge(field, &path, &facts, holds),
        }
        path
    }

    fn judge(&mut self, field: &Field<'_>, path: &Path, facts: &FileFacts, holds: Holds) {
        let shown = path.display();
        match facts {
            FileFacts::Missing => {
                self.error(field, format!("there is no file {shown}"), "correct the path");
            }
            FileFacts::Folder => self.error(
                field,
                format!("{shown} is a folder, not a file"),
                "write the path of the file in it",
            ),
            FileFacts::Special => {
                self.error(field, format!("{shown} is not a regular file"), "correct the path");
            }
            FileFacts::Unreadable(why) => self.error(
                field,
                format!("{shown} cannot be read: {why}"),
                "make it readable for the user that the daemon runs as",
            ),
            FileFacts::Readable { mode } if holds == Holds::Secret && mode & OTHERS != 0 => {
                self.world_readable(field, path, *mode);
            }
            FileFacts::Readable { .. } => {}
        }
    }

    /// The configuration file itself holds a secret in `field`.
    pub(super) fn inline_secret(&mut self, field: &Field<'_>, twin: &str) {
        match field.place() {
            Some(Place::Position { file, .. }) => {
                self.warn(
                    field,
                    "a secret stands in the configuration",
                    format!("put it into a file of its own (mode 0600) and name that in {twin}"),
                );
                if let Some(mode) = self.file_mode.filter(|mode| mode & OTHERS != 0) {
                    self.world_readable(field, &file, mode);
                }
            }
            _ => self.warn(
                field,
                "a secret stands in the environment, which child processes and crash reports copy",
                format!("put it into a file (mode 0600) and name that in {twin}"),
            ),
        }
    }

    fn world_readable(&mut self, field: &Field<'_>, file: &Path, mode: u32) {
        let file = file.display();
        self.refuse_unless_oracle(
            field,
            format!(
                "{file} holds a secret, and every user of this machine can open it \
                 (mode {mode:04o})"
            ),
            format!("run: chmod o-rwx {file}"),
        );
    }
}
