//! The tower layers that every call of kube-apiserver goes through, built in one place.

use http::Extensions;
use tower::layer::util::{Identity, Stack};

use crate::clock::Deadline;
use crate::config::settings::KmsSettings;

pub mod deadline;
pub mod limit;
pub mod observe;
pub mod panic;

/// The layers, outermost first.
pub type CallLayers = Stack<
    limit::LimitLayer,
    Stack<
        deadline::DeadlineLayer,
        Stack<panic::GuardLayer, Stack<observe::ObserveLayer, Identity>>,
    >,
>;

/// Builds the layers.
pub fn layers(settings: &KmsSettings) -> CallLayers {
    tower::ServiceBuilder::new()
        // Sees every call and its end, whatever ended it.
        .layer(observe::ObserveLayer)
        // A bug costs one call, not the connection with all its calls.
        .layer(panic::guard())
        // Before the line, because waiting in line counts.
        .layer(deadline::DeadlineLayer::new(settings.default_deadline))
        // What runs at once is bounded, and so is what waits.
        .layer(limit::LimitLayer::new(settings.max_concurrent_calls))
        .into_inner()
}

/// The deadline that [`deadline::DeadlineLayer`] found for a call.
pub fn deadline_of(extensions: &Extensions) -> Deadline {
    extensions
        .get::<Deadline>()
        .copied()
        .unwrap_or_else(|| Deadline::after(deadline::DEFAULT_DEADLINE))
}

/// Whether a call is answered from memory, so that it neither waits in line nor is shed.
fn is_answered_from_memory(path: &str) -> bool {
    path.ends_with("/Status") || path.ends_with("/Version")
}
