//! The options that say how etcd is reached, for the commands that read it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;

use super::complain;
use crate::config::settings::{ClientIdentity, TlsSettings};
use crate::etcd::EtcdSettings;

/// Where kubeadm keeps what its kube-apiserver shows to etcd.
const KUBEADM_CA: &str = "/etc/kubernetes/pki/etcd/ca.crt";
const KUBEADM_CERT: &str = "/etc/kubernetes/pki/apiserver-etcd-client.crt";
const KUBEADM_KEY: &str = "/etc/kubernetes/pki/apiserver-etcd-client.key";

/// How etcd is reached; the same names as etcdctl's, and its environment variables.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "etcd")]
pub struct EtcdArgs {
    /// The members, separated by commas; the next one is asked when one does not answer.
    #[arg(
        long,
        value_name = "URL",
        env = "ETCDCTL_ENDPOINTS",
        value_delimiter = ',',
        default_value = "https://127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// The authority that signed their certificates [default, when none of the three is
    /// given: /etc/kubernetes/pki/etcd/ca.crt].
    #[arg(long, value_name = "FILE", env = "ETCDCTL_CACERT")]
    cacert: Option<PathBuf>,
    /// The client certificate [default: /etc/kubernetes/pki/apiserver-etcd-client.crt].
    #[arg(long, value_name = "FILE", env = "ETCDCTL_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key [default: /etc/kubernetes/pki/apiserver-etcd-client.key].
    #[arg(long, value_name = "FILE", env = "ETCDCTL_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// How long one member may take for one answer.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    etcd_timeout: Duration,
}

// === impl EtcdArgs ===

impl EtcdArgs {
    /// What they mean. Warns about a connection that others can read.
    ///
    /// # Errors
    /// When an endpoint is no URL; the text says what to write.
    pub fn settings(&self) -> Result<EtcdSettings, String> {
        let endpoints = self.endpoints.iter().map(|text| endpoint(text.trim()));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        for open in endpoints.iter().filter(|uri| is_open(uri)) {
            complain(format_args!("warning: {open} is not encrypted: others can read along"));
        }
        let none = self.cacert.is_none() && self.cert.is_none();
        let (ca_file, cert, key) = if none {
            (Some(KUBEADM_CA.into()), Some(KUBEADM_CERT.into()), Some(KUBEADM_KEY.into()))
        } else {
            (self.cacert.clone(), self.cert.clone(), self.key.clone())
        };
        let client = cert.zip(key);
        let client = client.map(|(cert_file, key_file)| ClientIdentity { cert_file, key_file });
        let tls = TlsSettings { ca_file, client, server_name: None };
        Ok(EtcdSettings { endpoints, tls, timeout: self.etcd_timeout })
    }
}

fn endpoint(text: &str) -> Result<Uri, String> {
    // It may hold a password, so it is not repeated.
    let problem = || {
        "--endpoints: write URLs of scheme, host and port alone, such as https://127.0.0.1:2379"
            .to_owned()
    };
    let uri: Uri = text.parse().map_err(|_| problem())?;
    let with_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    let credentials = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if with_scheme && bare && !credentials { Ok(uri) } else { Err(problem()) }
}

fn is_open(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("http") && !loopback
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        etcd: EtcdArgs,
    }

    fn settings(arguments: &[&str]) -> Result<EtcdSettings, String> {
        let words = ["command"].iter().chain(arguments);
        Command::try_parse_from(words).map_err(|e| e.to_string())?.etcd.settings()
    }

    #[test]
    fn without_a_file_kubeadms_are_taken_and_with_one_only_that() {
        let tls = settings(&[]).unwrap().tls;
        assert_eq!(tls.ca_file, Some(KUBEADM_CA.into()));
        assert_eq!(tls.client.unwrap().key_file, PathBuf::from(KUBEADM_KEY));
        let tls = settings(&["--cacert", "ca.pem"]).unwrap().tls;
        assert_eq!((tls.ca_file, tls.client), (Some("ca.pem".into()), None));
        assert!(settings(&["--cert", "a.pem"]).is_err(), "a certificate without its key");
    }

    #[test]
    fn endpoints_are_urls_and_carry_no_password() {
        let both = settings(&["--endpoints", "https://a:2379, http://127.0.0.1:1"]).unwrap();
        assert_eq!(both.endpoints.len(), 2);
        for bad in ["127.0.0.1:2379", "https://u:p@a:2379", "https://a:1/v3", "unix:///x", ""] {
            assert!(settings(&["--endpoints", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_plain_http_to_another_machine_is_warned_about() {
        let open = |text: &str| is_open(&text.parse().unwrap());
        assert!(open("http://10.0.0.1:2379") && open("http://etcd:2379"));
        assert!(!open("https://10.0.0.1:2379") && !open("http://127.0.0.1:1"));
        assert!(!open("http://[::1]:1"));
    }
}
