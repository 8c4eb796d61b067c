//! `cargo xtask bench`: measures the figures the design has budgets for, on a lab of one node.
//!
//! Comes in: which figure. Goes out: one line per figure with its unit. The lab is made for the measurement and taken
//! down after it; figures are of the release binaries and of this machine.

use crate::{
    images::{self, Image},
    lab::{
        self,
        topology::{Folder, Place},
    },
    paths,
    process::{self, build_release},
    root, setup,
};
use anyhow::{Context, Result};
use std::{fs, os::linux::fs::MetadataExt as _, path::Path, process::ExitCode, time::Instant};

#[derive(clap::Subcommand, Debug, Clone, Copy)]
pub(crate) enum Verb {
    /// Bytes written to the device per committed change
    Store,
    /// Time from `service create` to all tasks running: 1, 10 and 50 of them
    Start,
    /// Memory of `edged`, idle and with 20 containers, and of each shim; size of the binaries
    Rss,
}

const NODE: Place = Place::Node(1);
/// Enough that what the file system writes for itself does not count.
const CHANGES: u64 = 200;
const CONTAINERS: u32 = 20;
/// Bytes per sector in /proc/diskstats, whatever the device's own are (Documentation/admin-guide/iostats.rst).
const SECTOR: u64 = 512;

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    setup::ensure()?;
    build_release()?;
    root::become_root("the lab")?;
    let folder = Folder::new(paths::lab());
    let archive = images::make(Image::Busybox)?;
    lab::up(&folder, &lab::Up::nodes(1))?;
    let measured = load(&folder, &archive).and_then(|()| match verb {
        Verb::Store => store(&folder),
        Verb::Start => start(&folder),
        Verb::Rss => rss(&folder),
    });
    let down = lab::down(&folder, true);
    measured.and(down)?;
    Ok(ExitCode::SUCCESS)
}

fn load(folder: &Folder, archive: &Path) -> Result<()> {
    edgectl(folder, &["image", "load", "--input", &archive.to_string_lossy()]).map(drop)
}

fn store(folder: &Folder) -> Result<()> {
    create(folder, "changed", 0)?;
    let device = device_of(folder.path())?;
    rustix::fs::sync();
    let before = sectors_written(device)?;
    for number in 0..CHANGES {
        edgectl(folder, &["service", "update", "--detach", "--label-add", &format!("number={number}"), "changed"])?;
    }
    rustix::fs::sync();
    let bytes = (sectors_written(device)? - before) * SECTOR;
    println!(
        "device bytes per committed change: {} ({CHANGES} changes, everything else on the device included)",
        bytes / CHANGES
    );
    Ok(())
}

fn start(folder: &Folder) -> Result<()> {
    for tasks in [1, 10, 50] {
        let began = Instant::now();
        create(folder, "started", tasks)?;
        println!("create to all running, {tasks} tasks: {:.2} s", began.elapsed().as_secs_f32());
        edgectl(folder, &["service", "rm", "started"])?;
        no_container(folder)?;
    }
    Ok(())
}

/// Waits until the removed service's tasks are gone, so that they do not compete with the next ones.
fn no_container(folder: &Folder) -> Result<()> {
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    while !shims(folder)?.is_empty() {
        anyhow::ensure!(Instant::now() < deadline, "containers of a removed service still run after a minute");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

fn rss(folder: &Folder) -> Result<()> {
    for name in ["edged", "edgectl"] {
        let size = fs::metadata(paths::release().join(name))?.len();
        println!("{name}: {:.1} MiB", mebibytes(size));
    }
    let edged = lab::pid(folder, 1).context("edged does not run")?;
    println!("edged, idle: {:.1} MiB resident", mebibytes(memory(edged, "Rss:")?));
    create(folder, "many", CONTAINERS)?;
    println!("edged, {CONTAINERS} containers: {:.1} MiB resident", mebibytes(memory(edged, "Rss:")?));
    let shims = shims(folder)?;
    let private = shims.iter().map(|pid| Ok(memory(*pid, "Private_Clean:")? + memory(*pid, "Private_Dirty:")?));
    let private = private.collect::<Result<Vec<u64>>>()?;
    let (sum, most) = (private.iter().sum::<u64>(), private.iter().max().copied().unwrap_or_default());
    let mean = sum / (private.len().max(1) as u64);
    println!(
        "shim: {:.2} MiB private on average, {:.2} at most, of {}",
        mebibytes(mean),
        mebibytes(most),
        private.len()
    );
    Ok(())
}

fn create(folder: &Folder, name: &str, replicas: u32) -> Result<()> {
    let replicas = replicas.to_string();
    edgectl(
        folder,
        &["service", "create", "--quiet", "--name", name, "--replicas", &replicas, "busybox", "sleep", "86400"],
    )
    .map(drop)
}

fn edgectl(folder: &Folder, words: &[&str]) -> Result<String> {
    let words: Vec<&str> = ["edgectl"].iter().chain(words).copied().collect();
    process::output(&mut lab::command_in(folder, NODE, &words)?)
}

/// The shims of the lab: processes of the daemon's program whose first argument says so.
fn shims(folder: &Folder) -> Result<Vec<u32>> {
    let is_shim = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"shim")
    };
    Ok(lab::pids(folder)?.into_iter().filter(is_shim).collect())
}

/// A field of /proc/PID/smaps_rollup, in bytes.
fn memory(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("{path} has no {field}"))?;
    let kibibytes: u64 =
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {field} of {path}"))?;
    Ok(kibibytes * 1024)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The block device that a folder lies on.
fn device_of(folder: &Path) -> Result<(u32, u32)> {
    let number = fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?.st_dev();
    Ok((rustix::fs::major(number), rustix::fs::minor(number)))
}

fn sectors_written((major, minor): (u32, u32)) -> Result<u64> {
    let text = fs::read_to_string("/proc/diskstats").context("read /proc/diskstats")?;
    let line = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut device =
        line.filter(|fields| fields.len() > 9 && fields[0] == major.to_string() && fields[1] == minor.to_string());
    let fields = device.next().with_context(|| format!("/proc/diskstats has no device {major}:{minor}"))?;
    fields[9].parse().context("read the sectors written in /proc/diskstats")
}
