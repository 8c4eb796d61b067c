//! Takes the node down whole: everything that it has made on the host goes.

use crate::{agent::Drivers, config::Config};
use anyhow::Context;

/// Stops all containers and removes every mount, link, namespace, cgroup and packet program of this node; with `purge` its
/// state directory too. Safe to repeat, and after a crash at any point.
///
/// # Errors
/// All that could not be removed; the rest is gone.
pub async fn reset(config: Config, purge: bool) -> anyhow::Result<()> {
    let _only_one = super::lock(&config.run_dir).await?;
    let mut failed = Vec::new();
    match Drivers::open(&config).await {
        Ok(drivers) => failed.extend(drivers.remove_all().await),
        Err(error) => failed.push(error.context("opening the drivers")),
    }
    let mut dirs = vec![&config.run_dir];
    if purge {
        dirs.push(&config.state_dir);
    }
    // While something is left, the directories are what tells the next try of it.
    for dir in dirs.into_iter().filter(|_| failed.is_empty()).collect::<Vec<_>>() {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                failed.push(anyhow::Error::from(error).context(format!("removing {}", dir.display())));
            }
            _ => {}
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let list = failed.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ");
    Err(anyhow::anyhow!(list)).context("the node is not down whole; run it again after mending this")
}
