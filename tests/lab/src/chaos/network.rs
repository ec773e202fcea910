//! What happens on the way to the nodes: a fault proxy stands before each.

use std::time::Duration;

use tokio::time::sleep;

use super::{Group, RecoveryFrom, Row, Step, Victim, Way};
use crate::{DnsMood, Gate};

pub(super) fn rows() -> Vec<Row> {
    let row = |name, victim, act: Step| Row {
        way: Way::Proxied,
        ..Row::new(name, Group::Network, victim, act)
    };
    vec![
        Row {
            hangs: true,
            ..row("one address swallows everything", Victim::InUse, |stage| {
                Box::pin(async {
                    let proxy = stage.proxy()?;
                    proxy.blackhole();
                    proxy.gate(Gate::Unreachable).await
                })
            })
        },
        Row {
            hangs: true,
            ..row("one address answers 1 s later", Victim::InUse, |stage| {
                Box::pin(async {
                    stage.proxy()?.delay(Duration::from_secs(1));
                    Ok(())
                })
            })
        },
        Row {
            // Each call is joined by hedges as far as their budget goes, in vain.
            wire_bound: 3.0,
            recovery: RecoveryFrom::Undo,
            ..row("all answer 600 ms later", Victim::Nobody, |stage| {
                Box::pin(async {
                    for proxy in stage.proxies() {
                        proxy.delay(Duration::from_millis(600));
                    }
                    Ok(())
                })
            })
        },
        row("one breaks off within answers", Victim::InUse, |stage| {
            Box::pin(async {
                // A TLS handshake fits into it, and an answer or two.
                stage.proxy()?.cut_answers_after(4000);
                Ok(())
            })
        }),
        Row {
            prepare: |stage| Box::pin(stage.give_name()),
            ..row("their name stops resolving", Victim::Nobody, |stage| {
                Box::pin(async {
                    // First as with a resolver that is away, then as with a deleted name.
                    for mood in [DnsMood::Hangs, DnsMood::KnowsNothing] {
                        stage.dns()?.mood(mood);
                        for proxy in stage.proxies() {
                            // Else nobody would have to connect anew.
                            proxy.gate(Gate::Reset).await?;
                            proxy.gate(Gate::Open).await?;
                        }
                        sleep(stage.spans().fault / 2).await;
                    }
                    Ok(())
                })
            })
        },
    ]
}
