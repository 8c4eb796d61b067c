//! Joining: a node that asks to be let in. The other end is `let_in`.
//!
//! ```text
//!   joiner                              any manager                          leader
//!     │  edge-join/1, CA pinned by the token's digest                          │
//!     │ ── secret, signing request ──────► │                                   │
//!     │ ◄─ ask 10.0.0.2:2377 ───────────── │                                   │
//!     │ ── secret, signing request ──────────────────────────────────────────► │ commits the node
//!     │ ◄─ certificate, managers, time ─────────────────────────────────────── │
//! ```
//! A node's id is the digest of its key, so asking again after a lost answer makes no second node.

use super::{
    Daemon, Identity,
    discover::Finder,
    link::{self, Standing},
    member::{ALREADY, SETTLES},
};
use crate::{
    api::node::{Failure, JoinRequest as Wish},
    pki::{Credentials, LastSeen, NodeKey, Token},
    transport::{ConnectError, Endpoint, Fault, frames},
};
use anyhow::Context;
use orchestrator_core::{
    model::{Availability, NodeDescription, NodeId},
    protocol::{JoinAnswer, JoinRequest, Welcome},
};
use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;

/// First and longest pause of a node that joins by its configuration; in between it doubles.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A manager gets this long to answer; the leader commits an entry meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
/// Managers that one attempt asks: each answer may name another one, and a liar could name them for ever.
const ASKED_MAX: usize = 32;
/// How long multicast DNS may take to find a manager.
const DISCOVERY: Duration = Duration::from_secs(5);
/// Default port of managers.
pub(super) const PORT: u16 = 2377;

/// What a joining node brings.
struct Application<'a> {
    token: &'a Token,
    key: &'a NodeKey,
    /// Managers to ask, as the user wrote them.
    addresses: &'a [String],
    hostname: &'a str,
    description: NodeDescription,
    availability: Availability,
}

/// Why a node was not let in.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    /// Trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// Nobody could decide; with what each manager that was asked said.
    #[error("no manager let this node in: {0}")]
    NotYet(String),
}

/// Asks one manager after the other until one lets this node in.
///
/// # Errors
/// [`JoinError`].
async fn ask_all(
    endpoint: &Endpoint,
    finder: &Finder,
    time: &LastSeen,
    application: &Application<'_>,
) -> Result<Welcome, JoinError> {
    let mut said = Vec::new();
    let mut queue: VecDeque<SocketAddr> = VecDeque::new();
    for address in application.addresses {
        match resolve(address).await {
            Ok(found) => queue.extend(found),
            Err(error) => said.push(format!("{address}: {error:#}")),
        }
    }
    let mut asked = BTreeSet::new();
    // Whoever answers, if only to say that it is of another cluster, is who was meant.
    let mut answered = false;
    let mut searched = false;
    loop {
        let Some(address) = queue.pop_front() else {
            if searched || answered {
                break;
            }
            searched = true;
            let found = finder.managers(DISCOVERY).await;
            if found.is_empty() && application.addresses.is_empty() {
                said.push("no manager was found by multicast DNS: give its address".into());
            }
            queue.extend(found);
            continue;
        };
        if asked.len() >= ASKED_MAX || !asked.insert(address) {
            continue;
        }
        match timeout(ANSWER, ask(endpoint, address, application)).await {
            Ok(Ok(JoinAnswer::Welcome(welcome))) => {
                time.raise(welcome.now);
                return Ok(*welcome);
            }
            Ok(Ok(JoinAnswer::Ask(leader))) => match leader.parse() {
                Ok(leader) => queue.push_front(leader),
                Err(_) => said.push(format!("{address}: names a leader at {leader:?}, which is no address")),
            },
            Ok(Ok(JoinAnswer::Later(why))) => {
                answered = true;
                said.push(format!("{address}: {why}"));
            }
            Ok(Ok(JoinAnswer::Refused(why))) => return Err(JoinError::Refused(why)),
            Ok(Err(error)) => {
                answered |= is_answer(&error);
                said.push(format!("{address}: {error:#}"));
            }
            Err(_) => said.push(format!("{address}: no answer within {} s", ANSWER.as_secs())),
        }
    }
    Err(JoinError::NotYet(said.join("; ")))
}

