//! Placeholder for the merge of the transport branch.
use orchestrator_core::model::{ClusterId, NodeId, Role};
use std::net::SocketAddr;
#[derive(Clone)] pub struct Discovery;
pub struct Found { pub cluster: ClusterId, pub node: NodeId, pub addresses: Vec<SocketAddr> }
#[derive(Debug, thiserror::Error)] #[error("none")] pub struct DiscoveryError;
impl Discovery {
 pub fn new(_u: &[String]) -> Result<Self, DiscoveryError> { Err(DiscoveryError) }
 pub fn announce(&self,_c: ClusterId,_n: NodeId,_r: Role,_a: &[SocketAddr]) -> Result<(), DiscoveryError> { Ok(()) }
 pub fn withdraw(&self) -> Result<(), DiscoveryError> { Ok(()) }
 pub fn browse(&self) -> Result<tokio::sync::mpsc::Receiver<Found>, DiscoveryError> { Err(DiscoveryError) }
}
