//! The queue between those who log and the thread that writes.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::sync::oneshot;

use crate::clock::{Deadline, node_timestamp};
use crate::telemetry::metrics::{Metric, add};

/// Lines that may wait: some seconds of the busiest log that an incident makes.
const WAITING_LINES: usize = 4_096;

/// Takes lines and never waits.
#[derive(Clone, Debug)]
pub(super) struct LineQueue {
    sender: SyncSender<Job>,
    lost: Arc<AtomicU64>,
}

enum Job {
    Line(String),
    Flush(oneshot::Sender<()>),
}

/// Writes until every [`LineQueue`] is gone.
fn write_lines(mut out: impl Write, jobs: &Receiver<Job>, lost: &AtomicU64) {
    while let Ok(job) = jobs.recv() {
        match job {
            // A stderr that is closed takes nothing; there is nobody left to tell.
            Job::Line(line) => drop(out.write_all(line.as_bytes())),
            Job::Flush(done) => {
                drop(out.flush());
                let _ = done.send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            add(Metric::LogLinesLost, i64::try_from(lost).unwrap_or(i64::MAX), &[]);
            let now = node_timestamp();
            drop(writeln!(
                out,
                "{now} WARN  {}: Log lines were lost. lines={lost}",
                module_path!()
            ));
        }
    }
}

// === impl LineQueue ===

impl LineQueue {
    /// Starts the thread that writes to `out`. It ends with the last copy of the queue.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || write_lines(out, &receiver, &counted))?;
        Ok(Self { sender, lost })
    }

    /// Queues a line with its line end, or counts it as lost.
    pub(super) fn push(&self, line: String) {
        if self.sender.try_send(Job::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was queued so far is written, or until `deadline`.
    pub(super) async fn flush(&self, deadline: Deadline) {
        let (done, written) = oneshot::channel();
        let mut job = Job::Flush(done);
        while let Err(error) = self.sender.try_send(job) {
            match error {
                TrySendError::Full(back) if !deadline.has_passed() => {
                    job = back;
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                _ => return,
            }
        }
        let _ = tokio::time::timeout_at(deadline.instant(), written).await;
    }
}