async fn ask(endpoint: &Endpoint, address: SocketAddr, application: &Application<'_>) -> anyhow::Result<JoinAnswer> {
    let connection = endpoint.connect_to(address, &application.token.digest).await?;
    let (mut out, mut input) = connection.open().await?;
    let request = JoinRequest {
        secret: application.token.secret,
        csr: application.key.csr(),
        hostname: application.hostname.into(),
        description: application.description.clone(),
        availability: application.availability,
    };
    frames::write(&mut out, &request).await?;
    Ok(frames::read(&mut input).await?)
}

/// Whether somebody was there, though not the one that the token is for.
fn is_answer(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ConnectError>() {
        Some(ConnectError::Failed { attempts, .. }) => {
            attempts.iter().any(|attempt| matches!(attempt.fault, Fault::Untrusted(_) | Fault::Refused(_)))
        }
        _ => false,
    }
}

/// Reads `host`, `host:port`, `v6`, `[v6]` or `[v6]:port`.
async fn resolve(text: &str) -> anyhow::Result<Vec<SocketAddr>> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![(address, PORT).into()]);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().with_context(|| format!("{port:?} is no port"))?),
        None => (text, PORT),
    };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    anyhow::ensure!(!found.is_empty(), "the name has no address");
    Ok(found)
}

impl Daemon {
    /// Makes this node a member of the cluster of a token.
    pub(super) async fn join_cluster(&self, request: Wish) -> Result<NodeId, Failure> {
        let _one_at_a_time = self.joining.lock().await;
        if self.member().is_some() {
            return Err(Failure::Unavailable(ALREADY.into()));
        }
        let token: Token =
            request.token.trim().parse().map_err(|error| Failure::Invalid(format!("invalid join token: {error}")))?;
        let advertise = self.own_addresses(request.advertise_addr.as_deref(), request.listen_addr.as_deref())?;
        let internal =
            |cause: anyhow::Error| Failure::Internal { what: "joining the cluster".into(), cause: cause.into() };
        let state_dir = &self.config.state_dir;
        let key = self.fresh_key().map_err(internal)?;
        self.pending.send_replace(Some("joining a cluster".into()));
        let mut description = self.base.description.borrow().clone();
        if let Some(address) = advertise {
            description.address = address.to_string();
        }
        let application = Application {
            token: &token,
            key: &key,
            addresses: &request.addresses,
            hostname: &self.hostname,
            description,
            availability: request.availability.unwrap_or(Availability::Active),
        };
        let answer = ask_all(&self.base.endpoint, &self.base.finder, &self.base.time, &application).await;
        self.pending.send_replace(None);
        let welcome = match answer {
            Ok(welcome) => welcome,
            Err(JoinError::Refused(why)) => return Err(Failure::Denied(why)),
            Err(error @ JoinError::NotYet(_)) => return Err(Failure::Unavailable(error.to_string())),
        };
        let joined = async {
            let node = key.node_id();
            let credentials = Credentials::new(key, welcome.certificate, welcome.ca)?;
            let subject = credentials.subject();
            anyhow::ensure!(
                (subject.node, subject.cluster) == (node, welcome.cluster),
                "the manager's certificate for this node is for another one"
            );
            credentials.save(state_dir)?;
            let identity = Identity {
                cluster: welcome.cluster,
                node,
                raft_id: welcome.raft_id,
                lost_raft_id: None,
                advertise,
                managers: welcome.managers.iter().map(|(node, address)| format!("{node}@{address}")).collect(),
            };
            identity.save(state_dir)?;
            self.learn(&identity, None);
            self.base.endpoint.set_credentials(Some(credentials.clone()));
            let manager = match identity.raft_id {
                Some(raft_id) => Some(self.base.start_manager(raft_id, node).await?),
                None => None,
            };
            self.take_up(identity, credentials, manager)?;
            anyhow::Ok(node)
        };
        let joined = joined.await;
        if joined.is_err() {
            self.unmake();
        }
        let node = joined.map_err(internal)?;
        self.settled().await;
        Ok(node)
    }

