//! Joining, both ends: a node that asks to be let in, and the leader that lets it.
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

use super::{discover::Finder, manager, serve::Gate};
use crate::{
    clock,
    pki::{LastSeen, NodeKey, Token, granted, requester},
    transport::{ConnectError, Endpoint, Fault, RecvStream, SendStream, frames},
};
use anyhow::Context;
use orchestrator_core::{
    intent,
    model::{Availability, Node, NodeDescription, NodeId, Role},
    protocol::{JoinAnswer, JoinRequest, Welcome},
    state::{Applied, State},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// A manager gets this long to answer; the leader commits an entry meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
/// Managers that one attempt asks: each answer may name another one, and a liar could name them for ever.
const ASKED_MAX: usize = 32;
/// How long multicast DNS may take to find a manager.
const DISCOVERY: Duration = Duration::from_secs(5);
/// Wrong secrets that one address may show within [`WINDOW`].
const ATTEMPTS: usize = 3;
/// See [`ATTEMPTS`].
const WINDOW: Duration = Duration::from_secs(10);
/// Addresses whose attempts are remembered; the oldest is forgotten first.
const ADDRESSES: usize = 1024;
/// Times that the entry is decided anew when others change the cluster at the same time.
const PROPOSALS: u32 = 8;
/// What a manager waits for a leader before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// The leader's address becomes known with the state, a moment after the leader itself.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Default port of managers.
pub(super) const PORT: u16 = 2377;

/// What a joining node brings.
pub(super) struct Application<'a> {
    pub(super) token: &'a Token,
    pub(super) key: &'a NodeKey,
    /// Managers to ask, as the user wrote them.
    pub(super) addresses: &'a [String],
    pub(super) hostname: &'a str,
    pub(super) description: NodeDescription,
    pub(super) availability: Availability,
}

/// Why a node was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
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
pub(super) async fn join(
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

/// Who showed wrong secrets lately.
#[derive(Default)]
pub(super) struct Attempts(Mutex<BTreeMap<IpAddr, VecDeque<Instant>>>);

impl Attempts {
    /// Whether an address may try (again).
    fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, times| times.back().is_some_and(|last| now.duration_since(*last) < WINDOW));
        failed.get(&address).is_none_or(|times| times.len() < ATTEMPTS)
    }

    fn failed(&self, address: IpAddr, now: Instant) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= ADDRESSES && !failed.contains_key(&address) {
            failed.pop_first();
        }
        failed.entry(address).or_default().push_back(now);
    }
}

impl Gate {
    /// The manager's end of `edge-join/1`.
    pub(super) async fn let_in(
        &self,
        remote: SocketAddr,
        out: &mut SendStream,
        input: &mut RecvStream,
    ) -> anyhow::Result<()> {
        let request = timeout(ANSWER, frames::read::<JoinRequest>(input)).await??;
        let answer = self.decide(remote, request).await;
        if let JoinAnswer::Refused(why) | JoinAnswer::Later(why) = &answer {
            tracing::info!(%remote, why, "a node was not let in");
        }
        frames::write(out, &answer).await?;
        Ok(())
    }

