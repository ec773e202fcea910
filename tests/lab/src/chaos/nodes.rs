//! What happens to nodes: the lab's own verbs, and the daemon reaches the nodes directly.

use super::{Group, Row, Victim};

pub(super) fn rows() -> Vec<Row> {
    let row = |name, victim, act| Row::new(name, Group::Nodes, victim, act);
    vec![
        row("kill -9 of the leader", Victim::Leader, |stage| {
            Box::pin(async {
                stage.victim()?.kill();
                Ok(())
            })
        }),
        row("kill -9 of a standby", Victim::Standby, |stage| {
            Box::pin(async {
                stage.victim()?.kill();
                Ok(())
            })
        }),
        row("SIGTERM to the leader", Victim::Leader, |stage| {
            Box::pin(async { stage.victim()?.terminate().await })
        }),
        row("step-down of the leader", Victim::Leader, |stage| {
            Box::pin(async { stage.victim()?.step_down().await })
        }),
        row("the leader is sealed", Victim::Leader, |stage| {
            Box::pin(async { stage.victim()?.seal().await })
        }),
        Row {
            hangs: true,
            ..row("SIGSTOP of the leader", Victim::Leader, |stage| {
                Box::pin(async { stage.victim()?.stop() })
            })
        },
        Row {
            hangs: true,
            ..row("SIGSTOP of a standby", Victim::Standby, |stage| {
                Box::pin(async { stage.victim()?.stop() })
            })
        },
        row("rolling restart of all three", Victim::Nobody, |stage| {
            Box::pin(async {
                let cluster = stage.cluster();
                for node in cluster.nodes() {
                    node.terminate().await?;
                    node.start().await?;
                    cluster.heal().await?;
                }
                Ok(())
            })
        }),
    ]
}
