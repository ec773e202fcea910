//! The lab's own promises, against real servers. One cluster serves the whole file.

use std::time::Duration;

use lab::{Authority, Cluster, DevNode, Result, Validity, eventually};
use serde_json::json;

#[tokio::test]
async fn a_cluster_comes_up_and_survives_the_death_of_its_leader() -> Result {
    let cluster = Cluster::start().await?;
    cluster.create_keys(&["kube"]).await?;
    let made = cluster.admin().encrypt("kube", b"seed").await?;
    assert!(made.starts_with("vault:v1:"), "{made}");

    // Every verb that a test needs, on one cluster: starting one takes ten seconds.
    let leader = cluster.leader_index().await.expect("an active node");
    cluster.node(leader).kill();
    assert_eq!(cluster.node(leader).pid(), None);
    for (index, node) in cluster.nodes().iter().enumerate() {
        if index != leader {
            // Standbys serve Transit by themselves, also while there is no leader.
            assert_eq!(node.admin().decrypt("kube", &made).await?, b"seed", "through {index}");
            node.admin().encrypt("kube", b"more").await?;
        }
    }
    let next = cluster.leader().await?;
    assert_ne!(next.name(), cluster.node(leader).name());
    cluster.heal().await?;
    assert_eq!(cluster.node(leader).admin().decrypt("kube", &made).await?, b"seed");

    assert_eq!(cluster.rotate("kube").await?, 2);
    let info = cluster.admin().key("kube").await?;
    assert_eq!((info.latest_version, info.created.len()), (2, 2));

    let standby = cluster.standby().await?;
    standby.seal().await?;
    standby.unseal().await?;
    let leader = cluster.leader().await?;
    leader.seal().await?;
    let next = cluster.leader().await?;
    assert_ne!(next.name(), leader.name());
    leader.unseal().await?;
    next.step_down().await?;
    cluster.heal().await?;
    let leader = cluster.leader().await?;
    leader.stop()?;
    assert!(leader.status().await.is_err(), "a frozen node answers nothing");
    leader.cont()?;
    eventually("it answers again", Duration::from_secs(10), || async {
        leader.status().await.map(Some)
    })
    .await?;
    leader.terminate().await?;
    cluster.heal().await?;

    // A certificate of another authority on all nodes, then a good one again.
    cluster.replace_certificate(&Authority::new("wrong")?.server()?)?;
    let node = cluster.node(0);
    let error = eventually("n0 is no longer trusted", Duration::from_secs(10), || async {
        Ok(node.status().await.err().map(|error| error.to_string()))
    })
    .await?;
    assert!(error.contains("UnknownIssuer"), "{error}");
    cluster.replace_certificate(&cluster.ca().server()?)?;
    cluster.heal().await
}

#[tokio::test]
async fn a_node_can_demand_client_certificates() -> Result {
    let builder = Cluster::builder().nodes(1).client_certificates(true);
    let cluster = builder.audit(false).standby_reads(false).start().await?;
    let url = format!("{}/v1/sys/health", cluster.mutual_tls_address(0)?);
    let ca = cluster.ca();
    let get = async |tls| -> Result<u16> {
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
        Ok(http.get(&url).send().await?.status().as_u16())
    };
    assert!(get(ca.client_config()?).await.is_err(), "no certificate");
    let known = ca.client("daemon", Validity::Now)?;
    assert_eq!(get(ca.client_config_as(&known)?).await?, 200);
    let expired = ca.client("daemon", Validity::Expired)?;
    assert!(get(ca.client_config_as(&expired)?).await.is_err(), "an expired certificate");
    let foreign = Authority::new("wrong")?.client("daemon", Validity::Now)?;
    assert!(get(ca.client_config_as(&foreign)?).await.is_err(), "a foreign certificate");

    // It has a disk: a key outlives a restart.
    cluster.create_keys(&["kube"]).await?;
    cluster.node(0).restart().await?;
    cluster.node(0).wait_active().await?;
    assert_eq!(cluster.admin().key("kube").await?.latest_version, 1);
    Ok(())
}

#[tokio::test]
async fn a_development_node_is_up_at_once_and_counts_what_it_is_asked() -> Result {
    let node = DevNode::start().await?;
    node.create_keys(&["kube"]).await?;
    let config = node.config(&["kube"]).await?;
    assert!(config.to_string().contains(node.address()));

    // The AppRole in the configuration may do what the smallest policy says.
    let secret_id = std::fs::read_to_string(config.get("secretIDFile").unwrap().as_str().unwrap())?;
    let login = json!({ "role_id": config.get("roleID"), "secret_id": secret_id });
    let answer = node.admin().write("auth/approle/login", login).await?;
    let token = answer["auth"]["client_token"].as_str().expect("a token");
    let daemon = node.admin().with_token(token);
    let made = daemon.encrypt("kube", b"seed").await?;
    assert_eq!(daemon.decrypt("kube", &made).await?, b"seed");
    assert_eq!(daemon.key("kube").await?.latest_version, 1);
    assert!(daemon.rotate("kube").await.unwrap_err().to_string().contains("permission denied"));
    assert_eq!(node.count_requests("auth/approle/login"), 1);
    assert_eq!(node.count_requests("transit/encrypt/"), 1);

    node.admin().revoke_token(token).await?;
    assert!(daemon.encrypt("kube", b"seed").await.unwrap_err().to_string().contains("403"));

    let limit = json!({ "rate": 1, "interval": "60s", "path": "transit/" });
    node.admin().set_rate_limit("slow", limit).await?;
    let limited = async || node.admin().encrypt("kube", b"seed").await;
    limited().await?;
    assert!(limited().await.unwrap_err().to_string().contains("429"));
    node.admin().remove_rate_limit("slow").await?;

    node.seal().await?;
    node.unseal().await?;
    let plain = node.admin().at(node.http());
    assert_eq!(plain.decrypt("kube", &made).await?, b"seed");
    Ok(())
}

#[tokio::test]
async fn a_key_moves_to_another_server_with_its_creation_time() -> Result {
    let (here, there) = tokio::try_join!(DevNode::start(), DevNode::start())?;
    here.admin().mount_transit().await?;
    there.admin().mount_transit().await?;
    let options = json!({ "exportable": true, "allow_plaintext_backup": true });
    here.admin().create_key_with("kube", options).await?;
    let made = here.admin().encrypt("kube", b"seed").await?;
    there.admin().restore("kube", &here.admin().backup("kube").await?).await?;
    assert_eq!(there.admin().decrypt("kube", &made).await?, b"seed");
    let (a, b) = (here.admin().key("kube").await?, there.admin().key("kube").await?);
    assert_eq!(a.created, b.created);

    here.admin().create_namespace("ops").await?;
    let ops = here.admin().in_namespace("ops").transit("kms");
    ops.mount_transit().await?;
    ops.create_key("kube").await?;
    ops.delete_key("kube").await?;
    assert!(ops.key("kube").await.is_err());
    let batch = json!({ "type": "batch", "policies": ["default"], "ttl": "1m" });
    let batch = here.admin().create_token(batch).await?;
    assert_eq!(here.admin().lookup_token(&batch).await?["type"], "batch");
    Ok(())
}
