//! The first cluster dies or hangs, and a second one has a key of the same name.

use std::time::Duration;

use super::{Allowed, Group, KEY, RecoveryFrom, Row, Stage, Step, Victim, Way};
use crate::{Config, DevNode, Gate, Node, Result, eventually, fail};

/// Says whether a replica may encrypt.
const PROVEN: &str = "vault_kms_proxy_kek_replica_proven";

/// How long a proof may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn rows() -> Vec<Row> {
    let first_dies: Step = |stage| {
        Box::pin(async {
            stage.cluster().nodes().iter().for_each(Node::kill);
            Ok(())
        })
    };
    vec![
        with_replica("first cluster dies, a replica lives", first_dies),
        // Nothing refuses: connections are made and stay open, and no answer comes.
        Row {
            passed_over: true,
            ..with_replica("first cluster freezes, a replica lives", |stage| {
                Box::pin(async { stage.cluster().nodes().iter().try_for_each(Node::stop) })
            })
        },
        // Not even connections are made.
        Row {
            way: Way::Proxied,
            passed_over: true,
            ..with_replica("first cluster vanishes, a replica lives", |stage| {
                Box::pin(async {
                    for proxy in stage.proxies() {
                        proxy.blackhole();
                        proxy.gate(Gate::Unreachable).await?;
                    }
                    Ok(())
                })
            })
        },
        Row {
            allowed: Allowed::Unavailable,
            recovery: RecoveryFrom::Return,
            wire_bound: 3.0,
            prepare: |stage| {
                Box::pin(async {
                    let second = DevNode::start().await?;
                    stage.cluster().admin().replicate_as_impostor(KEY, second.admin()).await?;
                    beside(stage, second).await
                })
            },
            verify: |stage| {
                Box::pin(async {
                    let made = stage.second()?.count_requests(&encrypt_path());
                    if made > 0 {
                        fail!("the impostor encrypted {made} times");
                    }
                    Ok(())
                })
            },
            ..Row::new(
                "first cluster dies, an impostor lives",
                Group::Outage,
                Victim::Nobody,
                first_dies,
            )
        },
    ]
}

/// A second cluster with the same key, proven before the calls begin.
fn with_replica(name: &'static str, act: Step) -> Row {
    Row {
        wire_bound: 3.0,
        prepare: |stage| {
            Box::pin(async {
                let second = DevNode::start().await?;
                stage.cluster().admin().replicate_key(KEY, second.admin()).await?;
                beside(stage, second).await
            })
        },
        ready: |stage| {
            Box::pin(async {
                let daemon = stage.daemon()?;
                eventually("the replica is proven", PATIENCE, || async {
                    Ok((daemon.metric(PROVEN, "cluster=\"two\"").await? > 0.0).then_some(()))
                })
                .await
            })
        },
        verify: |stage| {
            Box::pin(async {
                if stage.second()?.count_requests(&encrypt_path()) == 0 {
                    fail!("the replica never encrypted");
                }
                Ok(())
            })
        },
        ..Row::new(name, Group::Outage, Victim::Nobody, act)
    }
}

fn encrypt_path() -> String {
    format!("transit/encrypt/{KEY}")
}

/// Puts the second cluster behind the first.
async fn beside(stage: &mut Stage, second: DevNode) -> Result {
    let config = second.config(&[KEY]).await?;
    let first = stage.config.clone().addresses(&stage.addresses());
    stage.config = Config::replicas(&[("one", &first), ("two", &config)], &[KEY]);
    stage.second = Some(second);
    Ok(())
}
