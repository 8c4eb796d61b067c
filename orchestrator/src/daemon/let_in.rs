//! The manager's end of joining: the leader lets a node in whose token has the right secret; the others name the leader.

use super::{certificates, manager, serve::Gate};
use crate::{
    clock,
    pki::{granted, requester},
    transport::{RecvStream, SendStream, frames},
};
use orchestrator_core::{
    intent,
    model::{Node, NodeId, Role},
    protocol::{JoinAnswer, JoinRequest, Welcome},
    state::{Applied, State},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// A joiner that was let in by QUIC has this long to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);
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
            let oldest = failed.iter().min_by_key(|(_, times)| times.back().copied()).map(|(address, _)| *address);
            oldest.and_then(|oldest| failed.remove(&oldest));
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
        let request = timeout(REQUEST, frames::read::<JoinRequest>(input)).await??;
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
        match certificates::issue(state, node, csr, self.time.now()) {
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
