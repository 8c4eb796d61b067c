//! `edgectl cluster`: make the cluster, join and leave it, change and look at it.

use super::{
    Error, Result,
    client::Client,
    output::{self, Out},
    service::syntax,
};
use crate::api::{
    docker::objects::{Node, Swarm, SwarmInit, SwarmJoin, SwarmSpec},
    request::encode,
};
use serde_json::{Value, json};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make this node the first manager of a new cluster
    Init(Init),
    /// Make this node a member of a cluster
    Join(Join),
    /// Show what to run on a machine that is to join, or make its token worthless
    JoinToken(JoinToken),
    /// End this node's membership
    Leave(Leave),
    /// Change settings
    Update(Update),
    /// Show the cluster
    Inspect(Inspect),
    /// Show the certificate of the cluster's authority
    Ca,
}

#[derive(clap::Args)]
pub(super) struct Addresses {
    /// Address that other nodes reach this one by
    #[arg(long, value_name = "IP[:PORT]")]
    advertise_addr: Option<String>,
    /// Address that the daemon listens on
    #[arg(long, value_name = "IP[:PORT]")]
    listen_addr: Option<String>,
    /// Whether tasks may be placed on this node
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
}

#[derive(clap::Args)]
pub(super) struct Settings {
    /// Ended tasks that are kept per slot
    #[arg(long, value_name = "N")]
    task_history_limit: Option<u32>,
    /// How long certificates of nodes are good for, for example 2160h; an hour at least
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    cert_expiry: Option<u64>,
    /// Time between two signs of life of a node; after five that are missing it is down
    #[arg(long, alias = "heartbeat", value_name = "DURATION", value_parser = syntax::duration)]
    dispatcher_heartbeat: Option<u64>,
}

impl Settings {
    fn apply(&self, spec: &mut SwarmSpec) {
        let history = &mut spec.orchestration.task_history_retention_limit;
        *history = self.task_history_limit.or(*history);
        spec.ca_config.node_cert_expiry = self.cert_expiry.unwrap_or(spec.ca_config.node_cert_expiry);
        spec.dispatcher.heartbeat_period = self.dispatcher_heartbeat.unwrap_or(spec.dispatcher.heartbeat_period);
    }
}

#[derive(clap::Args)]
pub(super) struct Init {
    #[command(flatten)]
    addresses: Addresses,
    #[command(flatten)]
    settings: Settings,
    /// Go on alone with all that this manager knows: the other managers are lost for good
    #[arg(long)]
    force_new_cluster: bool,
}

