//! `edgectl`: the command line. It speaks the node's HTTP API and nothing else; verbs and flags are Docker's. In: arguments
//! and the environment variable `EDGE_HOST`. Out: tables, JSON or templates on standard output, errors on standard error,
//! an exit code. Called by the binary.

mod client;
mod cluster;
mod container;
mod exec;
mod image;
mod logs;
mod node;
mod output;
mod place;
mod service;
mod system;
mod template;
#[cfg(test)]
mod tests;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use client::Client;
pub use output::Out;
use std::ffi::OsString;

/// Where `edged` listens unless told otherwise.
const DEFAULT_HOST: &str = "unix:///run/edged/docker.sock";

/// Docker's exit code for a command line that cannot be understood.
const EXIT_USAGE: i32 = 125;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Error {
    /// What was tried, why it failed, what to do.
    message: String,
    /// Exit code of the process.
    code: i32,
    /// Status of the API's answer, if there was one.
    status: Option<u16>,
}

impl Error {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1, status: None }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: EXIT_USAGE, status: None }
    }

    /// Nothing to say: the exit code is passed on.
    fn code(code: i32) -> Self {
        Self { message: String::new(), code, status: None }
    }

    /// Says what was tried.
    fn context(mut self, what: impl std::fmt::Display) -> Self {
        if !self.message.is_empty() {
            self.message = format!("{what}: {}", self.message);
        }
        self
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        // Whoever reads our output has seen enough, as in `edgectl … | head`.
        if error.kind() == std::io::ErrorKind::BrokenPipe { Self::code(0) } else { Self::new(error.to_string()) }
    }
}

type Result<T = ()> = std::result::Result<T, Error>;

/// Runs containers on a cluster of small machines.
#[derive(Parser)]
#[command(name = "edgectl", version, propagate_version = false, max_term_width = 120)]
struct Cli {
    /// Where the daemon listens: unix:///PATH
    #[arg(short = 'H', long = "host", env = "EDGE_HOST", default_value = DEFAULT_HOST, id = "daemon")]
    host: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The cluster: make it, join it, look at it
    #[command(subcommand, alias = "swarm")]
    Cluster(cluster::Command),
    /// Services: what runs, how often, how it is reached
    #[command(subcommand)]
    Service(Box<service::Command>),
    /// Nodes of the cluster
    #[command(subcommand)]
    Node(node::Command),
    /// Images of this node
    #[command(subcommand)]
    Image(image::Command),
    /// List images of this node
    Images(image::List),
    /// Fetch an image from a registry
    Pull(image::Pull),
    /// List containers of this node
    Ps(container::List),
    /// Run a command in a container
    Exec(exec::Exec),
    /// Show the logs of a container
    Logs(logs::ContainerLogs),
    /// Show what containers use (default: all of this node)
    Stats(container::Stats),
    /// Show low-level information on containers
    Inspect(container::Inspect),
    /// Stop containers
    Stop(container::Stop),
    /// Send a signal to containers
    Kill(container::Kill),
    /// Show what happens
    Events(system::Events),
    /// Show what this node is
    Info(system::Info),
    /// Show the versions of edgectl and edged
    Version(system::Version),
    /// Check what the node needs, and say how to mend what is missing
    Doctor(system::Doctor),
    /// The node itself
    #[command(subcommand)]
    System(system::Command),
    /// Write a completion script for a shell
    Completion(Completion),
}

/// Write a completion script, for example: edgectl completion bash > /etc/bash_completion.d/edgectl
#[derive(clap::Args)]
struct Completion {
    /// The shell
    shell: clap_complete::Shell,
}

/// Runs one command line, the program's name first; returns the exit code.
pub async fn run(arguments: impl IntoIterator<Item = OsString>, out: &mut Out) -> i32 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let text = if out.colour { error.render().ansi().to_string() } else { error.render().to_string() };
            if error.use_stderr() {
                let helps = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
                out.error(&if helps { text.trim_end().to_owned() } else { usage_error(&error.render().to_string()) });
                return EXIT_USAGE;
            }
            let _ = out.write(&text);
            return 0;
        }
    };
    let result = match Client::new(&cli.host) {
        Ok(client) => dispatch(cli.command, &client, out).await,
        Err(error) => Err(error),
    };
    let result = result.and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = out.flush();
            if !error.message.is_empty() {
                out.error(&format!("edgectl: {}", error.message));
            }
            error.code
        }
    }
}

/// What clap says about a wrong command line, in one line that ends with where to read on.
fn usage_error(text: &str) -> String {
    let (what, usage) = text.split_once("\n\nUsage: ").unwrap_or((text, "edgectl"));
    let what = what.split("\n\nFor more information").next().unwrap_or(what);
    let what = what.trim().trim_start_matches("error: ").split("\n\n").map(|part| {
        let words = part.split_whitespace().collect::<Vec<_>>();
        words.join(" ")
    });
    let what = what.collect::<Vec<_>>().join("; ");
    let command = usage.split_whitespace().take_while(|word| !word.starts_with(['-', '[', '<']));
    let command = command.collect::<Vec<_>>().join(" ");
    format!("edgectl: {what}; see `{command} --help`")
}

async fn dispatch(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Cluster(command) => cluster::run(command, client, out).await,
        Command::Service(command) => service::run(*command, client, out).await,
        Command::Node(command) => node::run(command, client, out).await,
        Command::Image(command) => image::run(command, client, out).await,
        Command::Images(command) => image::list(command, client, out).await,
        Command::Pull(command) => image::pull(command, client, out).await,
        Command::Ps(command) => container::list(command, client, out).await,
        Command::Exec(command) => exec::run(command, client, out).await,
        Command::Logs(command) => logs::of_container(command, client, out).await,
        Command::Stats(command) => container::stats(command, client, out).await,
        Command::Inspect(command) => container::inspect(command, client, out).await,
        Command::Stop(command) => container::stop(command, client, out).await,
        Command::Kill(command) => container::kill(command, client, out).await,
        Command::Events(command) => system::events(command, client, out).await,
        Command::Info(command) => system::info(command, client, out).await,
        Command::Version(command) => system::version(command, client, out).await,
        Command::Doctor(command) => system::doctor(command, client, out).await,
        Command::System(command) => system::run(command, client, out).await,
        Command::Completion(Completion { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "edgectl", &mut script);
            Ok(out.bytes(&script)?)
        }
    }
}
