//! Tokens, certificates, keys: what the nodes and the daemon accept of each other.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{Group, KEY, Row, Stage, Victim, Way};
use crate::{Authority, Gate, Result};

pub(super) fn rows() -> Vec<Row> {
    let row = |name, victim, act| Row::new(name, Group::Trust, victim, act);
    vec![
        Row {
            way: Way::Proxied,
            undo: |stage| {
                Box::pin(async {
                    let cluster = stage.cluster();
                    cluster.replace_certificate_of(stage.victim()?, cluster.ca()).await?;
                    stage.heal().await
                })
            },
            ..row("one shows a wrong certificate", Victim::InUse, |stage| {
                Box::pin(async {
                    let wrong = Authority::new("wrong")?;
                    stage.cluster().replace_certificate_of(stage.victim()?, &wrong).await?;
                    // Open connections were made with the good one.
                    let proxy = stage.proxy()?;
                    proxy.gate(Gate::Reset).await?;
                    proxy.gate(Gate::Open).await
                })
            })
        },
        row("the token is revoked, twice", Victim::Nobody, |stage| {
            Box::pin(async {
                for _ in 0..2 {
                    stage.cluster().admin().revoke_prefix("auth/approle/login").await?;
                    sleep(stage.spans().fault / 2).await;
                }
                Ok(())
            })
        }),
        Row {
            undo: |stage| {
                Box::pin(async {
                    // The same way back, so that this costs nothing either.
                    let old = stage.cluster().ca();
                    stage.trust(&format!("{}{}", old.pem(), stage.trusted()?)).await?;
                    change_certificates(stage, old).await?;
                    stage.trust(old.pem()).await?;
                    stage.heal().await
                })
            },
            ..row("the authority changes, with overlap", Victim::Nobody, |stage| {
                Box::pin(async {
                    let (old, new) = (stage.cluster().ca(), Authority::new("next")?);
                    stage.trust(&format!("{}{}", old.pem(), new.pem())).await?;
                    change_certificates(stage, &new).await?;
                    stage.trust(new.pem()).await
                })
            })
        },
        row("the key gets a version each second", Victim::Nobody, |stage| {
            Box::pin(async {
                let end = Instant::now() + stage.spans().fault;
                let mut next = Instant::now();
                while next < end {
                    stage.cluster().admin().rotate(KEY).await?;
                    next += Duration::from_secs(1);
                    sleep_until(next).await;
                }
                Ok(())
            })
        }),
    ]
}

/// Gives all nodes certificates of `authority`, and waits until they show them.
async fn change_certificates(stage: &Stage, authority: &Authority) -> Result {
    stage.cluster().replace_certificate(&authority.server()?)?;
    for node in stage.cluster().nodes() {
        node.wait_trusted_by(authority).await?;
    }
    Ok(())
}
