//! The socket that kube-apiserver dials.
//!
//! [`unix`] binds it, first of all things and before Vault is reachable, and takes it from
//! nobody who still answers. [`accept`] takes connections in and never stops by itself,
//! [`peer`] looks who is at the other end, and [`connection`] is what the server then
//! reads and writes: the stream behind [`authority`], which makes the `:authority` of old
//! kube-apiservers one that the server accepts. [`moving`] lets a reload put another socket in
//! the place of the first.
//!
//! [`inherited`] takes it from systemd instead, where systemd has bound it; both come in by the
//! same type, [`unix::BoundSocket`].

pub mod accept;
pub mod authority;
pub mod connection;
pub mod inherited;
pub mod moving;
pub mod peer;
pub mod unix;
