//! No node can answer for a while.

use super::{Allowed, Group, RecoveryFrom, Row, Victim, Way};
use crate::Node;

pub(super) fn rows() -> Vec<Row> {
    let row = |name, victim, act| Row {
        allowed: Allowed::Unavailable,
        recovery: RecoveryFrom::Return,
        wire_bound: 3.0,
        ..Row::new(name, Group::Outage, victim, act)
    };
    vec![
        row("kill -9 of all three, and back", Victim::Nobody, |stage| {
            Box::pin(async {
                stage.cluster().nodes().iter().for_each(Node::kill);
                Ok(())
            })
        }),
        Row {
            way: Way::Proxied,
            ..row("all three swallow everything, and back", Victim::Nobody, |stage| {
                Box::pin(async {
                    for proxy in stage.proxies() {
                        proxy.blackhole();
                    }
                    Ok(())
                })
            })
        },
        Row {
            standbys_serve: false,
            ..row("kill -9 of the leader of forwarders", Victim::Leader, |stage| {
                Box::pin(async {
                    stage.victim()?.kill();
                    Ok(())
                })
            })
        },
    ]
}
