//! Certificates that this node issues while it leads.

use crate::pki::{Authority, requester};
use anyhow::Context;
use orchestrator_core::{
    model::{NodeId, UnixMillis},
    state::State,
};

/// A certificate for the key of a member, for the role that the state gives it.
///
/// # Errors
/// The node is no member, or the request is not one for its key.
pub(super) fn issue(state: &State, node: NodeId, csr: &[u8], now: UnixMillis) -> anyhow::Result<Vec<u8>> {
    let cluster = state.cluster.as_ref().context("this manager knows of no cluster yet")?;
    let member = state.nodes.get(&node).with_context(|| format!("node {node} is no member"))?;
    let authority = Authority::open(&cluster.ca).context("reading the cluster's CA")?;
    let validity = cluster.settings.cert_validity;
    let named = requester(csr)?;
    anyhow::ensure!(named == node, "the signing request is for the key of node {named}, not of {node}");
    Ok(authority.issue(csr, cluster.id, member.role, now, validity)?)
}
