//! `edgectl cluster`: make the cluster, look at it.

use super::{
    Error, Result,
    client::Client,
    output::{self, Out},
};
use crate::api::docker::objects::SwarmInit;
use serde_json::Value;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make this node the first manager of a new cluster
    Init(Init),
    /// Show the cluster
    Inspect(Inspect),
}

#[derive(clap::Args)]
pub(super) struct Init {
    /// Address that other nodes reach this one by
    #[arg(long, value_name = "IP[:PORT]")]
    advertise_addr: Option<String>,
    /// Address that the daemon listens on
    #[arg(long, value_name = "IP[:PORT]")]
    listen_addr: Option<String>,
    /// Whether tasks may be placed on this node
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
    /// Ended tasks that are kept per slot
    #[arg(long, value_name = "N")]
    task_history_limit: Option<u32>,
}

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

pub(super) async fn run(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Init(init) => {
            let mut body = SwarmInit {
                listen_addr: init.listen_addr.unwrap_or_default(),
                advertise_addr: init.advertise_addr.unwrap_or_default(),
                availability: init.availability,
                ..SwarmInit::default()
            };
            body.spec.orchestration.task_history_retention_limit = init.task_history_limit;
            let id: String =
                client.post("/swarm/init", &body).await.map_err(|error| error.context("initialise the cluster"))?;
            out.line(&format!("Cluster initialised: this node ({id}) is its first manager."))?;
            Ok(out.line("Start a service with: edgectl service create --name web -p 8080:80 nginx")?)
        }
        Command::Inspect(inspect) => {
            let swarm: Value =
                client.get("/swarm").await.map_err(|error: Error| error.context("inspect the cluster"))?;
            output::inspect(out, inspect.format.as_deref(), vec![swarm])
        }
    }
}
