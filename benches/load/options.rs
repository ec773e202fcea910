//! The command line.

use std::path::PathBuf;

use lab::{Result, fail};

use crate::side::Verb;

/// What is measured, and how long.
pub(crate) struct Options {
    /// Seconds for each side of each row.
    pub(crate) seconds: f64,
    /// How many callers each row has.
    pub(crate) callers: Vec<usize>,
    /// What the callers ask.
    pub(crate) verbs: Vec<Verb>,
    /// Objects of the restart storm.
    pub(crate) storm: usize,
    /// Those who list them.
    pub(crate) listers: usize,
    /// How many daemons are started for the cold figures.
    pub(crate) starts: usize,
    /// The socket of another plugin.
    pub(crate) baseline: Option<PathBuf>,
    /// The daemon, when it is not to be built.
    pub(crate) daemon: Option<PathBuf>,
    /// The parts that are measured.
    pub(crate) parts: Vec<Part>,
}

/// A part of the bench, as `--only` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Load,
    Storm,
    Status,
    Authority,
    Cold,
    Memory,
}

const PARTS: [(&str, Part); 6] = [
    ("load", Part::Load),
    ("storm", Part::Storm),
    ("status", Part::Status),
    ("authority", Part::Authority),
    ("cold", Part::Cold),
    ("memory", Part::Memory),
];

const KNOWN: &str = "--quick, --seconds N, --callers 1,16, --verbs decrypt,encrypt, \
                     --storm N, --listers N, \
                     --baseline SOCKET, --daemon FILE, --only load,storm,status,authority,cold,memory";

// === impl Options ===

impl Options {
    /// Reads the arguments of this process.
    pub(crate) fn from_arguments() -> Result<Self> {
        Self::parse(std::env::args().skip(1).collect())
    }

    fn parse(words: Vec<String>) -> Result<Self> {
        let quick = words.iter().any(|word| word == "--quick");
        let mut options = if quick { Self::quick() } else { Self::whole() };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || match words.next() {
                Some(value) => Ok(value),
                None => Err(lab::Error::new(format!("{word} needs a value"))),
            };
            match word.as_str() {
                // cargo passes the first to every bench
                "--bench" | "--quick" => {}
                "--seconds" => options.seconds = value()?.parse()?,
                "--callers" => options.callers = listed(&value()?, |word| Ok(word.parse()?))?,
                "--verbs" => options.verbs = listed(&value()?, Verb::named)?,
                "--storm" => options.storm = value()?.parse()?,
                "--listers" => options.listers = value()?.parse()?,
                "--baseline" => options.baseline = Some(value()?.into()),
                "--daemon" => options.daemon = Some(value()?.into()),
                "--only" => options.parts = listed(&value()?, Part::named)?,
                _ => fail!("{word} is unknown; known are {KNOWN}"),
            }
        }
        options.check()?;
        Ok(options)
    }

    fn whole() -> Self {
        Self {
            seconds: 4.0,
            callers: vec![1, 4, 16, 64, 256, 1024],
            verbs: vec![Verb::Decrypt, Verb::Encrypt],
            storm: 10_000,
            listers: 8,
            starts: 10,
            baseline: None,
            daemon: None,
            parts: PARTS.iter().map(|(_, part)| *part).collect(),
        }
    }

    fn quick() -> Self {
        let callers = vec![1, 16, 64, 256];
        Self { seconds: 0.6, callers, storm: 2_000, starts: 3, ..Self::whole() }
    }

    fn check(&self) -> Result {
        if !(0.5..=600.0).contains(&self.seconds) {
            fail!("--seconds takes 0.5 to 600");
        }
        if self.callers.is_empty() || !self.callers.iter().all(|n| (1..=1024).contains(n)) {
            fail!("--callers takes numbers from 1 to 1024, with commas between them");
        }
        if !(1..=100_000).contains(&self.storm) || !(1..=256).contains(&self.listers) {
            fail!("--storm takes 1 to 100000, --listers 1 to 256");
        }
        Ok(())
    }

    /// Whether a part is measured.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

// === impl Part ===

impl Part {
    fn named(word: &str) -> Result<Self> {
        match PARTS.iter().find(|(name, _)| *name == word) {
            Some((_, part)) => Ok(*part),
            None => fail!("--only {word}: no such part; known are {KNOWN}"),
        }
    }
}

fn listed<T>(words: &str, of: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    words.split(',').map(of).collect()
}
