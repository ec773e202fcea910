//! Two clusters that hold one key, and two whose keys only look the same.

use lab::{DevNode, Result};

#[tokio::test]
async fn a_replica_reads_what_the_first_wrote_and_an_impostor_only_looks_like_it() -> Result {
    let (first, second) = tokio::try_join!(DevNode::start(), DevNode::start())?;
    let (a, b) = (first.admin(), second.admin());
    a.mount_transit().await?;
    a.create_replicable_key("kube").await?;
    a.rotate("kube").await?;
    let made = a.encrypt("kube", b"seed").await?;

    a.replicate_key("kube", b).await?;
    assert_eq!(b.decrypt("kube", &made).await?, b"seed");
    assert_eq!(b.key("kube").await?.created, a.key("kube").await?.created);

    // A rotation of the first is brought over by another backup.
    a.rotate("kube").await?;
    let newer = a.encrypt("kube", b"newer").await?;
    b.decrypt("kube", &newer).await.unwrap_err();
    a.replicate_key("kube", b).await?;
    assert_eq!(b.decrypt("kube", &newer).await?, b"newer");

    let impostors = b.transit("impostors");
    a.replicate_as_impostor("kube", &impostors).await?;
    assert_eq!(impostors.key("kube").await?.created, a.key("kube").await?.created);
    impostors.encrypt("kube", b"works by itself").await?;
    for ciphertext in [&made, &newer] {
        let refused = impostors.decrypt("kube", ciphertext).await.unwrap_err().to_string();
        assert!(refused.contains("message authentication failed"), "{refused}");
    }
    Ok(())
}
