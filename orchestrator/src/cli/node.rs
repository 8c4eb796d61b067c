//! `edgectl node`: list, inspect, change and remove nodes, and list what runs on them.

use super::{
    Error, Result,
    client::{Client, filters},
    output::{self, ListFlags, Out, row},
    service::tasks,
};
use crate::api::{
    docker::objects::{Node, NodeSpec},
    request::encode,
};
use serde_json::Value;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Show low-level information on nodes
    Inspect(Inspect),
    /// Change a node
    Update(Update),
    /// List tasks that run on nodes (default: this one)
    Ps(Ps),
    /// Make nodes managers
    Promote(Names),
    /// Make nodes workers
    Demote(Names),
    /// Remove nodes that are down
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Nodes by id or name; "self" is this one
    #[arg(required = true)]
    nodes: Vec<String>,
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
}

#[derive(clap::Args)]
pub(super) struct Update {
    /// Whether tasks may be placed on it
    #[arg(long, value_parser = ["active", "pause", "drain"])]
    availability: Option<String>,
    /// Whether it keeps the cluster's state
    #[arg(long, value_parser = ["worker", "manager"])]
    role: Option<String>,
    /// Add or change a label, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Nodes by id or name; "self" is this one
    #[arg(required = true)]
    nodes: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Ps {
    /// Nodes by id or name
    #[arg(default_value = "self")]
    nodes: Vec<String>,
    #[command(flatten)]
    list: ListFlags,
    /// Print ids instead of names
    #[arg(long)]
    no_resolve: bool,
}

#[derive(clap::Args)]
pub(super) struct Names {
    /// Nodes by id or name
    #[arg(required = true)]
    nodes: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Rm {
    /// Also when it is not down
    #[arg(short, long)]
    force: bool,
    /// Nodes by id or name
    #[arg(required = true)]
    nodes: Vec<String>,
}

pub(super) async fn run(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Ls(flags) => list(flags, client, out).await,
        Command::Inspect(inspect) => {
            let mut objects = Vec::new();
            for node in &inspect.nodes {
                let path = format!("/nodes/{}", encode(&resolve_self(client, node).await?));
                objects.push(client.get::<Value>(&path).await.map_err(|error| error.context("inspect"))?);
            }
            if inspect.pretty {
                return objects.into_iter().try_for_each(|object| pretty(out, object));
            }
            output::inspect(out, inspect.format.as_deref(), objects)
        }
        Command::Update(update) => {
            each(out, &update.nodes, "update node", async |out, name| {
                change(client, name, |spec| update.apply(spec)).await?;
                Ok(out.line(name)?)
            })
            .await
        }
        Command::Promote(names) => set_role(client, out, names, "manager").await,
        Command::Demote(names) => set_role(client, out, names, "worker").await,
        Command::Ps(ps) => {
            let mut nodes = Vec::new();
            for node in &ps.nodes {
                nodes.push(format!("node={}", resolve_self(client, node).await?));
            }
            let mut list = ps.list;
            list.filter.extend(nodes);
            tasks::list(client, out, &list, ps.no_resolve).await
        }
        Command::Rm(rm) => {
            each(out, &rm.nodes, "remove node", async |out, name| {
                let id = resolve_self(client, name).await?;
                client.delete_only(&format!("/nodes/{}?force={}", encode(&id), u8::from(rm.force))).await?;
                Ok(out.line(name)?)
            })
            .await
        }
    }
}

/// Does something with each node. One that fails does not keep the others from it; all failures are told.
async fn each(
    out: &mut Out,
    names: &[String],
    what: &str,
    mut act: impl AsyncFnMut(&mut Out, &str) -> Result,
) -> Result {
    let mut failed: Option<Error> = None;
    for name in names {
        let Err(error) = act(out, name).await.map_err(|error| error.context(format!("{what} {name}"))) else {
            continue;
        };
        failed = Some(match failed {
            None => error,
            Some(before) => Error { message: format!("{}\nedgectl: {}", before.message, error.message), ..before },
        });
    }
    failed.map_or(Ok(()), Err)
}

/// The id of the node that `self` means.
async fn resolve_self(client: &Client, name: &str) -> Result<String> {
    if name != "self" {
        return Ok(name.into());
    }
    let info: Value = client.get("/info").await?;
    match info["Swarm"]["NodeID"].as_str() {
        Some(id) if !id.is_empty() => Ok(id.into()),
        _ => Err(Error::new("this node is part of no cluster: run \"edgectl cluster init\" first")),
    }
}

const COLUMNS: [output::Column; 7] = [
    ("ID", "ID"),
    ("Hostname", "HOSTNAME"),
    ("Status", "STATUS"),
    ("Availability", "AVAILABILITY"),
    ("ManagerStatus", "MANAGER STATUS"),
    ("Address", "ADDRESS"),
    ("EngineVersion", "VERSION"),
];

async fn list(flags: ListFlags, client: &Client, out: &mut Out) -> Result {
    let objects: Value = client
        .get(&format!("/nodes?{}", filters(&flags.filter)?))
        .await
        .map_err(|error| error.context("list nodes"))?;
    let info: Value = client.get("/info").await?;
    let own = info["Swarm"]["NodeID"].as_str().unwrap_or("");
    let mut nodes: Vec<Node> = read(&objects)?;
    nodes.sort_by(|a, b| a.description.hostname.cmp(&b.description.hostname));
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let manager = manager_status(node);
            let mark = if node.id == own && !flags.quiet && flags.format.is_none() { " *" } else { "" };
            row([
                ("ID", format!("{}{mark}", node.id)),
                ("Hostname", node.description.hostname.clone()),
                ("Status", title(&node.status.state)),
                ("Availability", title(&node.spec.availability)),
                ("ManagerStatus", manager.into()),
                ("Address", node.status.addr.clone()),
                ("EngineVersion", node.description.engine.engine_version.clone()),
                ("Self", (node.id == own).to_string()),
            ])
        })
        .collect();
    output::list(out, &flags, &COLUMNS, &rows, &objects)
}

