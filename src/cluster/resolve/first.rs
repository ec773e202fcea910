//! The place of a name that has not been resolved yet.
//!
//! It stands in the pool like an address, so that calls wait for it, that errors name it,
//! and that no answer counts as everybody's while there is an address that is not known
//! yet. It goes when the name's addresses come.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tower::Service;

use super::{Doubt, Unresolved};
use crate::cluster::address::Address;
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::operation::{Answer, Attempt};
use crate::cluster::step::{Ended, Step};

/// What has become of the first question for a name.
#[derive(Clone, Debug, Default)]
pub enum First {
    /// It is out.
    #[default]
    Asked,
    /// It failed, and so did all until now.
    Failed(Unresolved),
    /// The name has addresses.
    Known,
}

/// Fails attempts with the reason why there is no address, as soon as it is known.
#[derive(Clone, Debug)]
pub struct Unknown {
    address: Arc<Address>,
    first: watch::Receiver<First>,
}

/// Waits until the first question has brought an answer or an error.
pub async fn settled(mut first: watch::Receiver<First>) {
    // An error is the end of the task that asks, which settles it too.
    let _ = first.wait_for(|first| !matches!(first, First::Asked)).await;
}

// === impl Unknown ===

impl Unknown {
    /// The place of the name in `address`.
    pub fn new(address: Address, first: watch::Receiver<First>) -> Self {
        Self { address: Arc::new(address), first }
    }

    async fn explain(self, attempt: Attempt) -> AttemptError {
        let deadline = attempt.call.deadline.instant();
        let _ = tokio::time::timeout_at(deadline, settled(self.first.clone())).await;
        let host = self.address.host();
        let what = match &*self.first.borrow() {
            First::Asked => format!("cannot resolve {host}: no answer yet"),
            First::Failed(why) => format!("cannot resolve {host}: {why}"),
            First::Known => format!("{host} was resolved only now"),
        };
        AttemptError {
            address: self.address.name.clone(),
            index: self.address.index,
            fault: Fault::Unreachable(what),
        }
    }
}

impl Service<Attempt> for Unknown {
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Answer, AttemptError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        self.clone().explain(attempt).map(Err).boxed()
    }
}

// === impl Doubt ===

/// Over an address of a name: its faults raise a doubt that it still is one.
impl Step for Doubt {
    type Note = ();

    fn going(&self, _: &mut Attempt) {}

    fn ended(&self, (): (), result: Ended) -> Ended {
        if let Err(AttemptError { fault, .. }) = &result
            && fault.is_address_fault()
        {
            self.raise();
        }
        result
    }
}
