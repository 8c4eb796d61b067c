//! `edgectl info`, `version`, `doctor`, `events`, `system`: the node and what happens on it.

use super::{
    Error, Result,
    client::{Client, filters, json_lines},
    logs::instant,
    node::read,
    output::{self, Out, row},
    template::Template,
};
use crate::api::{
    node::{Finding, Interface},
    request::encode,
    time,
};
use futures_util::StreamExt;
use serde_json::{Value, json};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Show what takes space on disk
    Df(Df),
    /// Show network interfaces and how packets are taken from them
    Interfaces(Interfaces),
    /// Show what this node is
    Info(Info),
    /// Show what happens
    Events(Events),
}

#[derive(clap::Args)]
pub(super) struct Df {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct Interfaces {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct Info {
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Version {
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Doctor {
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Only what is not as it should be
    #[arg(short, long)]
    quiet: bool,
}

#[derive(clap::Args)]
pub(super) struct Events {
    /// Only events that fit, KEY=VALUE; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Also those since a time or for a duration
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Print by a template, or "json"
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

pub(super) async fn run(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Df(df) => disk_usage(client, out, df.json).await,
        Command::Interfaces(command) => interfaces(client, out, command.json).await,
        Command::Info(command) => info(command, client, out).await,
        Command::Events(command) => events(command, client, out).await,
    }
}

pub(super) async fn events(command: Events, client: &Client, out: &mut Out) -> Result {
    let mut path = format!("/events?{}", filters(&command.filter)?);
    for (key, value) in [("since", &command.since), ("until", &command.until)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", encode(&instant(value)?)));
        }
    }
    let template = match command.format.as_deref() {
        None | Some("json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let mut lines = json_lines(client.stream(&path).await.map_err(|error| error.context("events"))?);
    while let Some(event) = lines.next().await {
        let event = event?;
        let text = match (&template, &command.format) {
            (Some(template), _) => template.render(&event)?,
            (None, Some(_)) => event.to_string(),
            (None, None) => event_line(&event),
        };
        out.line(&text)?;
        out.flush()?;
    }
    Ok(())
}

fn event_line(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let attributes: Vec<String> = event["Actor"]["Attributes"].as_object().map_or(Vec::new(), |attributes| {
        attributes.iter().map(|(key, value)| format!("{key}={}", text(value))).collect()
    });
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!(
        "{} {} {} {}{attributes}",
        time::rfc3339_fixed(event["timeNano"].as_u64().unwrap_or(0)),
        text(&event["Type"]),
        text(&event["Action"]),
        text(&event["Actor"]["ID"]),
    )
}

pub(super) async fn info(command: Info, client: &Client, out: &mut Out) -> Result {
    let info: Value = client.get("/info").await?;
    if command.format.is_some() {
        return output::inspect(out, command.format.as_deref(), vec![info]);
    }
    let text = |pointer: &str| match info.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let memory = info["MemTotal"].as_u64().unwrap_or(0);
    let lines = [
        ("Name", text("/Name")),
        ("Version", text("/ServerVersion")),
        ("Operating system", text("/OperatingSystem")),
        ("Kernel", text("/KernelVersion")),
        ("Platform", format!("{}/{}", text("/OSType"), text("/Architecture"))),
        ("CPUs", text("/NCPU")),
        ("Memory", output::memory(memory)),
        ("Cgroup version", text("/CgroupVersion")),
        ("Data", text("/DockerRootDir")),
        ("Containers", format!("{} ({} running)", text("/Containers"), text("/ContainersRunning"))),
        ("Images", text("/Images")),
        ("Cluster", text("/Swarm/LocalNodeState")),
        ("  Cluster ID", text("/Swarm/Cluster/ID")),
        ("  Node ID", text("/Swarm/NodeID")),
        ("  Manager", text("/Swarm/ControlAvailable")),
        ("  Nodes", text("/Swarm/Nodes")),
        ("  Managers", text("/Swarm/Managers")),
        ("  Address", text("/Swarm/NodeAddr")),
        ("  Managers at", managers(&info)),
        ("  Error", text("/Swarm/Error")),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        out.line(&format!("{:<18}{value}", format!("{name}:")))?;
    }
    for warning in info["Warnings"].as_array().map_or(&[][..], Vec::as_slice) {
        out.error(&format!("WARNING: {}", warning.as_str().unwrap_or("")));
    }
    Ok(())
}

/// Addresses of the managers that the node knows.
fn managers(info: &Value) -> String {
    let known = info["Swarm"]["RemoteManagers"].as_array().map_or(&[][..], Vec::as_slice);
    known.iter().filter_map(|manager| manager["Addr"].as_str()).collect::<Vec<_>>().join(", ")
}

pub(super) async fn version(command: Version, client: &Client, out: &mut Out) -> Result {
    let own = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": std::env::consts::OS,
        "Arch": std::env::consts::ARCH,
    });
    let server = client.get::<Value>("/version").await;
    if command.format.is_some() {
        let both = json!({ "Client": own, "Server": server? });
        return output::inspect(out, command.format.as_deref(), vec![both]);
    }
    let arch = crate::api::docker::convert::go_arch(std::env::consts::ARCH);
    out.line(&format!("edgectl {} {}/{arch}", env!("CARGO_PKG_VERSION"), std::env::consts::OS))?;
    let server = server?;
    let text = |key: &str| server[key].as_str().unwrap_or("").to_owned();
    let commit = if text("GitCommit").is_empty() { String::new() } else { format!(" ({})", text("GitCommit")) };
    out.line(&format!("edged   {}{commit} {}/{}", text("Version"), text("Os"), text("Arch")))?;
    Ok(out.line(&format!(
        "API     {} (minimum {}), kernel {}",
        text("ApiVersion"),
        text("MinAPIVersion"),
        text("KernelVersion")
    ))?)
}

pub(super) async fn doctor(command: Doctor, client: &Client, out: &mut Out) -> Result {
    let answer: Value = client.get("/edge/v1/doctor").await?;
    let findings: Vec<Finding> = read(&answer)?;
    let wrong = findings.iter().filter(|finding| !finding.ok).count();
    if command.json {
        output::print_json(out, &answer)?;
    } else {
        for finding in findings.iter().filter(|finding| !command.quiet || !finding.ok) {
            let mark = if finding.ok { "ok  " } else { "FAIL" };
            let why = if finding.why.is_empty() { String::new() } else { format!(": {}", finding.why) };
            out.line(&format!("{mark}  {}{why}", finding.what))?;
            if !finding.fix.is_empty() {
                out.line(&format!("      fix: {}", finding.fix))?;
            }
        }
    }
    match wrong {
        0 => Ok(()),
        1 => Err(Error::new("one thing is not as it should be")),
        many => Err(Error::new(format!("{many} things are not as they should be"))),
    }
}

async fn interfaces(client: &Client, out: &mut Out, json: bool) -> Result {
    let answer: Value = client.get("/edge/v1/interfaces").await?;
    if json {
        return output::print_json(out, &answer);
    }
    let interfaces: Vec<Interface> = read(&answer)?;
    let columns = [
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Attachment", "ATTACHMENT"),
        ("Addresses", "ADDRESSES"),
        ("Why", "WHY"),
    ];
    let rows: Vec<_> = interfaces
        .into_iter()
        .map(|interface| {
            row([
                ("Name", interface.name),
                ("Driver", interface.driver),
                ("Attachment", interface.attachment),
                ("Addresses", interface.addresses.join(", ")),
                ("Why", interface.why),
            ])
        })
        .collect();
    output::table(out, &columns, &rows, false)
}

async fn disk_usage(client: &Client, out: &mut Out, json: bool) -> Result {
    let usage: Value = client.get("/system/df").await?;
    if json {
        return output::print_json(out, &usage);
    }
    let count = |key: &str| usage[key].as_array().map_or(0, Vec::len).to_string();
    let bytes = |pointer: &str| output::size(usage.pointer(pointer).and_then(Value::as_u64).unwrap_or(0));
    let volumes: u64 = usage["Volumes"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .filter_map(|volume| volume["UsageData"]["Size"].as_u64())
        .sum();
    let columns = [("Type", "TYPE"), ("Total", "TOTAL"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];
    let line = |kind: &str, total: String, size: String, reclaimable: String| {
        row([("Type", kind.into()), ("Total", total), ("Size", size), ("Reclaimable", reclaimable)])
    };
    let rows = [
        line("Images", count("Images"), bytes("/LayersSize"), bytes("/Edge/ImagesReclaimable")),
        line("Containers", count("Containers"), bytes("/Edge/Containers"), String::new()),
        line("Logs", String::new(), bytes("/Edge/Logs"), String::new()),
        line("Volumes", count("Volumes"), output::size(volumes), String::new()),
        line("State", String::new(), bytes("/Edge/State"), String::new()),
    ];
    output::table(out, &columns, &rows, false)
}
