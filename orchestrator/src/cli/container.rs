//! `edgectl ps`, `inspect`, `stats`, `stop`, `kill`: the containers of this node, and by name those of others.

use super::{
    Error, Result,
    client::{Client, filters},
    output::{self, Column, ListFlags, Out, Row, row, short_id},
    place::Place,
};
use crate::api::time;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(clap::Args)]
pub(super) struct List {
    /// Also those that ended
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Containers by id or name
    #[arg(required = true)]
    containers: Vec<String>,
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Stats {
    /// One reading instead of a new one each second
    #[arg(long)]
    no_stream: bool,
    /// Print by a template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
    /// Containers by id or name; none is all that run
    containers: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Stop {
    /// Signal that asks the process to end
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds until SIGKILL
    #[arg(short = 't', long = "timeout", alias = "time", value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Containers by id or name
    #[arg(required = true)]
    containers: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Kill {
    /// The signal
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Containers by id or name
    #[arg(required = true)]
    containers: Vec<String>,
}

const COLUMNS: [Column; 7] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
];

/// Characters of a command in a table, as Docker's.
const COMMAND_SHOWN: usize = 20;

pub(super) async fn list(command: List, client: &Client, out: &mut Out) -> Result {
    let path = format!("/containers/json?all={}&{}", u8::from(command.all), filters(&command.list.filter)?);
    let objects: Value = client.get(&path).await.map_err(|error| error.context("list containers"))?;
    let full = command.list.no_trunc;
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let rows: Vec<Row> = objects
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(|container| {
            let command = text(&container["Command"]);
            let command = if full { command } else { output::shorten(&command, COMMAND_SHOWN) };
            let image = text(&container["Image"]);
            let name = text(&container["Names"][0]);
            row([
                ("ID", if full { text(&container["Id"]) } else { short_id(&text(&container["Id"])) }),
                ("Image", if full { image } else { image.split('@').next().unwrap_or("").into() }),
                ("Command", format!("\"{command}\"")),
                ("CreatedAt", format!("{} ago", time::human(since(container["Created"].as_u64().unwrap_or(0))))),
                ("Status", text(&container["Status"])),
                ("Ports", ports(&container["Ports"])),
                ("Names", name.trim_start_matches('/').into()),
                ("State", text(&container["State"])),
            ])
        })
        .collect();
    output::list(out, &command.list, &COLUMNS, &rows, &objects)
}

/// Nanoseconds since a Unix time in seconds.
pub(super) fn since(secs: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(secs)).as_nanos().try_into().unwrap_or(u64::MAX)
}

fn ports(ports: &Value) -> String {
    let one = |port: &Value| {
        let (private, kind) = (&port["PrivatePort"], port["Type"].as_str().unwrap_or("tcp"));
        match port["PublicPort"].as_u64() {
            Some(public) => format!("*:{public}->{private}/{kind}"),
            None => format!("{private}/{kind}"),
        }
    };
    ports.as_array().map_or(&[][..], Vec::as_slice).iter().map(one).collect::<Vec<_>>().join(", ")
}

pub(super) async fn inspect(command: Inspect, client: &Client, out: &mut Out) -> Result {
    let mut objects = Vec::new();
    for container in &command.containers {
        objects.push(Place::find(client, container).await?.1);
    }
    output::inspect(out, command.format.as_deref(), objects)
}

pub(super) async fn stop(command: Stop, client: &Client, out: &mut Out) -> Result {
    for container in &command.containers {
        let context = |error: Error| error.context(format!("stop {container}"));
        let (place, _) = Place::find(client, container).await.map_err(context)?;
        let mut path = place.container("/stop?");
        if let Some(signal) = &command.signal {
            path.push_str(&format!("signal={signal}&"));
        }
        if let Some(timeout) = command.timeout {
            path.push_str(&format!("t={timeout}"));
        }
        client.post_only(&path, &json!({})).await.map_err(context)?;
        out.line(container)?;
    }
    Ok(())
}

pub(super) async fn kill(command: Kill, client: &Client, out: &mut Out) -> Result {
    for container in &command.containers {
        let context = |error: Error| error.context(format!("kill {container}"));
        let (place, _) = Place::find(client, container).await.map_err(context)?;
        let path = place.container(&format!("/kill?signal={}", command.signal));
        client.post_only(&path, &json!({})).await.map_err(context)?;
        out.line(container)?;
    }
    Ok(())
}

const STATS: [Column; 8] = [
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

pub(super) async fn stats(command: Stats, client: &Client, out: &mut Out) -> Result {
    let mut named = Vec::new();
    for container in &command.containers {
        let (place, _) = Place::find(client, container).await.map_err(|error| error.context("stats"))?;
        named.push(place.container("/stats?stream=false"));
    }
    loop {
        let paths = if named.is_empty() {
            let running: Vec<Value> = client.get("/containers/json").await?;
            let ids = running.iter().filter_map(|container| container["Id"].as_str());
            ids.map(|id| format!("/containers/{id}/stats?stream=false")).collect()
        } else {
            named.clone()
        };
        // Each answer holds two readings a second apart; asking for all at once keeps it at one second.
        let readings =
            futures_util::future::join_all(paths.iter().map(|path| async move { client.get::<Value>(path).await }))
                .await;
        let mut rows = Vec::new();
        for reading in readings {
            match reading {
                Ok(reading) => rows.push(stats_row(&reading, command.no_trunc)),
                // It ended between the list and the reading.
                Err(error) if error.status == Some(404) && command.containers.is_empty() => {}
                Err(error) => return Err(error.context("stats")),
            }
        }
        if !command.no_stream && out.width.is_some() {
            // Home and clear (ECMA-48 CUP, ED).
            out.write("\x1b[H\x1b[2J")?;
        }
        let flags = ListFlags { format: command.format.clone(), no_trunc: command.no_trunc, ..ListFlags::default() };
        output::list(out, &flags, &STATS, &rows, &Value::Null)?;
        out.flush()?;
        if command.no_stream {
            return Ok(());
        }
        if paths.is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn stats_row(reading: &Value, no_trunc: bool) -> Row {
    let number = |pointer: &str| reading.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let delta = |now: &str, before: &str| number(now).saturating_sub(number(before)) as f64;
    let used = delta("/cpu_stats/cpu_usage/total_usage", "/precpu_stats/cpu_usage/total_usage");
    let machine = delta("/cpu_stats/system_cpu_usage", "/precpu_stats/system_cpu_usage");
    let cpus = number("/cpu_stats/online_cpus").max(1) as f64;
    let cpu = if machine > 0.0 { used / machine * cpus * 100.0 } else { 0.0 };
    let memory = number("/memory_stats/usage").saturating_sub(number("/memory_stats/stats/inactive_file"));
    let limit = number("/memory_stats/limit");
    let share = if limit > 0 { memory as f64 / limit as f64 * 100.0 } else { 0.0 };
    let networks = reading["networks"].as_object();
    let sum = |key: &str| networks.map_or(0, |map| map.values().filter_map(|n| n[key].as_u64()).sum());
    let blocks = reading["blkio_stats"]["io_service_bytes_recursive"].as_array();
    let block = |op: &str| {
        let entries = blocks.map_or(&[][..], Vec::as_slice).iter().filter(|entry| entry["op"] == op);
        entries.filter_map(|entry| entry["value"].as_u64()).sum()
    };
    let id = reading["id"].as_str().unwrap_or("");
    row([
        ("ID", if no_trunc { id.into() } else { short_id(id) }),
        ("Name", reading["name"].as_str().unwrap_or("").trim_start_matches('/').into()),
        ("CPUPerc", format!("{cpu:.2}%")),
        ("MemUsage", format!("{} / {}", output::memory(memory), output::memory(limit))),
        ("MemPerc", format!("{share:.2}%")),
        ("NetIO", format!("{} / {}", output::size(sum("rx_bytes")), output::size(sum("tx_bytes")))),
        ("BlockIO", format!("{} / {}", output::size(block("read")), output::size(block("write")))),
        ("PIDs", number("/pids_stats/current").to_string()),
    ])
}

impl From<std::fmt::Error> for Error {
    fn from(error: std::fmt::Error) -> Self {
        Self::new(error.to_string())
    }
}
