//! What the process asks of the kernel for itself.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Keeps plaintexts and tokens out of core dumps and other users' debuggers, and lets the
/// process open as many files as it may. What the kernel refuses is said and lived with.
pub fn harden() {
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = rustix::process::setrlimit(Resource::Core, no_core) {
        tracing::warn!(%error, "Core dumps could not be switched off; they may hold secrets.");
    }
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "The process could not be shut to debuggers of its own user.");
    }
    let files = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: files.maximum, ..files };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "The limit of open files could not be raised.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core_and_may_open_all_files_that_it_may() {
        harden();
        assert_eq!(rustix::process::getrlimit(Resource::Core).current, Some(0));
        let files = rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(files.current, files.maximum);
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
