//! `edgectl service`: create, list, inspect, watch, change and remove services.

mod flags;
mod progress;
pub(super) mod syntax;
pub(super) mod tasks;

use super::{
    Error, Result,
    client::{Client, filters},
    logs,
    node::read,
    output::{self, Column, ListFlags, Out, row, short_id},
};
use crate::api::{
    docker::{
        objects::{Service, ServiceCreated},
        spec::{Platform, Port, ServiceSpec},
    },
    edge::Explanation,
    time,
};
use progress::Wish;
use serde_json::Value;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Start a service
    Create(Box<flags::Create>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// List tasks of services
    Ps(Ps),
    /// Show low-level information on services
    Inspect(Inspect),
    /// Show the logs of a service or a task
    Logs(logs::ServiceLogs),
    /// Change the number of tasks: SERVICE=REPLICAS
    Scale(Scale),
    /// Change a service
    Update(Box<flags::Update>),
    /// Return to the version before
    Rollback(Rollback),
    /// Remove services and their tasks
    #[command(visible_alias = "remove")]
    Rm(Names),
    /// Say why a service is as it is
    Explain(Explain),
}

#[derive(clap::Args)]
pub(super) struct Ps {
    /// Services by id or name
    #[arg(required = true)]
    services: Vec<String>,
    #[command(flatten)]
    list: ListFlags,
    /// Print ids instead of names
    #[arg(long)]
    no_resolve: bool,
}

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Services by id or name
    #[arg(required = true)]
    services: Vec<String>,
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
}

