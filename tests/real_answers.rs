//! The answer table of `transit::verdict`, held against what a real OpenBao answers.
//!
//! Each answer is forced from a running node, never waited for by luck. So what cannot be
//! forced is missing here and stands in the unit tests alone: a standby that has not heard
//! of a key or version yet, an index that is not reached, redirects, and all that only
//! HashiCorp Vault says (412, 472, 473, 474, 530).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use lab::{Admin, Cluster, Context as _, DevNode, Node, Reply, eventually, policy_for};
use serde_json::{Value, json};
use vault_kms_proxy::clock::{Deadline, Jitter, node_time};
use vault_kms_proxy::cluster::address::Role;
use vault_kms_proxy::cluster::operation::AddressName;
use vault_kms_proxy::cluster::tls::LoadedTls;
use vault_kms_proxy::cluster::{Answer, Call, Operation, Stack, Verb, Verdict};
use vault_kms_proxy::config::settings::{AuthSettings, ClusterName, ClusterSettings, TlsSettings};
use vault_kms_proxy::transit::verdict::{classify, refusal};
use vault_kms_proxy::transit::{Refusal, TransitVerdicts};
use zeroize::Zeroizing;

/// What a row of the table expects, as the unit tests of the table have it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expect {
    /// Final, and means this.
    Refused(Refusal),
    /// Final, in Vault's own words, of which these are a part.
    BadRequest(&'static str),
    /// Final, of something that is no Transit verb or that means nothing to an operator.
    Final,
    /// Asked elsewhere, and when all agree it means this.
    Stale(Refusal),
    /// The same for what names a mount or namespace that is not there.
    StaleMisconfigured,
    /// The token is to be got anew.
    Token,
    /// Elsewhere, without fault.
    Other,
    /// Elsewhere, and the breaker opens.
    Eject,
}

use Expect::{BadRequest, Eject, Final, Other, Refused, Stale, StaleMisconfigured, Token};

/// Asks one thing and holds the real answer against the row.
async fn row(
    name: &str,
    admin: &Admin,
    verb: Verb,
    (method, path): (&str, &str),
    body: Value,
    (status, expected): (u16, Expect),
) -> lab::Result<Reply> {
    let reply = admin.request(method, path, &body).await?;
    hold(name, verb, &reply, (status, expected));
    Ok(reply)
}

fn hold(name: &str, verb: Verb, reply: &Reply, (status, expected): (u16, Expect)) {
    println!("{name}: {reply}");
    assert_eq!(reply.status, status, "row `{name}`: {reply}");
    let answer = answer_of(reply);
    let verdict = classify(verb, answer.status, &answer.headers, &answer.body);
    let means = || refusal(verb, &answer);
    let found = match &verdict {
        Verdict::TokenRefused => Token,
        Verdict::Elsewhere(elsewhere) if elsewhere.eject => Eject,
        Verdict::Elsewhere(elsewhere) => {
            assert!(!elsewhere.at_fault, "row `{name}`: {reply}: {verdict:?}");
            Other
        }
        Verdict::Stale(_) => match means() {
            Refusal::Misconfigured(_) => StaleMisconfigured,
            refusal => Stale(refusal),
        },
        Verdict::Final => match (&expected, means()) {
            (Final, _) => Final,
            (BadRequest(words), Refusal::BadRequest(said)) if said.contains(words) => {
                BadRequest(words)
            }
            (_, refusal) => Refused(refusal),
        },
    };
    assert_eq!(found, expected, "row `{name}`: {reply}: {verdict:?}");
}

fn answer_of(reply: &Reply) -> Answer {
    let body = if reply.body.is_null() { Vec::new() } else { reply.body.to_string().into_bytes() };
    Answer {
        status: StatusCode::from_u16(reply.status).expect("a real answer has a status"),
        headers: reply.headers.clone(),
        body: Zeroizing::new(body),
        address: AddressName::of(&Uri::from_static("https://127.0.0.1:8200")),
    }
}

/// An admin that may do what a daemon may do with the key `kube`, and no more.
async fn daemon_token(root: &Admin) -> lab::Result<Admin> {
    root.write_policy("kms", &policy_for(&["kube"])).await?;
    let token = root.create_token(json!({ "policies": ["kms"], "ttl": "1h" })).await?;
    Ok(root.with_token(&token))
}

