//! What the daemon itself does for a call, piece by piece: no Vault, no other process.
//!
//! `cargo bench --bench hop` takes about two minutes; words after `--` choose the benches
//! whose names hold them, and criterion's own options hold (`--quick`, `--save-baseline`).
//!
//! | group | what |
//! |---|---|
//! | `normaliser` | 100 requests of one connection, read through it and past it |
//! | `envelope` | which key a stored ciphertext needs |
//! | `decrypt` | one, from the Transit verb up to gRPC, over a Vault that answers at once |
//! | `together` | many at once, which is where batches are made, sent and taken apart |
//!
//! Of the inside of the crate only what `vault_kms_proxy::benched` names is used.

use criterion::{criterion_group, criterion_main};

mod calls;
mod envelope;
mod normaliser;
mod vault;

criterion_group!(benches, normaliser::all, envelope::all, calls::decrypt, calls::together);
criterion_main!(benches);
