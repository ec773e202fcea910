use http::Uri;

use super::*;
use crate::cluster::Transport;
use crate::cluster::testing::{self, Reply, app_role, cluster_of};
use crate::config::settings::ClusterSettings;

fn kept(wrapping_token: &str, owner: &Owner, secret_id: &str) -> Kept {
    Kept {
        came_from: Digest::of(&wrapping_token.into()),
        owner: owner.clone(),
        secret_id: secret_id.into(),
    }
}

async fn put(keep: &Keep, kept: &Kept) {
    let place = keep.prepare(keep.lock().await.unwrap()).await.unwrap();
    place.keep(kept).await.unwrap();
}

#[tokio::test]
async fn a_newer_secret_id_of_another_process_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scripted) = cluster_of(testing::settings(app_role()), |_| Reply::Unreachable);
    let transport = scripted as Arc<dyn Transport>;
    let owner = |addresses: &[&'static str]| {
        let mut settings = ClusterSettings::clone(&testing::settings(app_role()));
        settings.addresses = addresses.iter().map(|a| Uri::from_static(a)).collect();
        let link = Link::new(&settings, &transport, &Arc::default());
        (Owner::new(&link, "approle", &"kms".into()), link)
    };
    let (before, _) = owner(&["https://b0:8200"]);
    let (after, link) = owner(&["https://b0:8200", "https://b1:8200"]);
    let path = folder.path().join("kept");
    let wrapped = Wrapped::new(SecretSource::Inline("w1".into()), path, "approle", link);
    let read = async || wrapped.keep.read().await.unwrap().unwrap();

    // One address more, and nobody else.
    let first = kept("w1", &before, "first");
    put(&wrapped.keep, &first).await;
    assert_eq!(wrapped.serve(first.clone(), after.clone()).await.expose_secret(), "first");
    assert_eq!(read().await.owner, after);

    // Between our look and now another process has unwrapped the next one.
    put(&wrapped.keep, &kept("w2", &before, "second")).await;
    assert_eq!(wrapped.serve(first, after).await.expose_secret(), "first");
    let there = read().await;
    assert_eq!((there.secret_id.expose_secret(), there.owner), ("second", before));
}
