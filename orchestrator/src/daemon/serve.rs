//! What this node does for others: answers raft, holds sessions while it leads, serves its API, lets nodes in.

use super::{Manager, Member, certificates, let_in::Attempts, manager};
use crate::{
    api::{App, server},
    clock,
    pki::LastSeen,
    transport::{Admit, Alpn, Message, Peer, RecvStream, SendStream, Serve, frames},
};
use async_trait::async_trait;
use orchestrator_core::{
    model::{NodeId, Role},
    protocol::{Down, Up},
    state::State,
};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

/// A node that says nothing for this long has lost its session: far beyond any `down_after`.
const SILENCE: Duration = Duration::from_secs(120);

/// Requests of other nodes arrive here.
pub(super) struct Gate {
    pub(super) member: watch::Receiver<Option<Arc<Member>>>,
    app: OnceLock<App>,
    pub(super) time: Arc<LastSeen>,
    pub(super) attempts: Attempts,
}

impl Gate {
    pub(super) fn new(member: watch::Receiver<Option<Arc<Member>>>, time: Arc<LastSeen>) -> Self {
        Self { member, app: OnceLock::new(), time, attempts: Attempts::default() }
    }

    /// From now on the API answers other managers.
    pub(super) fn open(&self, app: App) {
        let _already = self.app.set(app);
    }

    pub(super) fn current_manager(&self) -> Option<Arc<Manager>> {
        let member = self.member.borrow();
        member.as_ref()?.manager.borrow().clone()
    }

    fn state(&self) -> Option<Arc<State>> {
        self.current_manager().map(|manager| manager.store.state())
    }
}