const DEK: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";
const ENCRYPT: (&str, &str) = ("POST", "transit/encrypt/kube");
const DECRYPT: (&str, &str) = ("POST", "transit/decrypt/kube");

#[tokio::test]
async fn keys_and_ciphertexts() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "other"]).await?;
    let root = bao.admin();
    let daemon = daemon_token(root).await?;
    let first = root.encrypt("kube", b"seed").await?;
    let others = root.encrypt("other", b"seed").await?;
    let of = |ciphertext: &str| json!({ "ciphertext": ciphertext });
    let with = |version: u32| json!({ "plaintext": DEK, "key_version": version });

    let good = (200, Final);
    row("a good encrypt", &daemon, Verb::Encrypt, ENCRYPT, with(1), good.clone()).await?;
    row("a good decrypt", &daemon, Verb::Decrypt, DECRYPT, of(&first), good.clone()).await?;
    row("a good read", &daemon, Verb::ReadKey, ("GET", "transit/keys/kube"), Value::Null, good)
        .await?;

    let wrong_key = (400, Stale(Refusal::WrongKey));
    row("another key's", &daemon, Verb::Decrypt, DECRYPT, of(&others), wrong_key).await?;
    let too_new = (400, Stale(Refusal::TooNew));
    row("too new", &daemon, Verb::Decrypt, DECRYPT, of(&first.replace("v1", "v9")), too_new)
        .await?;
    let above = (400, Stale(Refusal::AboveLatest));
    row("above the latest", &daemon, Verb::Encrypt, ENCRYPT, with(9), above).await?;
    let base64 = (400, BadRequest("base64"));
    row("bad base64", &daemon, Verb::Decrypt, DECRYPT, of("vault:v1:!!!!"), base64).await?;
    let short = (400, BadRequest("invalid ciphertext"));
    row("too short", &daemon, Verb::Decrypt, DECRYPT, of("vault:v1:AAEC"), short).await?;
    let prefix = (400, BadRequest("no prefix"));
    row("no prefix", &daemon, Verb::Decrypt, DECRYPT, of("kube:v1:AAEC"), prefix).await?;

    root.rotate("kube").await?;
    root.set_min_encryption_version("kube", 2).await?;
    let below = (400, Refused(Refusal::BelowMinimumEncryption));
    row("below the minimum", &daemon, Verb::Encrypt, ENCRYPT, with(1), below).await?;
    root.set_min_decryption_version("kube", 2).await?;
    let too_old = (400, Stale(Refusal::TooOld));
    row("too old", &daemon, Verb::Decrypt, DECRYPT, of(&first), too_old).await?;

    root.delete_key("kube").await?;
    let gone = || (400, Stale(Refusal::KeyNotFound));
    row("no key, decrypt", &daemon, Verb::Decrypt, DECRYPT, of(&first), gone()).await?;
    let read = ("GET", "transit/keys/kube");
    let unread = (404, Stale(Refusal::KeyNotFound));
    row("no key, read", &daemon, Verb::ReadKey, read, Value::Null, unread).await?;
    // An encrypt would make it, which the policy forbids.
    let denied = (403, Stale(Refusal::PolicyDenied));
    row("no key, encrypt", &daemon, Verb::Encrypt, ENCRYPT, with(1), denied).await?;

    root.create_key_with("kube", json!({ "derived": true })).await?;
    let context = (400, BadRequest("context"));
    row("derived", &daemon, Verb::Encrypt, ENCRYPT, json!({ "plaintext": DEK }), context).await?;
    root.call("DELETE", "transit/keys/other/soft-delete", Value::Null).await?;
    let deleted = (400, Stale(Refusal::KeyDeleted));
    row(
        "soft-deleted",
        root,
        Verb::Decrypt,
        ("POST", "transit/decrypt/other"),
        of(&others),
        deleted,
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn tokens_policies_mounts_namespaces_and_limits() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "forbidden"]).await?;
    let root = bao.admin();
    let daemon = daemon_token(root).await?;
    let plain = || json!({ "plaintext": DEK });
    let of = json!({ "ciphertext": root.encrypt("kube", b"seed").await? });

    // Policies.
    let denied = || (403, Refused(Refusal::PolicyDenied));
    let path = ("POST", "transit/decrypt/forbidden");
    row("policy, decrypt", &daemon, Verb::Decrypt, path, of.clone(), denied()).await?;
    let path = ("GET", "transit/keys/forbidden");
    row("policy, read", &daemon, Verb::ReadKey, path, Value::Null, denied()).await?;
    let path = ("POST", "transit/encrypt/forbidden");
    let encrypt = (403, Stale(Refusal::PolicyDenied));
    row("policy, encrypt", &daemon, Verb::Encrypt, path, plain(), encrypt).await?;

    // Tokens.
    let invalid = root.with_token("s.NoSuchTokenWasEverMade00");
    let token = || (403, Token);
    row("invalid token, decrypt", &invalid, Verb::Decrypt, DECRYPT, of.clone(), token()).await?;
    row("invalid token, encrypt", &invalid, Verb::Encrypt, ENCRYPT, plain(), token()).await?;
    let lookup = ("GET", "auth/token/lookup-self");
    row("invalid token, lookup", &invalid, Verb::LookupSelf, lookup, Value::Null, token()).await?;
    let renew = ("POST", "auth/token/renew-self");
    row("invalid token, renew", &invalid, Verb::RenewSelf, renew, json!({}), token()).await?;
    let fixed = json!({ "policies": ["kms"], "ttl": "1h", "renewable": false });
    let fixed = root.with_token(&root.create_token(fixed).await?);
    let unrenewable = (400, BadRequest("not renewable"));
    row("not renewable", &fixed, Verb::RenewSelf, renew, json!({}), unrenewable).await?;
    let batch = json!({ "policies": ["kms"], "ttl": "1h", "type": "batch" });
    let batch = root.with_token(&root.create_token(batch).await?);
    let unrenewable = (400, BadRequest("batch tokens cannot be renewed"));
    row("batch token", &batch, Verb::RenewSelf, renew, json!({}), unrenewable).await?;

    // Logins.
    let role = root.create_approle("kms", json!({ "token_policies": ["kms"] })).await?;
    let nobody = root.with_token("");
    let login = ("POST", "auth/approle/login");
    let with = |role: &str, secret: &str| json!({ "role_id": role, "secret_id": secret });
    let rejected = || (400, BadRequest("invalid role or secret"));
    let wrong = with(&role.role_id, "wrong");
    row("wrong secret id", &nobody, Verb::Login, login, wrong, rejected()).await?;
    let wrong = with("wrong", &role.secret_id);
    row("wrong role id", &nobody, Verb::Login, login, wrong, rejected()).await?;
    let right = with(&role.role_id, &role.secret_id);
    let path = ("POST", "auth/nowhere/login");
    row(
        "login, wrong mount",
        &nobody,
        Verb::Login,
        path,
        right.clone(),
        (403, Stale(Refusal::PolicyDenied)),
    )
    .await?;
    // Five failures lock a role out, for the right secret id too.
    for _ in 0..5 {
        nobody.request("POST", login.1, &with(&role.role_id, "wrong")).await?;
    }
    let locked = (403, Stale(Refusal::PolicyDenied));
    row("role locked out", &nobody, Verb::Login, login, right, locked).await?;

    // Mounts and namespaces.
    let path = ("POST", "nowhere/encrypt/kube");
    row("no mount", root, Verb::Encrypt, path, plain(), (404, StaleMisconfigured)).await?;
    let path = ("GET", "nowhere/keys/kube");
    row("no mount, read", root, Verb::ReadKey, path, Value::Null, (404, StaleMisconfigured))
        .await?;
    let path = ("DELETE", "transit/encrypt/kube");
    row("not allowed", root, Verb::Encrypt, path, Value::Null, (405, StaleMisconfigured)).await?;
    let elsewhere = root.in_namespace("nowhere");
    row("no namespace", &elsewhere, Verb::Encrypt, ENCRYPT, plain(), (404, StaleMisconfigured))
        .await?;
    row(
        "no namespace, read",
        &elsewhere,
        Verb::ReadKey,
        ("GET", "transit/keys/kube"),
        Value::Null,
        (404, StaleMisconfigured),
    )
    .await?;
    let health = ("GET", "sys/health");
    row("health in a namespace", &elsewhere, Verb::Health, health, Value::Null, (400, Final))
        .await?;
    let foreign = daemon.in_namespace("nowhere");
    row(
        "no namespace, limited token",
        &foreign,
        Verb::Decrypt,
        DECRYPT,
        of.clone(),
        (404, StaleMisconfigured),
    )
    .await?;
    let path = ("POST", "nowhere/decrypt/kube");
    row("no mount, limited token", &daemon, Verb::Decrypt, path, of.clone(), denied()).await?;
    root.create_namespace("locked").await?;
    root.write("sys/namespaces/api-lock/lock/locked", json!({})).await?;
    let locked = root.in_namespace("locked");
    row("locked namespace", &locked, Verb::Decrypt, DECRYPT, of, (503, Other)).await?;

    // Rate limits, as they are by default and with the headers that Vault can add.
    let pause = |reply: &Reply| {
        let answer = answer_of(reply);
        match classify(Verb::Encrypt, answer.status, &answer.headers, &answer.body) {
            Verdict::Elsewhere(elsewhere) => elsewhere.again_after,
            verdict => panic!("a rate limit is no {verdict:?}"),
        }
    };
    let limit = json!({ "rate": 1.0, "interval": "20s", "path": "transit/" });
    root.set_rate_limit("lab", limit).await?;
    row("below the limit", &daemon, Verb::Encrypt, ENCRYPT, plain(), (200, Final)).await?;
    let limited = row("rate limit", &daemon, Verb::Encrypt, ENCRYPT, plain(), (429, Other)).await?;
    assert_eq!(limited.headers.get("retry-after"), None);
    assert_eq!(pause(&limited), Some(Duration::from_secs(1)));
    root.write("sys/quotas/config", json!({ "enable_rate_limit_response_headers": true })).await?;
    let limited = row("rate limit", &daemon, Verb::Encrypt, ENCRYPT, plain(), (429, Other)).await?;
    let said = limited.headers["retry-after"].to_str()?.parse()?;
    assert_eq!(pause(&limited), Some(Duration::from_secs(said)));
    Ok(())
}

