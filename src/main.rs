//! Wiring only: arguments, one subcommand, an exit code.

use std::process::ExitCode;

use vault_kms_proxy::cli;

/// Frees wipe memory first: the copies of plaintexts and tokens that h2, hyper and rustls
/// make are out of our hands.
#[global_allocator]
static WIPING: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    cli::run(std::env::args_os())
}
