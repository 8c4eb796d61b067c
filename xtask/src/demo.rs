//! `cargo xtask demo`: one node, a registry, an image of our own, three replicas, and a client that reaches them.
//!
//! Comes in: nothing but the checkout. Goes out: what a user would type, each command shown before it runs, and a table
//! of who answered; with `--once` an exit code and nothing else left, otherwise a node to play with until Ctrl-C.

mod registry;
mod spread;

use crate::{
    images::{self, Image},
    lab::{
        self,
        topology::{Folder, Place},
    },
    paths,
    process::{self, build_release, step},
    root, setup,
};
use anyhow::{Context, Result, bail};
use registry::ADDRESS;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use std::{
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const NODE: Place = Place::Node(1);
const PORT: u16 = 8080;
const REPLICAS: usize = 3;
/// With three replicas the chance that one is never chosen is 3 × (2/3)^60, one in ten thousand millions.
const REQUESTS: usize = 60;

pub(crate) fn run(once: bool) -> Result<ExitCode> {
    setup::ensure()?;
    step("building edged and edgectl (release), and the image's program");
    build_release()?;
    images::build_whoami()?;
    root::become_root("the lab")?;

    // From here on Ctrl-C must not end this process before the lab is down; it ends the command that runs, though.
    let told_to_end = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS {
        signal_hook::flag::register(*signal, Arc::clone(&told_to_end)).context("handle Ctrl-C")?;
    }
    let mut signals = Signals::new(TERM_SIGNALS).context("handle Ctrl-C")?;

    let folder = Folder::new(paths::lab());
    step("one node, a client and a switch, each in namespaces of its own: cargo xtask lab up --nodes 1");
    lab::up(&folder, &lab::Up::nodes(1))?;
    let shown = show(&folder);
    if let Err(error) = &shown {
        eprintln!("error: {error:#}");
        let tail = folder.node(1).log_tail().unwrap_or_default();
        eprintln!("the end of edged's log:\n{tail}");
    } else if !once {
        invite();
        if !told_to_end.load(Ordering::Relaxed) {
            signals.forever().next();
        }
    }
    step("taking everything down: cargo xtask lab down");
    lab::down(&folder, false)?;
    Ok(if shown.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(folder: &Folder) -> Result<()> {
    step(&format!("a registry beside the client, Debian's docker-registry, at {ADDRESS}"));
    registry::start(folder)?;

    step("the image whoami, made here and pushed there");
    let archive = images::make(Image::Whoami)?;
    images::push::push(folder, Place::Client, &archive, ADDRESS, "whoami")?;

    step(&format!("a service of {REPLICAS} replicas, its port 80 published as {PORT} on every node"));
    let (replicas, publish, image) = (REPLICAS.to_string(), format!("{PORT}:80"), format!("{ADDRESS}/whoami"));
    let create =
        ["edgectl", "service", "create", "--name", "whoami", "--replicas", &replicas, "--publish", &publish, &image];
    on(folder, NODE, &create)?;

    step("what runs");
    on(folder, NODE, &["edgectl", "service", "ls"])?;
    on(folder, NODE, &["edgectl", "service", "ps", "whoami"])?;

    let url = format!("http://{}:{PORT}/", NODE.address4());
    step(&format!("{REQUESTS} requests from the client"));
    let spread = spread::measure(folder, &url, REQUESTS)?;
    println!("{spread}");
    spread.check(REPLICAS, &Place::Client.address4())
}

/// Runs a command in the lab as a user would, and shows it.
fn on(folder: &Folder, place: Place, words: &[&str]) -> Result<()> {
    println!("{place}$ {}", words.join(" "));
    let mut command = lab::command_in(folder, place, words)?;
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("run `{}`", process::shown(&command)))?;
    if !status.success() {
        bail!("`{}` on {place} ended with {status}", words.join(" "));
    }
    Ok(())
}

fn invite() {
    let url = format!("http://{}:{PORT}/", NODE.address4());
    println!(
        "\nThe node stays up until Ctrl-C. In another terminal, from this folder:\n\
         \n  cargo xtask lab exec client -- curl {url}\n\
         \x20 cargo xtask lab exec n1 -- edgectl service scale whoami=5\n\
         \x20 cargo xtask lab exec n1 -- edgectl service logs --follow whoami\n\
         \x20 cargo xtask lab exec n1 -- edgectl ps\n\
         \x20 cargo xtask lab kill n1     # the containers go on answering\n\
         \x20 cargo xtask lab start n1    # and are found again\n\
         \x20 cargo xtask lab status\n"
    );
}
