//! The right to make one attempt, and who may report on it.

use std::fmt;
use std::time::Duration;

use super::state::{BreakerState, Evidence};
use crate::cluster::error::AttemptError;
use crate::cluster::operation::{Answer, Attempt};

/// The right to make one attempt. A trial's right goes back when it is dropped unused.
#[derive(Debug)]
pub(super) struct Permit(pub(super) Witness);

/// Names the attempt that its reports are about.
#[derive(Clone)]
pub struct Witness {
    pub(super) state: BreakerState,
    pub(super) epoch: u64,
    pub(super) trial: bool,
}

// === impl Permit ===

impl Permit {
    /// Who may report on the attempt.
    pub(super) fn witness(&self) -> Witness {
        self.0.clone()
    }

    /// Reports the outcome; dropped without one, it reports that there is none.
    pub(super) fn settle(
        self,
        attempt: &Attempt,
        result: &Result<Answer, AttemptError>,
        took: Duration,
    ) {
        let given_up = attempt.fate.is_given_up() && !self.0.trial;
        let evidence = match result {
            // That it serves nobody is the node's own word, whoever won the race.
            Err(error) if given_up && error.fault.ejects() => {
                self.0.state.evidence(&error.fault, took)
            }
            _ if given_up => Evidence::Nothing,
            Ok(_) => Evidence::Sound,
            Err(error) => self.0.state.evidence(&error.fault, took),
        };
        self.0.state.weigh(&self.0, evidence);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.0.trial {
            self.0.state.give_back(&self.0);
        }
    }
}

// === impl Witness ===

impl Witness {
    /// Whether the attempt is a half-open breaker's one trial.
    pub const fn is_trial(&self) -> bool {
        self.trial
    }

    /// Whether the breaker has changed since the attempt was let through.
    pub fn is_overtaken(&self) -> bool {
        self.state.epoch() != self.epoch
    }

    /// The address was silent for longer than others are, while another one answered.
    pub fn silent(&self, lasted: Duration) {
        let what = format!("silent for {} ms while another answered", lasted.as_millis());
        self.state.weigh(self, Evidence::Fault { what, ejects: None });
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness")
            .field("state", &self.state)
            .field("trial", &self.trial)
            .finish_non_exhaustive()
    }
}
