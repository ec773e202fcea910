//! The socket that kube-apiserver dials.

use std::path::PathBuf;

use super::report::Report;
use super::values::shown;
use crate::config::load::Field;
use crate::config::settings::{SocketAddress, SocketSettings};

/// What fits into `sockaddr_un.sun_path` beside its final (or, for an abstract name, its
/// first) zero byte.
const MAX_SUN_PATH: usize = 107;

/// The block `socket`.
pub(super) fn socket(report: &mut Report<'_>, file: &Field<'_>) -> Option<SocketSettings> {
    let block = file.get("socket")?;
    let address = block.get("path").and_then(|path| address(report, &path));
    let mode = block.get("mode").and_then(|mode| self::mode(report, &mode));
    let allowed_uids = block.get("allowedUids").and_then(|uids| self::uids(report, &uids));
    if let Some(SocketAddress::Abstract(_)) = &address {
        if block.get("allowedUids").is_none() {
            report.missing(
                "socket.allowedUids",
                block.place(),
                "every user of this machine can dial an abstract socket",
                "list the users that may: allowedUids: [0]",
            );
        }
        for key in ["mode", "owner", "group"] {
            if let Some(field) = block.get(key).filter(|field| !field.is_default()) {
                report.warn(
                    &field,
                    "an abstract socket has no file, so this has no effect",
                    "remove it; allowedUids says who may connect",
                );
            }
        }
    }
    let text = |key| block.get(key).map(|field: Field<'_>| field.text().to_owned());
    let (owner, group) = (text("owner"), text("group"));
    Some(SocketSettings { address: address?, mode: mode?, owner, group, allowed_uids })
}

fn address(report: &mut Report<'_>, field: &Field<'_>) -> Option<SocketAddress> {
    let text = field.text();
    let rest = match text.split_once(':') {
        // kube-apiserver's own spelling: unix:///path, and unix:///@name for a name.
        Some(("unix", rest)) => {
            let rest = rest.strip_prefix("//").unwrap_or(rest);
            if rest.starts_with("/@") { &rest[1..] } else { rest }
        }
        _ => text,
    };
    if let Some(name) = rest.strip_prefix('@') {
        if name.is_empty() || name.len() > MAX_SUN_PATH || name.contains('\0') {
            report.error(
                field,
                format!("an abstract name has 1 to {MAX_SUN_PATH} bytes"),
                "write a name such as `@vault-kms-proxy`",
            );
            return None;
        }
        return Some(SocketAddress::Abstract(name.to_owned()));
    }
    if rest.contains("://") || rest.contains('\0') {
        report.error(
            field,
            format!("`{}` is no unix socket", shown(text)),
            "write /run/vault-kms-proxy/kms.sock, with or without unix:// before it",
        );
        return None;
    }
    let path = PathBuf::from(rest);
    if !path.is_absolute() {
        report.refuse_unless_oracle(
            field,
            format!("`{}` is relative: it depends on where the daemon starts", shown(text)),
            "write the whole path, as kube-apiserver's encryption configuration does",
        );
    }
    if rest.ends_with('/') || path.file_name().is_none() {
        report.error(
            field,
            format!("`{}` is a folder", shown(text)),
            "add the socket's own name, such as kms.sock",
        );
        return None;
    }
    if rest.len() > MAX_SUN_PATH {
        report.error(
            field,
            format!("the path has {} bytes; a socket's has at most {MAX_SUN_PATH}", rest.len()),
            "choose a shorter folder, such as /run/vault-kms-proxy",
        );
        return None;
    }
    Some(SocketAddress::Path(path))
}

/// Octal, as chmod takes it, with or without `0` or `0o` before it.
fn mode(report: &mut Report<'_>, field: &Field<'_>) -> Option<u32> {
    let text = field.text();
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|d| d.is_ascii_digit());
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    let Some(mode) = mode else {
        let what = format!("`{}` is no file mode", shown(text));
        report.error(field, what, "write three or four octal digits, such as \"0660\"");
        return None;
    };
    if mode & 0o600 != 0o600 {
        report.error(
            field,
            format!("mode {mode:04o} shuts out the socket's own owner"),
            "let the owner read and write: \"0600\", or \"0660\" with a group",
        );
        return None;
    }
    if mode & 0o002 != 0 {
        report.warn(
            field,
            format!("mode {mode:04o} lets every user of this machine dial the socket"),
            "write \"0660\" and name kube-apiserver's group in socket.group",
        );
    }
    Some(mode)
}

fn uids(report: &mut Report<'_>, field: &Field<'_>) -> Option<Vec<u32>> {
    let items = field.items();
    if items.is_empty() {
        report.error(
            field,
            "an empty list lets nobody connect",
            "list the user ids that may, or remove the key for root and the daemon's own",
        );
        return None;
    }
    let uid = |item: Field<'_>| {
        let uid = item.text().parse().ok();
        if uid.is_none() {
            let what = format!("`{}` is no user id", shown(item.text()));
            report.error(&item, what, "write the number that `id -u <user>` prints");
        }
        uid
    };
    items.into_iter().map(uid).collect()
}