    async fn decide(&self, remote: SocketAddr, request: JoinRequest) -> JoinAnswer {
        let Some(manager) = self.current_manager() else {
            return JoinAnswer::Later("this node is no manager".into());
        };
        if !self.attempts.may_try(remote.ip(), Instant::now()) {
            return JoinAnswer::Later("too many wrong join tokens came from this address; wait ten seconds".into());
        }
        // An election, or a manager that has just joined itself, takes a moment.
        let own = self.member.borrow().as_ref().map(|member| member.node);
        let mut desk = manager.desk.clone();
        let mut elected = manager.store.leader();
        let known = async {
            loop {
                if desk.borrow_and_update().is_some() {
                    return None;
                }
                elected.mark_unchanged();
                let state = manager.store.state();
                let other = manager.leader().filter(|leader| Some(*leader) != own);
                if let Some(leader) = other.and_then(|leader| manager::address(&state, leader)) {
                    return Some(leader);
                }
                tokio::select! {
                    _ = desk.changed() => {}
                    _ = elected.changed() => {}
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
            }
        };
        match timeout(PATIENCE, known).await {
            Ok(None) => {}
            Ok(Some(leader)) => return JoinAnswer::Ask(leader.to_string()),
            Err(_) => return JoinAnswer::Later("the managers have no leader at the moment".into()),
        }
        for _ in 0..PROPOSALS {
            let state = match manager.store.read().await {
                Ok(state) => state,
                Err(error) => return JoinAnswer::Later(error.to_string()),
            };
            let Some(cluster) = state.cluster.as_ref() else {
                return JoinAnswer::Later("the cluster is being made".into());
            };
            let Some(role) = granted(&request.secret, &cluster.tokens) else {
                self.attempts.failed(remote.ip(), Instant::now());
                return JoinAnswer::Refused(
                    "the join token is of this cluster but not valid (any more): get the present one with \
                     `edgectl cluster join-token worker|manager` on a manager"
                        .into(),
                );
            };
            let node = match requester(&request.csr) {
                Ok(node) => node,
                Err(error) => return JoinAnswer::Refused(format!("the signing request: {error:#}")),
            };
            let mut description = request.description.clone();
            if description.address.is_empty() {
                description.address = remote.ip().to_canonical().to_string();
            }
            let wanted = Node {
                id: node,
                hostname: request.hostname.clone(),
                role,
                raft_id: None,
                availability: request.availability,
                labels: BTreeMap::new(),
                description,
                created_at: clock::now(),
            };
            let entry = match intent::join_node(&state, wanted, role, clock::now()) {
                Ok(entry) => entry,
                Err(refusal) => return JoinAnswer::Refused(refusal.to_string()),
            };
            let state = match entry {
                None => state,
                Some(entry) => match manager.store.propose(entry).await {
                    Ok(Applied::Done { .. }) => manager.store.state(),
                    Ok(Applied::Conflict { .. }) => continue,
                    Err(error) => return JoinAnswer::Later(error.to_string()),
                },
            };
            return self.welcome(&state, node, &request.csr);
        }
        JoinAnswer::Later("the cluster is being changed by others all the time".into())
    }

    fn welcome(&self, state: &State, node: NodeId, csr: &[u8]) -> JoinAnswer {
        let (Some(cluster), Some(member)) = (&state.cluster, state.nodes.get(&node)) else {
            return JoinAnswer::Later("the node was removed while it joined".into());
        };
        match super::certificates::issue(state, node, csr, self.time.now()) {
            Ok(certificate) => {
                tracing::info!(%node, hostname = member.hostname, role = ?member.role, "a node has joined");
                JoinAnswer::Welcome(Box::new(Welcome {
                    cluster: cluster.id,
                    certificate,
                    ca: cluster.ca.certificate.clone(),
                    raft_id: member.raft_id,
                    managers: managers(state),
                    now: clock::now(),
                }))
            }
            Err(error) => JoinAnswer::Refused(format!("{error:#}")),
        }
    }
}

/// Where the managers listen.
pub(super) fn managers(state: &State) -> BTreeMap<NodeId, String> {
    let managers = state.nodes.values().filter(|node| node.role == Role::Manager);
    managers.filter_map(|node| Some((node.id, manager::address(state, node.id)?.to_string()))).collect()
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

    #[test]
    fn three_wrong_secrets_in_ten_seconds_are_enough() {
        let attempts = Attempts::default();
        let (guesser, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let start = Instant::now();
        for _ in 0..ATTEMPTS {
            assert!(attempts.may_try(guesser, start));
            attempts.failed(guesser, start);
        }
        assert!(!attempts.may_try(guesser, start + WINDOW / 2));
        assert!(attempts.may_try(other, start));
        assert!(attempts.may_try(guesser, start + WINDOW));
    }
}