impl Admit for Gate {
    fn admit(&self, alpn: Alpn, peer: &Peer) -> Result<(), String> {
        let state = self.state();
        let cluster = state.as_ref().and_then(|state| state.cluster.as_ref());
        if cluster.is_some_and(|cluster| cluster.removed.contains_key(&peer.node)) {
            return match alpn {
                // It is told in a session, so that it stops its containers.
                Alpn::Node => Ok(()),
                _ => Err(format!("node {} was removed from the cluster", peer.node)),
            };
        }
        match alpn {
            Alpn::Join | Alpn::Node => Ok(()),
            // Raft itself knows its members; a manager that lags behind may not know the newest of them yet.
            Alpn::Raft => manager_only(peer),
            Alpn::Api => {
                manager_only(peer)?;
                // A former manager keeps its certificate for a while.
                let known = state.as_ref().and_then(|state| state.nodes.get(&peer.node).map(|node| node.role));
                let member = self.member.borrow().clone();
                let named = member.and_then(|member| member.names_manager(peer.node));
                match (known, named) {
                    (Some(Role::Worker), _) | (None, Some(false)) => {
                        Err(format!("node {} is no manager any more", peer.node))
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

fn manager_only(peer: &Peer) -> Result<(), String> {
    match peer.role {
        Role::Manager => Ok(()),
        Role::Worker => Err(format!("node {} is a worker; only managers may do this", peer.node)),
    }
}

#[async_trait]
impl Serve for Gate {
    async fn serve(
        &self,
        alpn: Alpn,
        peer: Option<Peer>,
        remote: SocketAddr,
        (mut out, mut input): (SendStream, RecvStream),
    ) {
        let served = match (alpn, peer) {
            (Alpn::Join, _) => self.let_in(remote, &mut out, &mut input).await,
            (Alpn::Raft, Some(peer)) => self.answer_raft(&peer, &mut out, &mut input).await,
            (Alpn::Node, Some(peer)) => self.hold_session(&peer, &mut out, input).await,
            (Alpn::Api, Some(peer)) => {
                if let Some(app) = self.app.get() {
                    server::serve_stream(app.clone(), tokio::io::join(input, out), peer.role).await;
                }
                return;
            }
            (_, None) => return,
        };
        if let Err(error) = served {
            tracing::debug!(?alpn, %remote, error = format!("{error:#}"), "a stream ended early");
        }
        out.finish();
    }
}

impl Gate {
    async fn answer_raft(&self, peer: &Peer, out: &mut SendStream, input: &mut RecvStream) -> anyhow::Result<()> {
        let request = frames::read_bytes(input, "call", Alpn::Raft.frame_limit()).await?;
        // Without a store this node is no voter: no answer is what raft makes of it.
        let manager = self.current_manager().ok_or_else(|| anyhow::anyhow!("this node is no manager"))?;
        let answer = manager.store.answer(&peer.node.to_string(), &request).await?;
        frames::write_bytes(out, "answer", Alpn::Raft.frame_limit(), &answer).await?;
        Ok(())
    }

    /// The leader's end of a node's session.
    async fn hold_session(&self, peer: &Peer, out: &mut SendStream, mut input: RecvStream) -> anyhow::Result<()> {
        let manager = self.current_manager();
        let sessions = manager.as_ref().and_then(|manager| manager.desk.borrow().clone());
        let (Some(manager), Some(sessions)) = (&manager, sessions) else {
            frames::write(out, &elsewhere(manager.as_deref())).await?;
            return Ok(());
        };
        if !manager.store.state().nodes.contains_key(&peer.node) {
            tracing::info!(node = %peer.node, "refused the session of a node that is no member");
            frames::write(out, &Down::Removed).await?;
            return Ok(());
        }
        let mut session = sessions.open(peer.node);
        drop(sessions);
        tracing::info!(node = %peer.node, "session opened");
        let (heard, mut hears) = tokio::sync::mpsc::channel(4);
        let reader = tokio::spawn(async move {
            loop {
                let message = timeout(SILENCE, frames::read::<Up>(&mut input)).await;
                let last = !matches!(message, Ok(Ok(_)));
                if heard.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        let _stop_reading = AbortOnDrop(reader);
        loop {
            tokio::select! {
                changed = session.assignments.changed() => {
                    if changed.is_err() {
                        let gone = !manager.store.state().nodes.contains_key(&peer.node);
                        let last = if gone && manager.desk.borrow().is_some() { Down::Removed } else { elsewhere(Some(manager)) };
                        frames::write(out, &last).await?;
                        return Ok(());
                    }
                    let new = session.assignments.borrow_and_update().clone();
                    if let Some(new) = new {
                        frames::write(out, &Down::Assignment(Box::new((*new).clone()))).await?;
                    }
                }
                message = hears.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    let message = message??;
                    let told = match message {
                        Up::Heartbeat => Message::Heartbeat(peer.node),
                        Up::Report(report) => {
                            anyhow::ensure!(report.node == peer.node, "node {} reports for {}", peer.node, report.node);
                            Message::Report(report)
                        }
                        Up::Leave => Message::Leave(peer.node),
                        Up::Renew(csr) => {
                            let issued = certificates::issue(&manager.store.state(), peer.node, &csr, self.time.now());
                            let answer = match issued {
                                Ok(certificate) => Down::Certificate(certificate),
                                Err(error) => Down::NoCertificate(format!("{error:#}")),
                            };
                            frames::write(out, &answer).await?;
                            Message::Heartbeat(peer.node)
                        }
                    };
                    let beat = !matches!(told, Message::Report(_));
                    if session.reports.send(told).await.is_err() {
                        frames::write(out, &elsewhere(Some(manager))).await?;
                        return Ok(());
                    }
                    if beat {
                        frames::write(out, &Down::Heard { now: clock::now() }).await?;
                    }
                }
            }
        }
    }
}

/// Where a node should go instead.
fn elsewhere(manager: Option<&Manager>) -> Down {
    let leader = manager.and_then(|manager| {
        let node: NodeId = manager.leader()?;
        let address = manager::address(&manager.store.state(), node)?;
        Some((node, address.to_string()))
    });
    Down::Elsewhere { leader }
}

/// Ends a task with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
