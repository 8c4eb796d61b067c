//! Tasks in tables: `service ps` and `node ps`.

use super::super::{
    Result,
    client::{Client, filters},
    node::{read, title},
    output::{self, Column, ListFlags, Out, row, short_id},
};
use crate::api::{
    docker::objects::{Node, Service, Task},
    time,
};
use serde_json::Value;
use std::collections::BTreeMap;

const COLUMNS: [Column; 8] = [
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Image", "IMAGE"),
    ("Node", "NODE"),
    ("DesiredState", "DESIRED STATE"),
    ("CurrentState", "CURRENT STATE"),
    ("Error", "ERROR"),
    ("Ports", "PORTS"),
];

/// Longest error in a table that is shortened, as Docker's.
const ERROR_SHOWN: usize = 60;

/// Lists the tasks that fit the filters, newest of each slot first.
pub(in crate::cli) async fn list(client: &Client, out: &mut Out, flags: &ListFlags, no_resolve: bool) -> Result {
    let path = format!("/tasks?{}", filters(&flags.filter)?);
    let objects: Value = client.get(&path).await.map_err(|error| error.context("list tasks"))?;
    let mut tasks: Vec<Task> = read(&objects)?;
    let names = if no_resolve { Names::default() } else { Names::load(client).await? };
    tasks.sort_by(|a, b| {
        let place = |task: &Task| {
            (
                names.service(&task.service_id),
                task.slot,
                if task.slot == 0 { task.node_id.clone() } else { String::new() },
            )
        };
        place(a).cmp(&place(b)).then_with(|| {
            let wanted = |task: &Task| (task.desired_state == "running", task.created_at.clone());
            wanted(b).cmp(&wanted(a))
        })
    });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let mut last = String::new();
    let rows: Vec<_> = tasks
        .iter()
        .map(|task| {
            let name = names.task(task);
            let older = name == last && !flags.quiet;
            last.clone_from(&name);
            let short = |text: &str| if flags.no_trunc { text.to_owned() } else { short_id(text) };
            let ago = time::human(now.saturating_sub(time::parse(&task.status.timestamp).unwrap_or(now)));
            let error = match (task.status.err.as_str(), flags.no_trunc) {
                ("", _) => String::new(),
                (error, true) => format!("\"{error}\""),
                (error, false) => format!("\"{}\"", output::shorten(error, ERROR_SHOWN)),
            };
            let ports = task.status.port_status.ports.iter().map(super::port).collect::<Vec<_>>();
            row([
                ("ID", short(&task.id)),
                ("Name", if older { format!(" \\_ {name}") } else { name }),
                ("Image", super::image_shown(&task.spec.container_spec.image, flags.no_trunc)),
                ("Node", names.node(&task.node_id)),
                ("DesiredState", title(&task.desired_state)),
                ("CurrentState", format!("{} {} ago", title(&task.status.state), ago.to_lowercase())),
                ("Error", error),
                ("Ports", ports.join(",")),
            ])
        })
        .collect();
    output::list(out, flags, &COLUMNS, &rows, &objects)
}

/// Names of services and nodes by id; without them ids stand for themselves.
#[derive(Default)]
pub(in crate::cli) struct Names {
    services: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

impl Names {
    pub(in crate::cli) async fn load(client: &Client) -> Result<Self> {
        let services: Vec<Service> = client.get("/services").await?;
        let nodes: Vec<Node> = client.get("/nodes").await?;
        Ok(Self {
            services: services.into_iter().map(|service| (service.id, service.spec.name)).collect(),
            nodes: nodes.into_iter().map(|node| (node.id, node.description.hostname)).collect(),
        })
    }

    pub(in crate::cli) fn node(&self, id: &str) -> String {
        self.nodes.get(id).cloned().unwrap_or_else(|| id.into())
    }

    fn service(&self, id: &str) -> String {
        self.services.get(id).cloned().unwrap_or_else(|| id.into())
    }

    /// `web.1`, or `web.NODE` for a global service.
    pub(in crate::cli) fn task(&self, task: &Task) -> String {
        let service = self.service(&task.service_id);
        if task.slot == 0 { format!("{service}.{}", task.node_id) } else { format!("{service}.{}", task.slot) }
    }
}
