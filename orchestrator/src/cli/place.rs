//! Where a container is: on this node, or on another one that a manager reaches for us. Called by the commands that name
//! containers.

use super::{Error, Result, client::Client};
use crate::api::{docker::objects::Task, request::encode};
use serde_json::Value;

/// A container and the way to it.
pub(super) struct Place {
    /// Before the paths of its node's API; empty on this node.
    prefix: String,
    /// The container by a name that its node knows.
    name: String,
}

impl Place {
    /// Finds a container by id or name here, then a task of the cluster; also gives what inspecting it tells.
    pub(super) async fn find(client: &Client, name: &str) -> Result<(Self, Value)> {
        let here = Self { prefix: String::new(), name: encode(name) };
        let not_here = match client.get::<Value>(&here.container("/json")).await {
            Ok(container) => return Ok((here, container)),
            Err(error) if error.status == Some(404) => error,
            Err(error) => return Err(error),
        };
        let task: Task = match client.get(&format!("/tasks/{}", encode(name))).await {
            Ok(task) => task,
            Err(error) if error.status == Some(404) => return Err(not_here),
            Err(error) if error.message.contains("Worker nodes") => {
                let text =
                    format!("{} on this node; those of other nodes are reached from a manager", not_here.message);
                return Err(Error { message: text, ..not_here });
            }
            Err(_) => return Err(not_here),
        };
        if task.node_id.is_empty() {
            return Err(Error::new(format!("task {name} has no node yet: edgectl service explain tells why")));
        }
        let there = Self { prefix: format!("/edge/v1/nodes/{}/api", task.node_id), name: task.id };
        let container = client.get(&there.container("/json")).await?;
        Ok((there, container))
    }

    /// A path of the container's.
    pub(super) fn container(&self, rest: &str) -> String {
        format!("{}/containers/{}{rest}", self.prefix, self.name)
    }

    /// A path of a process in it.
    pub(super) fn exec(&self, id: &str, rest: &str) -> String {
        format!("{}/exec/{id}{rest}", self.prefix)
    }
}
