//! The daemon's configuration: `edged.toml` and its defaults. The only place that reads configuration files.

use crate::pki::Token;
use serde::{Deserialize, Deserializer, de::Error};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Where `edged` looks when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/edged/edged.toml";

/// Everything `edged` can be told. All fields have defaults, so an empty file is a good one.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What must survive a reboot: raft log, snapshots, images, volumes, container logs.
    pub state_dir: PathBuf,
    /// What must not: sockets, network namespaces, shim control files.
    pub run_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Name of this node; the default is the host's.
    pub hostname: Option<String>,
    /// Makes kernel-wide names (cgroups, links, pins) unique where several nodes share one kernel.
    pub node_key: String,
    /// Address that other nodes and clients reach this node by; the default is that of the first uplink.
    pub advertise_addr: Option<IpAddr>,
    /// Address and port that the control endpoint listens on; the default is port 2377 of all addresses.
    pub listen_addr: Option<SocketAddr>,
    /// Initialise a cluster of this one node if it belongs to none.
    pub init: bool,
    /// Join the cluster of this token if it belongs to none; the token says as what.
    #[serde(deserialize_with = "token")]
    pub join_token: Option<Token>,
    /// Managers that are asked to let it in, as `host`, `host:port`, `[v6]` or `[v6]:port`; without any, or where none answers,
    /// managers are looked for by multicast DNS.
    pub join_addresses: Vec<String>,
    /// Look for managers by multicast DNS (RFC 6762) and, as one, be found.
    pub discovery: bool,
    /// Interfaces that clients come in by; empty means those with a default route, or else all physical ones.
    pub uplinks: Vec<String>,
    /// Registries (`host:port`) that are spoken to by http.
    pub insecure_registries: Vec<String>,
    /// What is known of registries, by `host` or `host:port`.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Labels of the node, for `engine.labels.KEY` constraints.
    pub labels: BTreeMap<String, String>,
    /// The node-local networks.
    pub network: NetworkConfig,
    /// The dataplane.
    pub dataplane: DataplaneConfig,
}

/// What is known of one registry.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Registries that are asked first, in order.
    pub mirrors: Vec<String>,
    /// User name, where one is needed to pull.
    pub username: Option<String>,
    /// Password or access token.
    pub password: Option<String>,
}

impl std::fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryConfig")
            .field("mirrors", &self.mirrors)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Addresses of the node-local network. The same on every node: it is never routed between nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Name of the bridge.
    pub bridge: String,
    /// IPv4 network of containers, as `10.231.0.0/16`.
    pub subnet: String,
    /// IPv6 network of containers, a /64.
    pub subnet6: String,
}

/// How packets to published ports are caught.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DataplaneConfig {
    /// Forces one way on all uplinks: `xdp`, `tcx` or `clsact`. For tests and for finding faults.
    pub force: Option<Rung>,
}

/// A way to catch packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// XDP in the driver.
    Xdp,
    /// A tcx link.
    Tcx,
    /// A filter of the clsact queueing discipline.
    Clsact,
}

/// Reads a token; an error says what is wrong with it and does not repeat it.
fn token<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Token>, D::Error> {
    Option::<String>::deserialize(input)?.map(|text| text.trim().parse().map_err(D::Error::custom)).transpose()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/edged".into(),
            run_dir: "/run/edged".into(),
            socket: "/run/edged/docker.sock".into(),
            hostname: None,
            node_key: "node".into(),
            advertise_addr: None,
            listen_addr: None,
            init: false,
            join_token: None,
            join_addresses: Vec::new(),
            discovery: true,
            uplinks: Vec::new(),
            insecure_registries: Vec::new(),
            registries: BTreeMap::new(),
            labels: BTreeMap::new(),
            network: NetworkConfig::default(),
            dataplane: DataplaneConfig::default(),
        }
    }
}

impl Default for NetworkConfig {
    /// Stays clear of Docker's (172.17-30), podman's (10.88) and k3s's (10.42) defaults.
    fn default() -> Self {
        Self { bridge: "edge0".into(), subnet: "10.231.0.0/16".into(), subnet6: "fdb7:2e1a:94c3::/64".into() }
    }
}

/// The configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid TOML or has unknown keys; the source names line and column.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A value makes no sense.
    #[error("{path}: {key}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What would be right.
        why: String,
    },
}

impl Config {
    /// Reads `path`; without one, the default file if it exists.
    ///
    /// # Errors
    /// An unreadable file, a syntax error, an unknown key or a senseless value.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        let config =
            toml::from_str::<Self>(&text).map_err(|source| ConfigError::Parse { path: path.into(), source })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |key, why: String| Err(ConfigError::Value { path: path.into(), key, why });
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if self.node_key.is_empty() || self.node_key.len() > 32 || !plain(&self.node_key) {
            return refuse("node-key", format!("{:?} must be 1 to 32 letters, digits or '-'", self.node_key));
        }
        for (key, dir) in [("state-dir", &self.state_dir), ("run-dir", &self.run_dir), ("socket", &self.socket)] {
            if !dir.is_absolute() {
                return refuse(key, format!("{} is not an absolute path", dir.display()));
            }
        }
        if self.init && self.join_token.is_some() {
            return refuse("join-token", "a node either makes a cluster (init) or joins one".into());
        }
        if self.join_token.is_none() && !self.join_addresses.is_empty() {
            return refuse("join-addresses", "a token is needed, too: join-token".into());
        }
        for (registry, config) in &self.registries {
            if config.username.is_some() != config.password.is_some() {
                return refuse("registries", format!("{registry} needs both username and password, or neither"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn an_empty_file_is_a_good_one() {
        assert_eq!(parse("").unwrap().socket, Path::new("/run/edged/docker.sock"));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, expected) in [
            ("sokcet = '/x'", "unknown field `sokcet`"),
            ("node-key = 'a b'", "node-key"),
            ("state-dir = 'x'", "absolute"),
            ("[dataplane]\nforce = 'generic'", "tcx"),
            ("join-token = 'EDGE-1-abc'", "join token"),
            ("join-addresses = ['10.0.0.1']", "join-token"),
        ] {
            let error = anyhow::Error::from(parse(text).unwrap_err());
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
