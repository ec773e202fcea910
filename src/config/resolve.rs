//! From merged values to [`Settings`]: the one place that decides what a value means. It
//! goes on after a problem, so that an operator sees all of them at once.

mod auth;
mod clusters;
pub(super) mod files;
mod keys;
mod legacy;
mod reload;
mod report;
mod socket;
mod telemetry;
mod token_cache;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use self::files::{FileFacts, Files};
use self::report::{Holds, Report};
use super::diagnostics::{Place, Problem};
use super::load::{Field, FileForm, Merged};
use super::settings::{
    KeyringSettings, KmsSettings, OnOutage, RotationSettings, Settings, StatusSettings,
    StatusVersion, VerifyEncrypt, WriteFormat,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Reads every value; `None` only after at least one error in `problems`.
pub(super) fn resolve(
    merged: &Merged<'_>,
    form: FileForm,
    whole: Option<Place>,
    file_mode: Option<u32>,
    files: &dyn Files,
    problems: &mut Vec<Problem>,
) -> Option<Settings> {
    let file = &merged.root();
    let report = &mut Report { form, files, whole, file_mode, problems };

    let socket = socket::socket(report, file);
    let clusters = clusters::clusters(report, file);
    let keyring = keyring(report, file, &clusters);
    let kms = kms(report, file);
    let admin = telemetry::admin(report, file);
    let log = telemetry::log(report, file);
    let traces = telemetry::traces(report, file);
    let shutdown_grace = duration(report, file, &["shutdownGrace"], SECOND, 10 * MINUTE);
    let reload = reload::reload(report, file, keyring.as_ref());
    let state_dir = file.get("stateDir").map(|field| state_dir(report, &field));

    Some(Settings {
        socket: socket?,
        keyring: keyring?,
        clusters: clusters.into_iter().map(|c| c.settings).collect::<Option<_>>()?,
        kms: kms?,
        admin: admin?,
        log: log?,
        traces: traces?,
        shutdown_grace: shutdown_grace?,
        reload: reload?,
        state_dir,
    })
}

fn keyring(
    report: &mut Report<'_>,
    file: &Field<'_>,
    clusters: &[clusters::Cluster<'_>],
) -> Option<KeyringSettings> {
    let keks = keys::keks(report, file, clusters);
    let rotation = rotation(report, file);
    let verify_encrypt = file.find(&["verifyEncrypt"]).and_then(|field| {
        let choices = [("v2", VerifyEncrypt::V2), ("always", VerifyEncrypt::Always)];
        values::choice(report, &field, &choices)
    });
    let write_format = file.find(&["write", "format"]).and_then(|field| {
        let choices = [("named", WriteFormat::Named), ("vault", WriteFormat::Vault)];
        values::choice(report, &field, &choices)
    });
    let status = status(report, file);
    let legacy = legacy::legacy(report, file, keks.as_deref());
    let legacy = legacy?;
    Some(KeyringSettings {
        keks: keks?,
        rotation: rotation?,
        verify_encrypt: verify_encrypt?,
        write_format: write_format?,
        status: status?,
        legacy_key: legacy.key,
        bao_kms_provider: legacy.bao,
    })
}

fn rotation(report: &mut Report<'_>, file: &Field<'_>) -> Option<RotationSettings> {
    let refresh = duration(report, file, &["rotation", "refresh"], SECOND, HOUR);
    let delay = &["rotation", "activationDelay"];
    let activation_delay = duration(report, file, delay, SECOND, 24 * HOUR);
    let (refresh, activation_delay) = (refresh?, activation_delay?);
    if let Some(field) = file.find(delay).filter(|_| activation_delay < refresh) {
        report.warn(
            &field,
            "nodes read a key's versions less often than that, so they would switch to a new \
             one at different times",
            format!(
                "write at least {}, twice rotation.refresh",
                humantime::format_duration(2 * refresh)
            ),
        );
    }
    Some(RotationSettings { refresh, activation_delay })
}

fn status(report: &mut Report<'_>, file: &Field<'_>) -> Option<StatusSettings> {
    let version = file.find(&["statusVersion"]).and_then(|field| {
        let choices = [("v2", StatusVersion::V2), ("v2beta1", StatusVersion::V2Beta1)];
        values::choice(report, &field, &choices)
    });
    let grace = duration(report, file, &["status", "grace"], SECOND, HOUR);
    let on_outage = file.find(&["status", "onOutage"]).and_then(|field| {
        values::choice(report, &field, &[("report", OnOutage::Report), ("ok", OnOutage::Ok)])
    });
    Some(StatusSettings { version: version?, grace: grace?, on_outage: on_outage? })
}

fn kms(report: &mut Report<'_>, file: &Field<'_>) -> Option<KmsSettings> {
    let max_concurrent_calls = file
        .find(&["calls", "maxConcurrent"])
        .and_then(|field| values::number(report, &field, 1..=65_536));
    let deadline = &["calls", "defaultDeadline"];
    let default_deadline = duration(report, file, deadline, Duration::from_millis(100), MINUTE);
    Some(KmsSettings {
        max_concurrent_calls: max_concurrent_calls?,
        default_deadline: default_deadline?,
    })
}

fn state_dir(report: &mut Report<'_>, field: &Field<'_>) -> PathBuf {
    let path = report.path(field, Holds::Public);
    match report.files.look(&path) {
        FileFacts::Folder | FileFacts::Missing => {}
        FileFacts::Unreadable(why) => report.error(
            field,
            format!("{} cannot be looked into: {why}", path.display()),
            "make it a folder of the daemon's own user, mode 0700",
        ),
        FileFacts::Readable { .. } | FileFacts::Special => report.error(
            field,
            format!("{} is not a folder", path.display()),
            "write a folder of the daemon's own, such as /var/lib/vault-kms-proxy",
        ),
    }
    path
}

fn duration(
    report: &mut Report<'_>,
    file: &Field<'_>,
    path: &[&str],
    least: Duration,
    most: Duration,
) -> Option<Duration> {
    file.find(path).and_then(|field| values::duration(report, &field, least..=most))
}
