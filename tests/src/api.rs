//! The Engine API of a lab's nodes, spoken over their unix sockets without any program in between: for what is asked often
//! or measured.
//!
//! Comes in: a socket, a request. Goes out: status and JSON. HTTP/1.0 (RFC 1945) is asked for, so that a server neither
//! keeps the connection nor chunks the body.

use crate::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Longer than a manager waits for a leader, so that its own explanation is what one sees.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a node answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code, e.g. 201.
    pub status: u16,
    /// The body, or nothing where it was no JSON.
    pub body: Value,
}

/// A node as the cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its id.
    pub id: String,
    /// `manager` or `worker`, as wanted.
    pub role: String,
    /// `ready`, `down` or `unknown`.
    pub state: String,
    /// Where others reach it.
    pub address: String,
    /// `leader`, `reachable`, `unreachable`; nothing for workers.
    pub manager: String,
}

/// A task as the cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSeen {
    /// Its id.
    pub id: String,
    /// The name of its node, empty where it has none yet.
    pub node: String,
    /// e.g. `running`.
    pub state: String,
    /// e.g. `running` or `shutdown`.
    pub desired: String,
}

/// Sends one request to the server that listens on a unix socket.
///
/// # Errors
/// When there is no answer within `patience`.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>, patience: Duration) -> Result<Answer> {
    let ask = || -> Result<Answer> {
        let mut stream = UnixStream::connect(socket).context("connect")?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of header")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
        Ok(Answer { status, body: serde_json::from_str(body).unwrap_or_default() })
    };
    ask().with_context(|| format!("{method} {path} at {}", socket.display()))
}

impl Lab {
    /// Sends a request to a node's socket.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn request(&self, node: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        request(&self.folder(node).join("docker.sock"), method, path, body, PATIENCE)
    }

    /// What a node answers to a GET.
    ///
    /// # Errors
    /// When there is no answer, or another one than 200.
    pub fn get(&self, node: &str, path: &str) -> Result<Value> {
        let answer = self.request(node, "GET", path, None)?;
        ensure!(answer.status == 200, "GET {path} at {node} answers {}: {}", answer.status, answer.body["message"]);
        Ok(answer.body)
    }

    /// All nodes by name, as a manager sees them; of two with the same name the one that is ready.
    ///
    /// # Errors
    /// When the manager does not say.
    pub fn nodes(&self, at: &str) -> Result<BTreeMap<String, NodeSeen>> {
        let nodes = self.get(at, "/nodes")?;
        let seen = |node: &Value| {
            let manager = &node["ManagerStatus"];
            let standing = if manager["Leader"] == true { "leader".into() } else { text(&manager["Reachability"]) };
            let seen = NodeSeen {
                id: text(&node["ID"]),
                role: text(&node["Spec"]["Role"]),
                state: text(&node["Status"]["State"]),
                address: text(&node["Status"]["Addr"]),
                manager: standing,
            };
            (text(&node["Description"]["Hostname"]), seen)
        };
        let mut nodes: Vec<_> = nodes.as_array().context("/nodes is no list")?.iter().map(seen).collect();
        nodes.sort_by_key(|(_, node)| node.state == "ready");
        Ok(nodes.into_iter().collect())
    }

    /// The name of the node that leads, as any of `managers` knows.
    ///
    /// # Errors
    /// When none of them knows: what the last one said.
    pub fn leader(&self, managers: &[&str]) -> Result<String> {
        let mut last = anyhow::anyhow!("no manager was asked");
        for at in managers {
            match self.nodes(at) {
                Ok(nodes) => match nodes.into_iter().find(|(_, node)| node.manager == "leader") {
                    Some((name, _)) => return Ok(name),
                    None => last = anyhow::anyhow!("{at} knows no leader"),
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether exactly these nodes are ready, and all those of them that are managers reachable, as a manager sees them.
    ///
    /// # Errors
    /// When they are not: all nodes.
    pub fn all_ready(&self, at: &str, names: &[&str]) -> Result<()> {
        let nodes = self.nodes(at)?;
        let fine = |node: &NodeSeen| {
            node.state == "ready" && (node.role == "worker" || ["leader", "reachable"].contains(&&*node.manager))
        };
        let ready: BTreeSet<&str> = nodes.iter().filter(|(_, node)| fine(node)).map(|(name, _)| &**name).collect();
        ensure!(ready == names.iter().copied().collect(), "not exactly {names:?} are ready: {nodes:?}");
        Ok(())
    }

    /// A service's tasks that are to run and do, by node, as a manager sees them.
    ///
    /// # Errors
    /// When the manager does not say.
    pub fn running(&self, at: &str, service: &str) -> Result<BTreeMap<String, usize>> {
        let mut count = BTreeMap::new();
        for task in self.tasks(at, service)? {
            if task.state == "running" && task.desired == "running" {
                *count.entry(task.node).or_default() += 1;
            }
        }
        Ok(count)
    }

    /// All tasks of a service that a manager knows.
    ///
    /// # Errors
    /// When the manager does not say.
    pub fn tasks(&self, at: &str, service: &str) -> Result<Vec<TaskSeen>> {
        let names: BTreeMap<String, String> = self.nodes(at)?.into_iter().map(|(name, node)| (node.id, name)).collect();
        let filters = format!("%7B%22service%22%3A%5B%22{service}%22%5D%7D");
        let tasks = self.get(at, &format!("/tasks?filters={filters}"))?;
        let seen = |task: &Value| TaskSeen {
            id: text(&task["ID"]),
            node: names.get(&text(&task["NodeID"])).cloned().unwrap_or_default(),
            state: text(&task["Status"]["State"]),
            desired: text(&task["DesiredState"]),
        };
        Ok(tasks.as_array().context("/tasks is no list")?.iter().map(seen).collect())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