#[derive(clap::Args)]
pub(super) struct Scale {
    /// Return at once instead of waiting for the service to be stable
    #[arg(short, long)]
    detach: bool,
    /// Service and number of tasks
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    services: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Rollback {
    /// Return at once instead of waiting for the service to be stable
    #[arg(short, long)]
    detach: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// The service by id or name
    service: String,
}

#[derive(clap::Args)]
pub(super) struct Names {
    /// Services by id or name
    #[arg(required = true)]
    services: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Explain {
    /// The service by id or name
    service: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Create(create) => {
            let what = create.name.clone().unwrap_or_default();
            self::create(*create, client, out).await.map_err(|error| error.context(format!("create service {what}")))
        }
        Command::Ls(flags) => list(flags, client, out).await,
        Command::Ps(mut ps) => {
            for service in &ps.services {
                let found: Service = client.get(&format!("/services/{service}")).await?;
                ps.list.filter.push(format!("service={}", found.id));
            }
            tasks::list(client, out, &ps.list, ps.no_resolve).await
        }
        Command::Inspect(inspect) => {
            let mut objects = Vec::new();
            for service in &inspect.services {
                objects.push(client.get::<Value>(&format!("/services/{service}")).await?);
            }
            if inspect.pretty {
                return objects.iter().try_for_each(|object| pretty(out, &read(object)?));
            }
            output::inspect(out, inspect.format.as_deref(), objects)
        }
        Command::Logs(logs) => logs::of_service(logs, client, out).await,
        Command::Scale(scale) => self::scale(scale, client, out).await,
        Command::Update(update) => {
            let what = format!("update service {}", update.service);
            self::update(*update, client, out).await.map_err(|error| error.context(what))
        }
        Command::Rollback(Rollback { detach, quiet, service }) => {
            let what = format!("roll back service {service}");
            rollback(client, out, &service, detach, quiet).await.map_err(|error| error.context(what))
        }
        Command::Rm(names) => {
            for service in &names.services {
                let path = format!("/services/{service}");
                client.delete_only(&path).await.map_err(|error| error.context(format!("remove service {service}")))?;
                out.line(service)?;
            }
            Ok(())
        }
        Command::Explain(Explain { service, json }) => explain(client, out, &service, json).await,
    }
}

async fn create(create: flags::Create, client: &Client, out: &mut Out) -> Result {
    let mut spec = create.spec()?;
    if !create.common.no_resolve_image {
        resolve(client, out, &mut spec).await?;
    }
    let created: ServiceCreated = client.post("/services/create", &spec).await?;
    for warning in &created.warnings {
        out.error(&format!("WARNING: {warning}"));
    }
    out.line(&created.id)?;
    out.flush()?;
    if create.common.detach {
        return Ok(());
    }
    progress::wait(client, out, &created.id, Wish::Forward, create.common.quiet).await
}

/// Fixes the image's content by its digest, so that all nodes run the same, and notes its platforms. A registry that does
/// not answer is no reason to give up: nodes may have the image.
async fn resolve(client: &Client, out: &mut Out, spec: &mut ServiceSpec) -> Result {
    let image = spec.task_template.container_spec.image.clone();
    if image.contains('@') {
        return Ok(());
    }
    let answer: Value = match client.get(&format!("/distribution/{image}/json")).await {
        Ok(answer) => answer,
        Err(error) if error.status.is_some_and(|status| status != 400) => {
            out.error(&format!(
                "image {image} could not be accessed on a registry to record its digest: {}",
                error.message
            ));
            out.error(&format!(
                "each node will access {image} by itself, and nodes may end up with different versions of it"
            ));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if let Some(digest) = answer["Descriptor"]["digest"].as_str() {
        let last = image.rsplit('/').next().unwrap_or(&image);
        let tag = if last.contains(':') { "" } else { ":latest" };
        spec.task_template.container_spec.image = format!("{image}{tag}@{digest}");
    }
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let platforms = answer["Platforms"].as_array().map_or(&[][..], Vec::as_slice);
    spec.task_template.placement.get_or_insert_default().platforms = platforms
        .iter()
        .map(|p| Platform { architecture: text(&p["architecture"]), os: text(&p["os"]), variant: text(&p["variant"]) })
        .collect();
    Ok(())
}

async fn update(update: flags::Update, client: &Client, out: &mut Out) -> Result {
    if update.to_previous {
        return rollback(client, out, &update.service, update.common.detach, update.common.quiet).await;
    }
    let mut service: Service = client.get(&format!("/services/{}", update.service)).await?;
    update.apply(&mut service.spec)?;
    if update.image.is_some() && !update.common.no_resolve_image {
        resolve(client, out, &mut service.spec).await?;
    }
    send(client, &service).await?;
    out.line(&update.service)?;
    out.flush()?;
    if update.common.detach {
        return Ok(());
    }
    progress::wait(client, out, &service.id, Wish::Forward, update.common.quiet).await
}

async fn send(client: &Client, service: &Service) -> Result {
    let path = format!("/services/{}/update?version={}", service.id, service.version.index);
    client.post_only(&path, &service.spec).await
}

async fn rollback(client: &Client, out: &mut Out, name: &str, detach: bool, quiet: bool) -> Result {
    let service: Service = client.get(&format!("/services/{name}")).await?;
    let path = format!("/services/{}/update?version={}&rollback=previous", service.id, service.version.index);
    client.post_only(&path, &service.spec).await?;
    out.line(name)?;
    out.flush()?;
    if detach { Ok(()) } else { progress::wait(client, out, &service.id, Wish::Rollback, quiet).await }
}

async fn scale(scale: Scale, client: &Client, out: &mut Out) -> Result {
    let mut scaled = Vec::new();
    for argument in &scale.services {
        let bad = || Error::usage(format!("invalid scale {argument:?}: it must be SERVICE=REPLICAS"));
        let (name, replicas) = argument.split_once('=').ok_or_else(bad)?;
        let replicas = replicas.parse().map_err(|_| bad())?;
        let context = |error: Error| error.context(format!("scale service {name}"));
        let mut service: Service = client.get(&format!("/services/{name}")).await.map_err(context)?;
        flags::set_replicas(&mut service.spec, replicas).map_err(context)?;
        send(client, &service).await.map_err(context)?;
        out.line(&format!("{name} scaled to {replicas}"))?;
        out.flush()?;
        scaled.push(service.id);
    }
    if !scale.detach {
        for id in scaled {
            progress::wait(client, out, &id, Wish::Forward, false).await?;
        }
    }
    Ok(())
}

const COLUMNS: [Column; 6] = [
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Mode", "MODE"),
    ("Replicas", "REPLICAS"),
    ("Image", "IMAGE"),
    ("Ports", "PORTS"),
];

async fn list(flags: ListFlags, client: &Client, out: &mut Out) -> Result {
    let path = format!("/services?status=true&{}", filters(&flags.filter)?);
    let objects: Value = client.get(&path).await.map_err(|error| error.context("list services"))?;
    let mut services: Vec<Service> = read(&objects)?;
    services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let rows: Vec<_> = services
        .iter()
        .map(|service| {
            let status = service.service_status.clone().unwrap_or_default();
            let placement = service.spec.task_template.placement.clone().unwrap_or_default();
            let mut replicas = format!("{}/{}", status.running_tasks, status.desired_tasks);
            if placement.max_replicas > 0 {
                replicas.push_str(&format!(" (max {} per node)", placement.max_replicas));
            }
            let ports: Vec<_> =
                service.endpoint.ports.iter().filter(|p| p.publish_mode == "ingress").map(port).collect();
            row([
                ("ID", if flags.no_trunc { service.id.clone() } else { short_id(&service.id) }),
                ("Name", service.spec.name.clone()),
                ("Mode", mode(service).into()),
                ("Replicas", replicas),
                ("Image", image_shown(&service.spec.task_template.container_spec.image, flags.no_trunc)),
                ("Ports", ports.join(", ")),
            ])
        })
        .collect();
    output::list(out, &flags, &COLUMNS, &rows, &objects)
}

fn mode(service: &Service) -> &'static str {
    if service.spec.mode.global.is_some() { "global" } else { "replicated" }
}

/// `*:8080->80/tcp`.
fn port(port: &Port) -> String {
    format!("*:{}->{}/{}", port.published_port, port.target_port, port.protocol)
}

/// The image without its digest when there is a tag.
fn image_shown(image: &str, no_trunc: bool) -> String {
    match image.split_once('@') {
        Some((name, _)) if !no_trunc && name.contains(':') => name.into(),
        _ => image.into(),
    }
}

async fn explain(client: &Client, out: &mut Out, name: &str, json: bool) -> Result {
    let answer: Value = client.get(&format!("/edge/v1/services/{name}/explain")).await?;
    if json {
        return output::print_json(out, &answer);
    }
    let service: Explanation = read(&answer)?;
    out.line(&format!("{} ({}): {} of {} tasks run", service.name, service.mode, service.running, service.desired))?;
    for reason in &service.reasons {
        out.line(&format!("  {reason}"))?;
    }
    let mut before = None;
    for task in &service.tasks {
        let node = if task.node.is_empty() { String::new() } else { format!(" on {}", task.node) };
        out.line(&format!("{} ({}){node}: {} ({})", task.name, short_id(&task.id), task.state, task.message))?;
        for reason in &task.reasons {
            out.line(&format!("  {reason}"))?;
        }
        // Tasks that wait usually wait for the same reasons.
        if before != Some(&task.nodes) {
            for (node, why) in &task.nodes {
                out.line(&format!("    {node}: {why}"))?;
            }
        }
        before = Some(&task.nodes);
    }
    if service.tasks.is_empty() && service.reasons.is_empty() && service.running >= service.desired {
        out.line("Everything is as it was asked for.")?;
    }
    Ok(())
}

/// What becomes of tasks whose node reaches no manager.
fn on_disconnect(spec: &ServiceSpec) -> String {
    let single = spec.mode.replicated.as_ref().is_some_and(|mode| mode.replicas.unwrap_or(1) == 1);
    let asked = spec.on_disconnect.as_deref();
    let stops = match asked {
        Some(asked) => asked == "stop",
        None => single,
    };
    let by_itself = if asked.is_none() { " (auto)" } else { "" };
    match (stops, spec.disconnect_grace) {
        (false, _) => format!("keep{by_itself}"),
        (true, Some(grace)) => format!("stop after {}{by_itself}", time::duration(grace)),
        (true, None) => format!("stop after twice the time until a node is down{by_itself}"),
    }
}

fn pretty(out: &mut Out, service: &Service) -> Result {
    let spec = &service.spec;
    let task = &spec.task_template;
    let container = &task.container_spec;
    let mut lines: Vec<(String, String)> = vec![("ID".into(), service.id.clone()), ("Name".into(), spec.name.clone())];
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push((name.into(), value));
        }
    };
    for (key, value) in &spec.labels {
        put("Label", format!("{key}={value}"));
    }
    put("Mode", mode(service).into());
    put("Replicas", spec.mode.replicated.as_ref().map_or(String::new(), |r| r.replicas.unwrap_or(1).to_string()));
    if let Some(update) = &service.update_status {
        put("Update", format!("{} ({})", update.state, update.message));
    }
    let placement = task.placement.clone().unwrap_or_default();
    put("Constraints", placement.constraints.join(", "));
    if let Some(config) = &spec.update_config {
        put(
            "Update config",
            format!(
                "{} at a time, {}, monitor {}, on failure {}, max failure ratio {}",
                config.parallelism,
                config.order,
                time::duration(config.monitor),
                config.failure_action,
                config.max_failure_ratio
            ),
        );
    }
    put("On disconnect", on_disconnect(spec));
    put("Image", container.image.clone());
    put("Entrypoint", container.command.join(" "));
    put("Args", container.args.join(" "));
    put("Env", container.env.join(" "));
    put("User", container.user.clone());
    put("Dir", container.dir.clone());
    for mount in &container.mounts {
        let access = if mount.read_only { "ro" } else { "rw" };
        put("Mount", format!("{} {} -> {} ({access})", mount.r#type, mount.source, mount.target));
    }
    let resources = task.resources.clone().unwrap_or_default();
    let amounts = |cpus: u64, memory: u64| {
        let cpus = (cpus > 0).then(|| format!("{} cores", cpus as f64 / 1e9));
        let memory = (memory > 0).then(|| output::memory(memory));
        cpus.into_iter().chain(memory).collect::<Vec<_>>().join(", ")
    };
    put("Limits", resources.limits.map_or(String::new(), |l| amounts(l.nano_cpus, l.memory_bytes)));
    put("Reservations", resources.reservations.map_or(String::new(), |r| amounts(r.nano_cpus, r.memory_bytes)));
    if let Some(check) = &container.healthcheck {
        put("Health check", check.test.join(" "));
    }
    put("Endpoint mode", service.endpoint.spec.mode.clone());
    for known in &service.endpoint.ports {
        put("Port", format!("{} ({})", port(known), known.publish_mode));
    }
    put("Created", service.created_at.clone());
    put("Updated", service.updated_at.clone());
    for (name, value) in lines {
        out.line(&format!("{:<16}{value}", format!("{name}:")))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn split_words(text: &str) -> Vec<String> {
    syntax::words(text).expect("the test's own words")
}
