//! Child processes that do not outlive the lab.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::{Context, Result, eventually};

/// A running child whose output goes to a file. Killed (-9) and waited for when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
}

// === impl Process ===

impl Process {
    /// Starts `command` with stdout and stderr appended to `log`.
    pub(crate) fn spawn(name: &str, command: Command, log: &Path) -> Result<Self> {
        Self::spawn_reading(name, command, Stdio::null(), log)
    }

    /// The same with something on stdin.
    pub(crate) fn spawn_reading(
        name: &str,
        mut command: Command,
        stdin: Stdio,
        log: &Path,
    ) -> Result<Self> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .context(format!("cannot open the log {}", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        // Its own group: a Ctrl-C at the terminal is for the lab, which then ends its
        // children itself (or lets the reaper do so).
        command.process_group(0).stdin(stdin);
        command.stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().context(format!("cannot start {name} ({program})"))?;
        reaper(&format!("pid {}", child.id()));
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child: Mutex::new(child) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child().id()
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result {
        let mut child = self.child();
        // Asking first keeps the signal from whoever got the number of an ended child.
        if child.try_wait()?.is_none() {
            rustix::process::kill_process(Pid::from_child(&child), signal)
                .context(format!("cannot send {signal:?} to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self, within: Duration) -> Result<ExitStatus> {
        let what = format!("{} (pid {}) has ended", self.name, self.pid());
        eventually(&what, within, || async { Ok(self.exited()) }).await
    }

    /// Ends it with SIGKILL, which works on a stopped process too, and waits.
    pub(crate) fn kill(&self) {
        let mut child = self.child();
        if !matches!(child.try_wait(), Ok(Some(_))) {
            let _ = child.kill();
            let _ = child.wait();
        }
        reaper(&format!("gone {}", child.id()));
    }

    /// What it has written so far.
    pub(crate) fn output(&self) -> String {
        std::fs::read(&self.log).map_or_else(
            |error| format!("({} cannot be read: {error})", self.log.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of it, for an error.
    pub(crate) fn tail(&self) -> String {
        tail(&self.output())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let from = lines.len().saturating_sub(15);
    lines[from..].join("\n")
}

/// A temporary folder that goes with the lab, however the lab ends.
pub(crate) fn temporary_folder(prefix: &str) -> Result<tempfile::TempDir> {
    // Not $TMPDIR: a unix socket's path must fit into 108 bytes.
    folder_in("/tmp", prefix)
}

/// A temporary folder for what Vault stores: in memory where there is room. A node commits
/// each write to its storage, and on a disk that others keep busy that takes seconds, which
/// no test means to measure.
pub(crate) fn storage_folder(prefix: &str) -> Result<tempfile::TempDir> {
    const ENOUGH: u64 = 4 << 30;
    let room = rustix::fs::statvfs("/dev/shm").map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let in_memory = (room >= ENOUGH).then(|| folder_in("/dev/shm", prefix)).and_then(Result::ok);
    in_memory.map_or_else(|| temporary_folder(prefix), Ok)
}

fn folder_in(parent: &str, prefix: &str) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
    reaper(&format!("folder {}", folder.path().display()));
    Ok(folder)
}

// Statics are not dropped and a killed test drops nothing. So a small shell holds the
// other end of a pipe, is told of every child and folder, and when the pipe closes (this
// process has ended, in whatever way) it ends and removes what is left of them.
const REAPER: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r verb what; do
  case $verb in
    pid) pids="$pids$what " ;;
    gone) pids="${pids%% $what *} ${pids#* $what }" ;;
    folder) set -- "$@" "$what" ;;
  esac
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
for folder in "$@"; do rm -rf "$folder"; done
"#;

static REAPER_PIPE: LazyLock<Mutex<Option<ChildStdin>>> = LazyLock::new(|| {
    let shell = Command::new("/bin/sh")
        .args(["-c", REAPER, "lab-reaper"])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Mutex::new(shell.ok().and_then(|mut shell| shell.stdin.take()))
});

fn reaper(line: &str) {
    let mut pipe = REAPER_PIPE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipe) = pipe.as_mut() {
        // Without a reaper the lab still works; it only cleans up less well when killed.
        let _ = writeln!(pipe, "{line}");
    }
}
