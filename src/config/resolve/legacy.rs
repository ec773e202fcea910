//! What is needed to read the ciphertexts of other plugins.

use std::sync::Arc;

use super::report::Report;
use super::values::shown;
use crate::config::load::Field;
use crate::config::settings::{BaoKmsProvider, KekName, KekSettings};

/// The block `legacy`.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// `legacy.key`.
    pub(super) key: Option<KekName>,
    /// `legacy.baoKmsProvider`.
    pub(super) bao: Option<BaoKmsProvider>,
}

/// Reads it; `keks` are those of keyNames, where they were sound.
pub(super) fn legacy(
    report: &mut Report<'_>,
    file: &Field<'_>,
    keks: Option<&[Arc<KekSettings>]>,
) -> Option<Legacy> {
    let key = file.find(&["legacy", "key"]).map(|field| key(report, &field, keks));
    let block = file.find(&["legacy", "baoKmsProvider"]);
    let bao = block.map(|block| bao_kms_provider(report, &block));
    let mut legacy = Legacy::default();
    if let Some(key) = key {
        legacy.key = Some(key?);
    }
    if let Some(bao) = bao {
        legacy.bao = Some(bao?);
    }
    Some(legacy)
}

fn key(
    report: &mut Report<'_>,
    field: &Field<'_>,
    keks: Option<&[Arc<KekSettings>]>,
) -> Option<KekName> {
    let names = keks.unwrap_or_default().iter().map(|kek| kek.name.as_str()).collect::<Vec<_>>();
    if keks.is_some() && !names.contains(&field.text()) {
        report.error(
            field,
            format!("`{}` is not in keyNames", shown(field.text())),
            format!("write one of {}", names.join(", ")),
        );
    }
    KekName::try_new(field.text()).ok()
}

fn bao_kms_provider(report: &mut Report<'_>, block: &Field<'_>) -> Option<BaoKmsProvider> {
    let mut name = |key: &str, theirs: &str| {
        let Some(field) = block.get(key) else {
            report.missing(
                format!("{}.{key}", block.path()),
                block.place(),
                "without it nothing that bao-kms-provider wrote can be decrypted",
                format!("copy {theirs} from its configuration"),
            );
            return None;
        };
        let text = field.text();
        // What JSON, as Go writes it, would escape.
        let plain = |c: char| (c.is_ascii_graphic() || c == ' ') && !"\"\\<>&".contains(c);
        let sound = !text.is_empty() && text.chars().all(plain);
        if !sound {
            report.error(
                &field,
                format!("`{}` cannot be such a name", shown(text)),
                format!("copy {theirs} from its configuration"),
            );
        }
        sound.then(|| text.to_owned())
    };
    let provider_name = name("providerName", "its provider name");
    let cluster_id = name("clusterId", "its cluster id");
    let instance_id = name("instanceId", "its OpenBao instance id");
    Some(BaoKmsProvider {
        provider_name: provider_name?,
        cluster_id: cluster_id?,
        instance_id: instance_id?,
    })
}
