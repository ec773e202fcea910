//! Names as DNS servers know them: services always, hosts when `dns.servers` is set.
//!
//! A resolver is made for each question, so that `/etc/hosts` and `/etc/resolv.conf` are
//! read as they are now; both are small, and a name is asked for every few seconds at most.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData};

use super::{Found, Target, Unresolved};

/// How long one server may take before the next is asked; two rounds of it are made.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The addresses of `host` in `/etc/hosts`, or at `servers`.
pub(super) async fn addresses(
    servers: &[SocketAddr],
    host: &str,
) -> Result<Found<IpAddr>, Unresolved> {
    let found = resolver(servers)?.lookup_ip(absolute(host)?).await.map_err(|e| explain(&e))?;
    let records: Vec<_> = found.iter().collect();
    if records.is_empty() {
        return Err(Unresolved::because("it has no address"));
    }
    Ok(Found { records, ttl: ttl(found.as_lookup()) })
}

/// The targets of `service` at `servers`, or at those of `/etc/resolv.conf` when there is
/// none.
pub(super) async fn targets(
    servers: &[SocketAddr],
    service: &str,
) -> Result<Found<Target>, Unresolved> {
    let found = resolver(servers)?.srv_lookup(absolute(service)?).await.map_err(|e| explain(&e))?;
    let target = |data: &RData| match data {
        // A target of "." says that there is no such service (RFC 2782).
        RData::SRV(srv) if !srv.target.is_root() => Some(Target {
            priority: srv.priority,
            weight: srv.weight,
            host: srv.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
            port: srv.port,
        }),
        _ => None,
    };
    let records: Vec<_> = found.answers().iter().filter_map(|r| target(&r.data)).collect();
    if records.is_empty() {
        return Err(Unresolved::because("it has no target"));
    }
    Ok(Found { records, ttl: ttl(&found) })
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, Unresolved> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()
            .map_err(|error| Unresolved::because(format!("/etc/resolv.conf: {error}")))?
    } else {
        let servers = servers.iter().map(server).collect();
        let config = ResolverConfig::from_name_servers(servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Always;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.timeout = SERVER_TIMEOUT;
    options.cache_size = 0; // whoever asks, asks because the last answer is old
    builder.build().map_err(|error| explain(&error))
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let with_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let ways = vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())];
    NameServerConfig::new(address.ip(), true, ways)
}

/// The name as it is written: no search domain is tried after it.
fn absolute(name: &str) -> Result<Name, Unresolved> {
    let mut name = Name::from_ascii(name)
        .map_err(|error| Unresolved::because(format!("it is no DNS name: {error}")))?;
    name.set_fqdn(true);
    Ok(name)
}

fn ttl(found: &Lookup) -> Option<Duration> {
    found.answers().iter().map(|r| Duration::from_secs(u64::from(r.ttl))).min()
}

fn explain(error: &NetError) -> Unresolved {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            Unresolved::because(match none.response_code {
                ResponseCode::NXDomain => "there is no such name (NXDOMAIN)".to_owned(),
                ResponseCode::NoError => "it has no record of the kind that is needed".to_owned(),
                other => format!("the DNS server says {other}"),
            })
        }
        NetError::Dns(DnsError::ResponseCode(code)) => {
            Unresolved::because(format!("the DNS server says {code}"))
        }
        NetError::Timeout => Unresolved::because("the DNS server does not answer"),
        other => Unresolved::because(other),
    }
}
