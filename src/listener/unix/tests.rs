use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use super::*;

const NO_PATIENCE: Duration = Duration::ZERO;

/// A folder as an operator should make it, and the settings of a socket in it.
fn place() -> (tempfile::TempDir, PathBuf, SocketSettings) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("kms.sock");
    let settings = settings(&path);
    (dir, path, settings)
}

fn settings(path: &Path) -> SocketSettings {
    SocketSettings {
        address: SocketAddress::Path(path.to_owned()),
        mode: 0o600,
        owner: None,
        group: None,
        allowed_uids: None,
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

async fn error(settings: &SocketSettings) -> String {
    bind_within(settings, NO_PATIENCE).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_socket_has_the_mode_that_was_asked_for_and_answers() {
    for wanted in [0o600, 0o660, 0o666, 0o777] {
        let (_dir, path, mut settings) = place();
        settings.mode = wanted;
        let _bound = bind_within(&settings, NO_PATIENCE).await.unwrap();
        assert_eq!(mode(&path), wanted);
        assert_eq!(mode(&path.with_extension("sock.lock")), 0o600);
        StdStream::connect(&path).unwrap();
    }
}

#[tokio::test]
async fn the_file_goes_with_its_owner_and_the_lock_stays() {
    let (_dir, path, settings) = place();
    let bound = bind_within(&settings, NO_PATIENCE).await.unwrap();
    assert_eq!(bound.address(), &settings.address);
    drop(bound);
    assert!(!path.exists());
    let lock = path.with_extension("sock.lock");
    assert_eq!(fs::read_to_string(lock).unwrap(), format!("{}\n", std::process::id()));
    drop(bind_within(&settings, NO_PATIENCE).await.unwrap());
}

#[tokio::test]
async fn a_socket_that_somebody_else_put_there_is_not_removed() {
    let (_dir, path, settings) = place();
    let bound = bind_within(&settings, NO_PATIENCE).await.unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = StdListener::bind(&path).unwrap();
    drop(bound);
    StdStream::connect(&path).unwrap();
}

#[tokio::test]
async fn a_dead_socket_is_replaced() {
    let (_dir, path, settings) = place();
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    let _bound = bind_within(&settings, NO_PATIENCE).await.unwrap();
    StdStream::connect(&path).unwrap();
}

#[tokio::test]
async fn a_socket_that_answers_is_never_stolen() {
    let (_dir, path, settings) = place();
    let theirs = StdListener::bind(&path).unwrap();
    assert_eq!(
        error(&settings).await,
        format!(
            "another process answers at {}; stop it (`ss -xlp` names it) or change socket.path",
            path.display()
        )
    );
    theirs.accept().unwrap();
    StdStream::connect(&path).unwrap();
}

#[tokio::test]
async fn a_socket_whose_backlog_is_full_is_not_taken_for_dead() {
    let (_dir, path, settings) = place();
    let fd = new_socket().unwrap();
    bind_fd(&fd, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&fd, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = new_socket().unwrap();
        match rustix::net::connect(&client, &SocketAddrUnix::new(&path).unwrap()) {
            Ok(()) => waiting.push(client),
            Err(errno) => break assert_eq!(errno, rustix::io::Errno::AGAIN),
        }
    }
    assert!(error(&settings).await.contains("another process answers"));
}

#[tokio::test]
async fn a_datagram_socket_is_not_taken_for_dead() {
    let (_dir, path, settings) = place();
    let _theirs = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert!(error(&settings).await.contains("another process answers"));
}

#[tokio::test]
async fn what_is_no_socket_is_not_removed() {
    let (dir, path, settings) = place();
    let expected = |kind| {
        format!(
            "{} exists and is {kind}, not a socket; remove it or change socket.path",
            path.display()
        )
    };
    fs::write(&path, "precious").unwrap();
    assert_eq!(error(&settings).await, expected("a plain file"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    assert_eq!(error(&settings).await, expected("a folder"));
    fs::remove_dir(&path).unwrap();

    symlink(dir.path().join("elsewhere.sock"), &path).unwrap();
    assert_eq!(error(&settings).await, expected("a symbolic link"));
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
}

#[tokio::test]
async fn a_path_that_does_not_fit_is_refused_with_its_length() {
    let long = PathBuf::from(format!("/run/{}", "x".repeat(103)));
    assert_eq!(
        error(&settings(&long)).await,
        format!(
            "socket path {} has 108 bytes and the kernel takes at most 107; configure a shorter \
             socket.path",
            long.display()
        )
    );
    let (dir, _, _) = place();
    let room = LONGEST_ADDRESS - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("x".repeat(room));
    let _bound = bind_within(&settings(&path), NO_PATIENCE).await.unwrap();
    StdStream::connect(path).unwrap();
}

#[tokio::test]
async fn a_folder_that_every_user_may_write_to_is_refused() {
    let (dir, path, settings) = place();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let parent = dir.path().display();
    assert_eq!(
        error(&settings).await,
        format!(
            "folder {parent} of socket {} is writable by every user (mode 0777), who could put \
             another socket in the place of this one; run `chmod o-w {parent}`",
            path.display()
        )
    );
    assert!(!path.with_extension("sock.lock").exists());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    bind_within(&settings, NO_PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let (dir, _, _) = place();
    let path = dir.path().join("no/kms.sock");
    assert_eq!(
        error(&settings(&path)).await,
        format!(
            "folder {parent} of socket {} does not exist; create it: `mkdir -m 0755 {parent}`",
            path.display(),
            parent = dir.path().join("no").display()
        )
    );
    fs::write(dir.path().join("no"), "").unwrap();
    assert!(error(&settings(&path)).await.contains("is not a folder"));
    let deeper = dir.path().join("no/deeper/kms.sock");
    assert!(error(&settings(&deeper)).await.contains("is not a folder"));
}

#[tokio::test]
async fn a_folder_behind_a_symbolic_link_is_fine() {
    let (dir, _, _) = place();
    let (real, link) = (dir.path().join("run"), dir.path().join("var-run"));
    fs::create_dir(&real).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o755)).unwrap();
    symlink(&real, &link).unwrap();
    let _bound = bind_within(&settings(&link.join("s")), NO_PATIENCE).await.unwrap();
    StdStream::connect(real.join("s")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_held_is_waited_for_and_its_holder_named() {
    let (_dir, path, settings) = place();
    let first = bind_within(&settings, NO_PATIENCE).await.unwrap();
    let begin = Instant::now();
    assert_eq!(
        bind(&settings).await.unwrap_err().to_string(),
        format!(
            "lock {}.lock is still held by process {} after 10 s; stop that process, or give \
             this one another socket.path",
            path.display(),
            std::process::id()
        )
    );
    assert!(begin.elapsed() >= LOCK_PATIENCE);
    StdStream::connect(&path).unwrap();

    let next = tokio::spawn(async move { bind(&settings).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(first);
    let _second = next.await.unwrap().unwrap();
    StdStream::connect(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_held_by_another_process_is_respected() {
    use std::io::{BufRead, BufReader};
    let (_dir, path, settings) = place();
    let lock = path.with_extension("sock.lock");
    let mut holder = std::process::Command::new("flock")
        .arg(&lock)
        .args(["sh", "-c", "echo locked; exec cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("flock(1) of util-linux is installed");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(error(&settings).await.contains("is still held by another process after 0 s"));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    bind_within(&settings, NO_PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_lock_that_is_no_file_is_refused() {
    let (dir, path, settings) = place();
    let lock = path.with_extension("sock.lock");
    fs::write(dir.path().join("victim"), "precious").unwrap();
    symlink(dir.path().join("victim"), &lock).unwrap();
    assert!(error(&settings).await.contains("is a symbolic link; remove it"));
    assert_eq!(fs::read_to_string(dir.path().join("victim")).unwrap(), "precious");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert!(error(&settings).await.contains("is a folder; remove it"));
}

#[tokio::test]
async fn owner_and_group_are_set_by_name_and_number() {
    if !rustix::process::geteuid().is_root() {
        return; // only root may give files away
    }
    let (_dir, path, mut settings) = place();
    settings.owner = Some("65534".to_owned());
    settings.group = Some("daemon".to_owned());
    settings.mode = 0o660;
    let _bound = bind_within(&settings, NO_PATIENCE).await.unwrap();
    let meta = fs::symlink_metadata(&path).unwrap();
    assert_eq!((meta.uid(), mode(&path)), (65_534, 0o660));
    assert_ne!(meta.gid(), 0);
}

#[tokio::test]
async fn an_unknown_owner_or_group_is_refused_before_anything_is_made() {
    let (_dir, path, mut settings) = place();
    settings.group = Some("no-such-group".to_owned());
    assert_eq!(
        error(&settings).await,
        format!(
            "group `no-such-group` of socket {} is not in /etc/group; write its number in \
             socket.group",
            path.display()
        )
    );
    settings.group = None;
    settings.owner = Some("no-such-user".to_owned());
    assert!(error(&settings).await.contains("`no-such-user`"));
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn an_abstract_socket_needs_a_list_of_users_and_a_free_name() {
    let name = format!("vault-kms-proxy-test-{}", std::process::id());
    let mut settings = settings(Path::new("unused"));
    settings.address = SocketAddress::Abstract(name.clone());
    assert_eq!(
        error(&settings).await,
        format!(
            "abstract socket @{name} has no file whose mode could keep anybody out; list who may \
             connect, for example `socket.allowedUids: [0]`"
        )
    );
    settings.allowed_uids = Some(vec![0]);
    let bound = bind_within(&settings, NO_PATIENCE).await.unwrap();
    assert!(error(&settings).await.starts_with(&format!("another process answers at @{name}")));
    let next = tokio::spawn(async move { bind(&settings).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(bound);
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_abstract_name_that_does_not_fit_is_refused() {
    for name in [String::new(), "x".repeat(108)] {
        let mut settings = settings(Path::new("unused"));
        settings.address = SocketAddress::Abstract(name.clone());
        settings.allowed_uids = Some(vec![0]);
        assert!(error(&settings).await.contains(&format!("has {} bytes", name.len())));
    }
}