#[tokio::test]
async fn a_sealed_node() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let root = bao.admin();
    let health = ("GET", "sys/health");
    row("active", root, Verb::Health, health, Value::Null, (200, Final)).await?;
    let stack = stack_to(&[&bao], bao.ca_file())?;
    assert_eq!(roles_are_seen(&stack, &[&bao]).await?, [Role::Active]);
    let now = stack.clock().now().context("its health tells its time")?;
    assert!((now.0 - node_time().0).abs() <= 2, "{now:?}");
    bao.seal().await?;
    assert_eq!(roles_are_seen(&stack, &[&bao]).await?, [Role::Sealed]);
    let sealed = || (503, Eject);
    row("sealed, health", root, Verb::Health, health, Value::Null, sealed()).await?;
    row("sealed, encrypt", root, Verb::Encrypt, ENCRYPT, json!({ "plaintext": DEK }), sealed())
        .await?;
    let login = ("POST", "auth/approle/login");
    let body = json!({ "role_id": "a", "secret_id": "b" });
    row("sealed, login", root, Verb::Login, login, body, sealed()).await?;
    Ok(())
}

#[tokio::test]
async fn a_standby_and_a_node_without_a_leader() -> lab::Result {
    let bao = Cluster::start().await?;
    bao.create_keys(&["kube"]).await?;
    let nodes: Vec<_> = bao.nodes().iter().collect();
    let stack = stack_to(&nodes, bao.ca_file())?;
    let first = roles_are_seen(&stack, &nodes).await?;
    bao.leader().await?.step_down().await?;
    bao.heal().await?;
    let then = roles_are_seen(&stack, &nodes).await?;
    assert_ne!(first, then, "nobody stepped down");
    for roles in [&first, &then] {
        let count = |role| roles.iter().filter(|is| **is == role).count();
        assert_eq!((count(Role::Active), count(Role::Standby)), (1, 2), "{roles:?}");
    }

    let standby = bao.standby().await?;
    let admin = bao.admin().at(standby.address());
    let health = ("GET", "sys/health");
    row("standby, health", &admin, Verb::Health, health, Value::Null, (429, Final)).await?;
    let plain = || json!({ "plaintext": DEK });
    row("standby, encrypt", &admin, Verb::Encrypt, ENCRYPT, plain(), (200, Final)).await?;

    let limited = daemon_token(bao.admin()).await?.at(standby.address());
    let role = bao.admin().create_approle("kms", json!({ "token_policies": ["kms"] })).await?;
    let nobody = limited.with_token("");
    let login = ("POST", "auth/approle/login");
    let secret = json!({ "role_id": role.role_id, "secret_id": role.secret_id });
    // It answers from what it knows, so it rejects a role that is newer than that.
    wait_for(&nobody, login, &secret, 200).await?;
    for node in bao.nodes().iter().filter(|node| node.address() != standby.address()) {
        node.kill();
    }
    let renew = ("POST", "auth/token/renew-self");
    let reply = wait_for(&limited, renew, &json!({}), 307).await?;
    hold("no leader, renewal", Verb::RenewSelf, &reply, (307, Other));
    row("no leader, encrypt", &limited, Verb::Encrypt, ENCRYPT, plain(), (200, Final)).await?;
    let reply = wait_for(&nobody, login, &secret, 307).await?;
    hold("no leader, login", Verb::Login, &reply, (307, Other));
    Ok(())
}

