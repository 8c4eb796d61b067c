//! Debian's docker-registry in the lab's client namespace, over plain HTTP.

use crate::{
    lab::{
        self,
        topology::{Folder, Place},
    },
    process,
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

/// Where the lab's nodes reach it; they know it as a registry without TLS.
pub(super) const ADDRESS: &str = "10.99.0.254:5000";

const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Starts the registry and waits until it answers. It ends with the lab, as everything in the client's namespaces does.
pub(super) fn start(folder: &Folder) -> Result<()> {
    let home = folder.path().join("registry");
    fs::create_dir_all(home.join("data")).with_context(|| format!("create {}", home.display()))?;
    let config = home.join("config.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {ADDRESS}\n",
        home.join("data").display()
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let log = File::create(home.join("log")).context("create the registry's log")?;
    let config = config.to_string_lossy();
    let mut serve = lab::command_in(folder, Place::Client, &["docker-registry", "serve", &config])?;
    // A group of its own: Ctrl-C is for the demo, which takes the registry down with the lab.
    serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = serve.spawn().with_context(|| format!("start `{}`", process::shown(&serve)))?;
    let deadline = Instant::now() + ANSWERS_WITHIN;
    while let Err(error) = answers(folder) {
        if let Some(status) = child.try_wait().context("look at the registry")? {
            bail!(
                "docker-registry ended with {status}: {}",
                fs::read_to_string(home.join("log")).unwrap_or_default().trim()
            );
        }
        if Instant::now() > deadline {
            return Err(error)
                .with_context(|| format!("docker-registry does not answer within {} s", ANSWERS_WITHIN.as_secs()));
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn answers(folder: &Folder) -> Result<()> {
    let url = format!("http://{ADDRESS}/v2/");
    let words = ["curl", "--silent", "--show-error", "--fail", "--max-time", "2", &url];
    process::output(&mut lab::command_in(folder, Place::Client, &words)?).map(drop)
}