    /// Returns when this node is in session with the leader, or that takes too long.
    async fn settled(&self) {
        let Some(member) = self.member() else { return };
        let mut standing = member.link.standing.clone();
        let _late = timeout(SETTLES, standing.wait_for(|standing| matches!(standing, Standing::Attached(_)))).await;
    }

    /// The address that the user wants others to use. The endpoint listens already: another address to listen on is for the
    /// configuration.
    pub(super) fn own_addresses(
        &self,
        advertise: Option<&str>,
        listen: Option<&str>,
    ) -> Result<Option<IpAddr>, Failure> {
        let port = self.base.description.borrow().port;
        let split = |what: &str, text: &str| -> Result<(String, Option<u16>), Failure> {
            let (host, asked) = match text.parse::<SocketAddr>() {
                Ok(address) => (address.ip().to_string(), Some(address.port())),
                Err(_) => match text.rsplit_once(':') {
                    Some((host, port)) if !host.contains(':') && port.parse::<u16>().is_ok() => {
                        (host.to_owned(), port.parse().ok())
                    }
                    _ => (text.trim_matches(['[', ']']).to_owned(), None),
                },
            };
            match asked {
                Some(asked) if asked != port && asked != 0 => Err(Failure::Invalid(format!(
                    "invalid {what} address {text}: this node listens on port {port}; listen-addr in edged.toml changes it"
                ))),
                _ => Ok((host, asked)),
            }
        };
        if let Some(listen) = listen {
            split("listen", listen)?;
        }
        let Some(text) = advertise.filter(|text| !text.is_empty()) else { return Ok(None) };
        let (host, _) = split("advertise", text)?;
        let address = host.parse::<IpAddr>();
        let address = address.map_err(|_| {
            Failure::Invalid(format!("invalid advertise address {text}: an IP address with or without port is needed"))
        })?;
        if address.is_unspecified() {
            return Err(Failure::Invalid(format!(
                "invalid advertise address {text}: it must be one that others can reach"
            )));
        }
        Ok(Some(address))
    }
}

/// Joins as `edged.toml` says, for as long as it takes.
pub(super) async fn join_as_configured(daemon: Arc<Daemon>, token: Token) {
    let mut pause = PAUSE.0;
    loop {
        let request =
            Wish { token: token.to_string(), addresses: daemon.config.join_addresses.clone(), ..Wish::default() };
        match daemon.join_cluster(request).await {
            Ok(node) => {
                tracing::info!(%node, "joined as configured");
                return;
            }
            Err(_) if daemon.member().is_some() => return,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "not joined yet; trying again in {} s", pause.as_secs());
                daemon.pending.send_replace(Some(format!("joining the configured cluster: {error}")));
            }
        }
        tokio::time::sleep(pause.mul_f64(0.75 + link::draw() / 2.0)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_read_with_and_without_port() {
        let read = async |text: &str| resolve(text).await.unwrap()[0].to_string();
        assert_eq!(read("10.0.0.1").await, "10.0.0.1:2377");
        assert_eq!(read("10.0.0.1:99").await, "10.0.0.1:99");
        assert_eq!(read("fd99::1").await, "[fd99::1]:2377");
        assert_eq!(read("[fd99::1]").await, "[fd99::1]:2377");
        assert_eq!(read("[fd99::1]:99").await, "[fd99::1]:99");
        let error = format!("{:#}", resolve("host:many").await.unwrap_err());
        assert!(error.contains("\"many\" is no port"), "{error}");
    }
}
