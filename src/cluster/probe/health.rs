//! What an answer of `sys/health` says.

use serde::Deserialize;

use crate::clock::UnixSeconds;
use crate::cluster::address::Role;
use crate::cluster::operation::Answer;

/// What a node says about itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) role: Role,
    pub(super) time: Option<UnixSeconds>,
    pub(super) cluster_id: Option<String>,
    pub(super) version: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    initialized: bool,
    sealed: bool,
    standby: bool,
    #[serde(default)]
    performance_standby: bool,
    #[serde(default)]
    removed_from_cluster: Option<bool>,
    replication_dr_mode: Option<String>,
    server_time_utc: Option<i64>,
    cluster_id: Option<String>,
    version: Option<String>,
}

/// What `answer` says; the reason, in words, when nothing that could serve has given it.
///
/// The body counts before the status, which a question's parameters can change. Without a
/// body in Vault's form something before Vault has answered. When it fails, what stands
/// behind it is out of reach for calls too. When it refuses or redirects (403, 404, a login
/// form), that may go for this path only: there is something alive, and no role is known.
pub(super) fn read(answer: &Answer) -> Result<Health, String> {
    let status = answer.status.as_u16();
    if let Ok(body) = serde_json::from_slice::<Body>(&answer.body) {
        return Ok(Health {
            role: body.role(status),
            time: body.server_time_utc.filter(|time| *time > 0).map(UnixSeconds),
            cluster_id: body.cluster_id.filter(|id| !id.is_empty()),
            version: body.version,
        });
    }
    let role = match status {
        472 => Role::DrSecondary,
        530 => Role::Removed,
        500.. => return Err(format!("its health check answers HTTP {status}")),
        _ => Role::Unknown,
    };
    Ok(Health { role, time: None, cluster_id: None, version: None })
}

// === impl Body ===

impl Body {
    /// A standby without its active node (474) is one all the same: an election is nobody's
    /// fault, and some standbys go on serving.
    fn role(&self, status: u16) -> Role {
        let is_secondary = self.replication_dr_mode.as_deref() == Some("secondary");
        match () {
            () if !self.initialized => Role::Uninitialised,
            () if self.sealed => Role::Sealed,
            () if status == 530 || self.removed_from_cluster == Some(true) => Role::Removed,
            () if status == 472 || is_secondary => Role::DrSecondary,
            () if status == 473 || self.performance_standby => Role::PerformanceStandby,
            () if self.standby => Role::Standby,
            () => Role::Active,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::stack::testing::answer;

    fn said(status: u16, body: &str) -> Result<Health, String> {
        let mut answer = answer(status);
        *answer.body = body.as_bytes().to_vec();
        read(&answer)
    }

    fn body(initialized: bool, sealed: bool, standby: bool, more: &str) -> String {
        format!(
            r#"{{"initialized":{initialized},"sealed":{sealed},"standby":{standby},{more}
                "version":"2.7.2"}}"#
        )
    }

    #[test]
    fn each_health_has_its_role() {
        let perf = r#""performance_standby":true,"#;
        let dr = r#""replication_dr_mode":"secondary","#;
        let primary = r#""replication_dr_mode":"primary","removed_from_cluster":null,"#;
        for (status, body, role) in [
            (200, body(true, false, false, ""), Role::Active),
            (200, body(true, false, false, primary), Role::Active),
            (429, body(true, false, true, ""), Role::Standby),
            (200, body(true, false, true, ""), Role::Standby),
            (474, body(true, false, true, ""), Role::Standby),
            (473, body(true, false, true, ""), Role::PerformanceStandby),
            (200, body(true, false, true, perf), Role::PerformanceStandby),
            (472, body(true, false, false, dr), Role::DrSecondary),
            (200, body(true, false, false, dr), Role::DrSecondary),
            (472, "null".to_owned(), Role::DrSecondary),
            (501, body(false, true, true, ""), Role::Uninitialised),
            (503, body(true, true, true, ""), Role::Sealed),
            (200, body(true, true, true, ""), Role::Sealed),
            (530, body(true, false, true, ""), Role::Removed),
            (530, String::new(), Role::Removed),
        ] {
            assert_eq!(said(status, &body).unwrap().role, role, "{status} {body}");
        }
    }

    #[test]
    fn what_something_before_vault_says_makes_nothing_worse_unless_it_fails() {
        let alive = Health { role: Role::Unknown, time: None, cluster_id: None, version: None };
        for status in [200, 204, 302, 400, 401, 403, 404, 405, 429] {
            for body in ["", "<html>no</html>", r#"{"errors":[]}"#, r#"{"sealed":true}"#] {
                assert_eq!(said(status, body).as_ref(), Ok(&alive), "{status} {body}");
            }
        }
        for status in [500, 502, 503, 504] {
            let why = said(status, "<html>Bad Gateway</html>").unwrap_err();
            assert_eq!(why, format!("its health check answers HTTP {status}"));
        }
    }

    #[test]
    fn time_and_cluster_are_read_where_they_stand() {
        let more = r#""server_time_utc":1715817600,"cluster_id":"5f0c","#;
        let health = said(429, &body(true, false, true, more)).unwrap();
        assert_eq!(health.time, Some(UnixSeconds(1_715_817_600)));
        assert_eq!(health.cluster_id.as_deref(), Some("5f0c"));
        let more = r#""server_time_utc":0,"cluster_id":"","#;
        let health = said(503, &body(true, true, true, more)).unwrap();
        assert_eq!((health.time, health.cluster_id), (None, None));
    }
}
