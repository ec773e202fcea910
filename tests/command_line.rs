//! The command line as people and scripts use it: without a file, with a pipe that closes,
//! with an environment that is no text.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Command, Output, Stdio};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(DAEMON);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn the_environment_alone_can_be_a_configuration() -> std::io::Result<()> {
    let token = tempfile::NamedTempFile::new()?;
    let said = command(&["check"])
        .env("VAULT_KMS_PROXY_KEY_NAMES", "[kube]")
        .env("VAULT_ADDR", "https://vault.example:8200")
        .env("VAULT_KMS_PROXY_TOKEN_FILE", token.path())
        .output()?;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said));
    assert_eq!(
        text(&said),
        "the environment: no error, no warning. Encrypts with kube; decrypts with kube.\n"
    );
    Ok(())
}

#[test]
fn without_any_configuration_both_commands_say_what_is_missing() -> std::io::Result<()> {
    for name in ["serve", "check"] {
        let said = command(&[name]).output()?;
        assert_eq!(said.status.code(), Some(64), "{}", text(&said));
        for words in ["keyNames", "addr"] {
            assert!(text(&said).contains(words), "{name}: {}", text(&said));
        }
    }
    Ok(())
}

#[test]
fn an_environment_that_is_no_text_is_no_reason_to_fail() -> std::io::Result<()> {
    let said = command(&["check", "--config", "/nowhere.yaml"])
        .env("LEGACY", OsString::from_vec(vec![b'a', 0xff]))
        .output()?;
    assert_eq!(said.status.code(), Some(64), "{}", text(&said));
    assert!(text(&said).contains("there is no such file"), "{}", text(&said));
    Ok(())
}

#[test]
fn a_reader_that_has_gone_is_no_reason_to_fail() -> std::io::Result<()> {
    let mut child = command(&["check"])
        .env("VAULT_KMS_PROXY_KEY_NAMES", "[kube]")
        .env("VAULT_KMS_PROXY_ADDR", "https://vault.example:8200")
        .env("VAULT_KMS_PROXY_TOKEN", "s.inline")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let said = child.wait_with_output()?;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said));
    assert!(!text(&said).contains("panicked"), "{}", text(&said));
    Ok(())
}