/// The daemon's way to these nodes, and its probes of them.
fn stack_to(nodes: &[&Node], ca: &Path) -> lab::Result<Stack> {
    let addresses: Result<_, _> = nodes.iter().map(|node| node.address().parse()).collect();
    let settings = ClusterSettings {
        name: ClusterName::try_new("bao")?,
        addresses: addresses?,
        namespace: None,
        auth_namespace: None,
        tls: TlsSettings { ca_file: Some(ca.to_owned()), ..TlsSettings::default() },
        auth: AuthSettings::Token("none".into()),
        token_cache: None,
        dns_servers: Vec::new(),
        allow_plaintext: false,
    };
    let (tls, jitter) = (LoadedTls::read(&settings.tls)?, Arc::new(Jitter::from_entropy()));
    Ok(Stack::try_new(&settings, &tls, Arc::new(TransitVerdicts), jitter)?)
}

/// Waits until the probes see each node as what its health says it is, while somebody calls.
async fn roles_are_seen(stack: &Stack, nodes: &[&Node]) -> lab::Result<Vec<Role>> {
    eventually("each node is seen as what it is", Duration::from_secs(30), || async {
        // Without a token it is refused, wherever it is taken at all.
        let operation = Arc::new(Operation {
            needs_active: false,
            verb: Verb::Decrypt,
            method: Method::POST,
            path: "/v1/transit/decrypt/kube".into(),
            namespace: None,
            body: None,
        });
        let deadline = Deadline::after(Duration::from_millis(200));
        if stack.call(Call { operation, token: None, deadline }).await.is_ok() {
            lab::fail!("a call without a token was answered");
        }
        let mut roles = Vec::new();
        for (node, seen) in std::iter::zip(nodes, stack.addresses()) {
            let is = match node.status().await? {
                200 => Role::Active,
                429 => Role::Standby,
                503 => Role::Sealed,
                status => lab::fail!("{} answers HTTP {status}", node.name()),
            };
            if seen.role != is {
                lab::fail!("{} is {is} and is seen as {}", node.name(), seen.role);
            }
            roles.push(is);
        }
        Ok(Some(roles))
    })
    .await
}

async fn wait_for(
    admin: &Admin,
    (method, path): (&str, &str),
    body: &Value,
    status: u16,
) -> lab::Result<Reply> {
    eventually(&format!("{path} answers {status}"), Duration::from_secs(10), || async {
        let reply = admin.request(method, path, body).await?;
        if reply.status != status {
            lab::fail!("{reply}");
        }
        Ok(Some(reply))
    })
    .await
}