/// What kind of manager a node is; empty for a worker.
fn manager_status(node: &Node) -> &'static str {
    match &node.manager_status {
        None => "",
        Some(status) if status.leader => "Leader",
        Some(status) => match status.reachability.as_str() {
            "reachable" => "Reachable",
            "unreachable" => "Unreachable",
            _ => "Unknown",
        },
    }
}

/// Reads the API's objects.
pub(super) fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|error| Error::new(format!("cannot read edged's answer: {error}")))
}

pub(super) fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn pretty(out: &mut Out, object: Value) -> Result {
    let node: Node = read(&object)?;
    let resources = &node.description.resources;
    let manager = node.manager_status.as_ref().map(|status| format!("{} at {}", manager_status(&node), status.addr));
    let mut lines = vec![
        ("ID", node.id),
        ("Hostname", node.description.hostname),
        ("Joined at", node.created_at),
        ("State", title(&node.status.state)),
        ("Availability", title(&node.spec.availability)),
        ("Role", title(&node.spec.role)),
        ("Address", node.status.addr),
        ("Platform", format!("{}/{}", node.description.platform.os, node.description.platform.architecture)),
        ("CPUs", (resources.nano_cpus as f64 / 1e9).to_string()),
        ("Memory", output::memory(resources.memory_bytes)),
        ("Version", node.description.engine.engine_version),
    ];
    lines.extend(manager.map(|text| ("Manager", text)));
    if !node.status.message.is_empty() {
        lines.push(("Message", node.status.message));
    }
    for (key, value) in &node.spec.labels {
        lines.push(("Label", format!("{key}={value}")));
    }
    for (name, value) in lines {
        out.line(&format!("{:<14}{value}", format!("{name}:")))?;
    }
    Ok(())
}

/// Times that a change is made anew when the node changed in between.
const ATTEMPTS: u32 = 4;

impl Update {
    fn apply(&self, spec: &mut NodeSpec) -> Result<bool> {
        if let Some(availability) = &self.availability {
            spec.availability.clone_from(availability);
        }
        if let Some(role) = &self.role {
            spec.role.clone_from(role);
        }
        for label in &self.label_rm {
            if spec.labels.remove(label).is_none() {
                return Err(Error::new(format!("it has no label {label:?}")));
            }
        }
        for label in &self.label_add {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            spec.labels.insert(key.into(), value.into());
        }
        Ok(true)
    }
}

/// Changes what users decide about a node; `apply` tells whether there is anything to change.
async fn change(client: &Client, name: &str, apply: impl Fn(&mut NodeSpec) -> Result<bool>) -> Result<bool> {
    let id = resolve_self(client, name).await?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut node: Node = client.get(&format!("/nodes/{}", encode(&id))).await?;
        if !apply(&mut node.spec)? {
            return Ok(false);
        }
        let path = format!("/nodes/{}/update?version={}", node.id, node.version.index);
        match client.post_only(&path, &node.spec).await {
            Err(error) if attempts < ATTEMPTS && error.message.contains("out of sequence") => {}
            result => return result.map(|()| true),
        }
    }
}

async fn set_role(client: &Client, out: &mut Out, names: Names, role: &str) -> Result {
    let (what, done) = match role {
        "manager" => ("promote node", "promoted to a manager in the cluster."),
        _ => ("demote node", "demoted in the cluster."),
    };
    each(out, &names.nodes, what, async |out, name| {
        let changed = change(client, name, |spec| {
            let differs = spec.role != role;
            spec.role = role.into();
            Ok(differs)
        });
        let text =
            if changed.await? { format!("Node {name} {done}") } else { format!("Node {name} is already a {role}.") };
        Ok(out.line(&text)?)
    })
    .await
}
