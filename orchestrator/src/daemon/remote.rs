//! The way to other nodes, for the API.

use super::Daemon;
use crate::{
    api::node::{Failure, Io, Leader, Remote},
    transport::Alpn,
};
use async_trait::async_trait;
use orchestrator_core::model::NodeId;

#[async_trait]
impl Remote for Daemon {
    fn leader(&self) -> Leader {
        let Some(member) = self.member() else { return Leader::NotManager };
        let Some(manager) = member.manager.borrow().clone() else { return Leader::NotManager };
        if manager.store.leadership().borrow().is_some() {
            return Leader::Own;
        }
        match manager.leader() {
            Some(node) if node != member.node => Leader::Other(node),
            // It was this node, which has lost touch with the others, or is about to take over.
            _ => Leader::None("none is elected, or this node has lost touch with the others".into()),
        }
    }

    async fn dial(&self, node: NodeId) -> Result<Box<dyn Io>, Failure> {
        let dialled = async {
            let connection = self.base.endpoint.connect(node, Alpn::Api).await?;
            let (out, input) = connection.open().await?;
            anyhow::Ok(tokio::io::join(input, out))
        };
        match dialled.await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(Failure::Unavailable(format!("node {node} does not answer: {:#}", error))),
        }
    }
}