#[derive(clap::Args)]
pub(super) struct Join {
    /// What "edgectl cluster join-token" showed on a manager
    #[arg(long, env = "EDGE_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    #[command(flatten)]
    addresses: Addresses,
    /// Managers to ask; none looks for one on the local network
    #[arg(value_name = "ADDR[:PORT]")]
    managers: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct JoinToken {
    /// What the machine is to be
    #[arg(value_parser = ["worker", "manager"])]
    role: String,
    /// Make a new token first; the old one lets nobody in any more
    #[arg(long)]
    rotate: bool,
    /// Only the token
    #[arg(short, long)]
    quiet: bool,
}

#[derive(clap::Args)]
pub(super) struct Leave {
    /// Also when the cluster suffers from it, or cannot be told
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
pub(super) struct Update {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

pub(super) async fn run(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Init(init) => self::init(init, client, out).await,
        Command::Join(join) => self::join(join, client, out).await,
        Command::JoinToken(token) => join_token(token, client, out).await,
        Command::Leave(leave) => {
            let path = format!("/swarm/leave?force={}", u8::from(leave.force));
            client.post_only(&path, &json!({})).await.map_err(|error| error.context("leave the cluster"))?;
            Ok(out.line("Node left the cluster.")?)
        }
        Command::Update(update) => {
            let context = |error: Error| error.context("update the cluster");
            let mut swarm: Swarm = client.get("/swarm").await.map_err(context)?;
            update.settings.apply(&mut swarm.spec);
            let path = format!("/swarm/update?version={}", swarm.version.index);
            client.post_only(&path, &swarm.spec).await.map_err(context)?;
            Ok(out.line("Cluster updated.")?)
        }
        Command::Inspect(inspect) => {
            let swarm: Value =
                client.get("/swarm").await.map_err(|error: Error| error.context("inspect the cluster"))?;
            output::inspect(out, inspect.format.as_deref(), vec![swarm])
        }
        Command::Ca => {
            let swarm: Swarm = client.get("/swarm").await.map_err(|error| error.context("the cluster's authority"))?;
            Ok(out.line(swarm.tls_info.trust_root.trim())?)
        }
    }
}

async fn init(init: Init, client: &Client, out: &mut Out) -> Result {
    let mut body = SwarmInit {
        listen_addr: init.addresses.listen_addr.unwrap_or_default(),
        advertise_addr: init.addresses.advertise_addr.unwrap_or_default(),
        availability: init.addresses.availability,
        force_new_cluster: init.force_new_cluster,
        ..SwarmInit::default()
    };
    init.settings.apply(&mut body.spec);
    let id: String =
        client.post("/swarm/init", &body).await.map_err(|error| error.context("initialise the cluster"))?;
    if init.force_new_cluster {
        out.line(&format!("This node ({id}) is the only manager of the cluster from now on."))?;
        out.line("Managers that come back are workers: see \"edgectl node ls\", then \"edgectl node promote\".")?;
        out.line("Those that still have a majority among themselves are a cluster of their own:")?;
        return Ok(out.line("run \"edgectl cluster leave --force\" on them, and let them join anew.")?);
    }
    out.line(&format!("Cluster initialised: this node ({id}) is its first manager."))?;
    out.line("")?;
    show_join(client, out, "worker").await?;
    out.line("To add a manager, run \"edgectl cluster join-token manager\" and follow what it says.")?;
    Ok(out.line("Start a service with: edgectl service create --name web -p 8080:80 nginx")?)
}

async fn join(join: Join, client: &Client, out: &mut Out) -> Result {
    let body = SwarmJoin {
        listen_addr: join.addresses.listen_addr.unwrap_or_default(),
        advertise_addr: join.addresses.advertise_addr.unwrap_or_default(),
        availability: join.addresses.availability,
        remote_addrs: join.managers,
        join_token: join.token.trim().into(),
        ..SwarmJoin::default()
    };
    client.post_only("/swarm/join", &body).await.map_err(|error| error.context("join the cluster"))?;
    let info: Value = client.get("/info").await?;
    let role = if info["Swarm"]["ControlAvailable"] == true { "manager" } else { "worker" };
    Ok(out.line(&format!("This node joined a cluster as a {role}."))?)
}

async fn join_token(command: JoinToken, client: &Client, out: &mut Out) -> Result {
    let context = |error: Error| error.context(format!("join token for a {}", command.role));
    if command.rotate {
        let swarm: Swarm = client.get("/swarm").await.map_err(context)?;
        let flag = if command.role == "manager" { "rotateManagerToken" } else { "rotateWorkerToken" };
        let path = format!("/swarm/update?version={}&{flag}=true", swarm.version.index);
        client.post_only(&path, &swarm.spec).await.map_err(context)?;
        if !command.quiet {
            out.line(&format!("Successfully rotated the {} join token.", command.role))?;
            out.line("")?;
        }
    }
    if command.quiet {
        let swarm: Swarm = client.get("/swarm").await.map_err(context)?;
        return Ok(out.line(token(&swarm, &command.role))?);
    }
    show_join(client, out, &command.role).await.map_err(context)
}

fn token<'a>(swarm: &'a Swarm, role: &str) -> &'a str {
    if role == "manager" { &swarm.join_tokens.manager } else { &swarm.join_tokens.worker }
}

/// What to run on a machine that is to join.
async fn show_join(client: &Client, out: &mut Out, role: &str) -> Result {
    let swarm: Swarm = client.get("/swarm").await?;
    let info: Value = client.get("/info").await?;
    let own = info["Swarm"]["NodeID"].as_str().unwrap_or("");
    let node: Node = client.get(&format!("/nodes/{}", encode(own))).await?;
    let address = node.manager_status.map(|status| status.addr).unwrap_or_default();
    out.line(&format!("To add a {role} to this cluster, run on the machine that is to join:"))?;
    out.line("")?;
    out.line(format!("    edgectl cluster join --token {} {address}", token(&swarm, role)).trim_end())?;
    Ok(out.line("")?)
}
