//! `edged`, the node daemon. The same binary is the shim of each container and the tool that takes a node down whole.

use clap::{Parser, Subcommand};
use orchestrator::{config::Config, daemon, runtime, telemetry};
use std::{path::PathBuf, process::ExitCode};

/// The node daemon of edged, a container orchestrator for small clusters.
#[derive(Parser)]
#[command(name = "edged", version)]
struct Args {
    /// Configuration file; the default is /etc/edged/edged.toml, if it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Remove everything this node has made on the host: containers, mounts, links, cgroups, packet programs. The state
    /// directory stays unless --purge is given.
    Reset {
        /// Remove the state directory too: images, volumes, logs and the membership.
        #[arg(long)]
        purge: bool,
    },
}

fn main() -> ExitCode {
    // The shim must be decided before anything starts a thread or allocates much: libcontainer clones this process.
    if std::env::args_os().nth(1).is_some_and(|first| first == "shim") {
        runtime::shim::main();
    }
    let args = Args::parse();
    telemetry::init();
    keep_memory_small();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edged: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Time that blocking work has to end.
const LAST_WORK: std::time::Duration = std::time::Duration::from_secs(5);

/// glibc gives each thread an arena of its own and returns little of it: with threads for blocking work that come and go,
/// the daemon's memory tripled within a hundred containers (mallopt(3), `M_ARENA_MAX`).
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any other thread exists; the call only sets a limit.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    // Two workers are enough for a board; blocking work goes to its own threads.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = match args.command {
        None => runtime.block_on(daemon::run(config)),
        Some(Command::Reset { purge }) => runtime.block_on(daemon::reset(config, purge)),
    };
    // Something that blocks for ever, on a dead file system for example, does not keep the daemon from ending.
    runtime.shutdown_timeout(LAST_WORK);
    ended
}
