//! Wiring only: arguments, one subcommand, an exit code.

use std::process::ExitCode;

use vault_kms_proxy::cli;

/// Frees wipe memory first: the copies of plaintexts and tokens that h2, hyper and rustls
/// make are out of our hands. Below it, mimalloc: a call makes a hundred allocations, and
/// what they cost with the system's allocator was an eighth of its instructions.
#[global_allocator]
static WIPING: zeroizing_alloc::ZeroAlloc<mimalloc::MiMalloc> =
    zeroizing_alloc::ZeroAlloc(mimalloc::MiMalloc);

fn main() -> ExitCode {
    cli::run(std::env::args_os())
}
