//! How the tests of one binary share a server: in a static, which is never dropped; the
//! server ends with the process all the same.

use lab::{DevNode, Result};
use tokio::sync::OnceCell;

async fn node() -> Result<&'static DevNode> {
    static NODE: OnceCell<DevNode> = OnceCell::const_new();
    NODE.get_or_try_init(async || {
        let node = DevNode::start().await?;
        node.create_keys(&["kube"]).await?;
        Ok(node)
    })
    .await
}

#[tokio::test]
async fn one_test_uses_the_shared_node() -> Result {
    let admin = node().await?.admin();
    for _ in 0..5 {
        let made = admin.encrypt("kube", b"one").await?;
        assert_eq!(admin.decrypt("kube", &made).await?, b"one");
    }
    Ok(())
}

#[tokio::test]
async fn another_test_with_its_own_runtime_uses_it_too() -> Result {
    let admin = node().await?.admin();
    for _ in 0..5 {
        let made = admin.encrypt("kube", b"two").await?;
        assert_eq!(admin.decrypt("kube", &made).await?, b"two");
    }
    Ok(())
}
