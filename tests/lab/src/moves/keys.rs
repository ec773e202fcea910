//! From one key to another, by the order of `keyNames`.

use std::path::Path;

use super::Told;
use super::plane::{Census, OBJECTS, PATIENCE, Plane};
use crate::{Callers, Config, Result};

const ONE: &str = "/registry/secrets/default/before-00";

/// Two keys, and the configurations on the way from one to the other.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// `from` alone.
    pub(super) start: Config,
    /// The same, written so that another cluster can be added.
    pub(super) before: Option<Config>,
    /// `to` added last.
    pub(super) last: Config,
    /// `to` moved first.
    pub(super) first: Config,
    /// `from` retired.
    pub(super) without: Config,
}

// === impl Steps ===

impl Steps {
    /// Moves everything; `end` is called when nothing needs `from` any more.
    pub(super) async fn walk(&self, daemon: &Path, told: Told, end: impl FnOnce()) -> Result<Told> {
        let mut plane = Plane::start(daemon, &self.start, told).await?;
        plane.apiservers.create("before").await?;
        let old = plane.daemon.kms().v1().encrypt(&[7; 32]).await?;
        let callers = Callers::start(&plane.daemon.kms(), 4, &[(old, vec![7; 32])]);
        callers.more(50, PATIENCE).await?;
        let all = 2 * OBJECTS;

        if let Some(before) = &self.before {
            plane.told.step("the flat keys of the cluster go below `clusters`");
            plane.reload(before, false).await?;
            callers.more(50, PATIENCE).await?;
        }

        // The new key only decrypts; nothing is written with it.
        plane.told.step(&format!("{} is added, last", self.to));
        plane.reload(&self.last, true).await?;
        callers.more(50, PATIENCE).await?;
        plane.read(&["before"]).await?;
        plane.run(&["census"], 0).await?;
        let census = plane.count(self.from, false).await?;
        self.counted(&census, [all, 0], &format!("If you move from {} to it, step 1", self.from))?;

        // It encrypts; what was there is read, and counted as not yet moved.
        plane.told.step(&format!("{} is moved first", self.to));
        plane.reload(&self.first, false).await?;
        callers.more(50, PATIENCE).await?;
        plane.apiservers.create("between").await?;
        plane.read(&["before", "between"]).await?;
        plane.run(&["census", "--require-none-on", self.from], 2).await?;
        let census = plane.count(self.from, false).await?;
        self.counted(&census, [all, all], "HERE  3. every object is written anew")?;
        plane.inspect(ONE).await?;

        // The objects are written anew in the middle of calls: those on the old key, all of KMS v1.
        plane.told.step("the objects are written anew, by the commands that census has named");
        let written = plane.apiservers.rewrite().await?;
        demand!(written == (OBJECTS, all), "{written:?} were written anew");
        callers.more(50, PATIENCE).await?;
        plane.run(&["census", "--require-none-on", self.from], 0).await?;
        let census = plane.count(self.from, true).await?;
        self.counted(&census, [0, 2 * all], "HERE  5.")?;
        plane.inspect(ONE).await?;
        let seen = callers.finish().await;
        demand!(seen.failures.is_empty(), "{}", seen.failures_told());

        // The old key goes, and its cluster.
        let callers = Callers::start(&plane.daemon.kms(), 4, &[]);
        plane.told.step(&format!("{} is retired", self.from));
        plane.reload(&self.without, false).await?;
        end();
        callers.more(50, PATIENCE).await?;
        plane.read(&["before", "between"]).await?;
        plane.run(&["census"], 0).await?;
        plane.apiservers.create("after").await?;
        plane.read(&["after"]).await?;
        let seen = callers.finish().await;
        demand!(seen.failures.is_empty(), "{}", seen.failures_told());
        let is_new = |made: &String| *made == format!("{}:v1", self.to);
        demand!(seen.made_by.keys().any(is_new), "who encrypted: {:?}", seen.made_by);
        plane.end().await
    }

    fn counted(&self, census: &Census, [from, to]: [usize; 2], said: &str) -> Result {
        let counted = [census.of("kek", self.from), census.of("kek", self.to)];
        demand!(counted == [from, to] && census.says(said), "{said}: {:#}", census.0);
        Ok(())
    }
}
