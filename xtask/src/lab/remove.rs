//! Taking a lab down: everything is ended and removed, errors or not, and then looked for.

use super::{
    Lab,
    claim::Claim,
    daemon, leftovers, namespace,
    topology::{Folder, Place},
};
use crate::process::step;
use anyhow::{Context, Result, bail};
use std::{fs, thread, time::Duration};

/// Takes the lab down and says what was checked.
pub(crate) fn down(folder: &Folder, quiet: bool) -> Result<()> {
    let mut claim = Claim::take(folder.path(), Duration::ZERO)?;
    let was_up = folder.path().exists();
    remove(folder, &mut claim)?;
    if was_up || !quiet {
        step("lab down; checked: no process, namespace, mount, cgroup, link, pinned map or file of it is left");
    }
    Ok(())
}

/// Removes everything, going on after errors; what went wrong and what is left becomes the error.
pub(super) fn remove(folder: &Folder, claim: &mut Claim) -> Result<()> {
    let lab = Lab::load(folder)?.unwrap_or_default();
    let mut problems: Vec<String> = thread::scope(|scope| {
        let taken = (1..=lab.nodes).map(|number| {
            scope.spawn({
                let lab = &lab;
                move || take_node_down(folder, lab, number)
            })
        });
        let taken: Vec<_> = taken.collect();
        taken.into_iter().flat_map(|node| node.join().expect("taking a node down does not panic")).collect()
    });
    let mut note = |result: Result<()>| problems.extend(result.err().map(|error| format!("{error:#}")));
    // Everything in the client and the switch, shells and servers started by `lab exec`, and what outlived its daemon.
    note(leftovers::processes(folder, &lab.namespaces).and_then(|processes| leftovers::kill(&processes)));
    for problem in leftovers::remove_cgroups() {
        note(Err(anyhow::Error::msg(problem)));
    }
    note(namespace::remove(folder));
    note(remove_folder(folder));
    if !folder.path().exists() {
        note(namespace::remove_mount_point());
        note(claim.unmark());
    }
    match leftovers::all(folder, &lab.namespaces) {
        Ok(left) => problems.extend(left.into_iter().map(|what| format!("left: {what}"))),
        Err(error) => problems.push(format!("check what is left: {error:#}")),
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("the lab did not go without trouble:\n  {}", problems.join("\n  "))
}

/// Has a node's daemon end and remove what it made; whatever it forgot is a defect of the daemon and reported as such.
fn take_node_down(folder: &Folder, lab: &Lab, number: u8) -> Vec<String> {
    let place = Place::Node(number);
    let mut problems = Vec::new();
    let mut note = |result: Result<()>| problems.extend(result.err().map(|error| format!("{place}: {error:#}")));
    note(daemon::stop(folder, &[number]));
    if lab.empty || !namespace::exists(folder, place) || !folder.node(number).config().exists() {
        return problems;
    }
    if !lab.binaries.join("edged").exists() {
        problems.push(format!("{} is gone, so `edged reset` cannot run", lab.binaries.join("edged").display()));
        return problems;
    }
    note(daemon::reset(folder, number, &lab.binaries));
    match leftovers::on_node(folder, number) {
        Ok(left) => problems.extend(left.into_iter().map(|what| format!("edged reset left on {what}"))),
        Err(error) => problems.push(format!("look what `edged reset` left on {place}: {error:#}")),
    }
    let mark = daemon::key(number);
    let cgroups = leftovers::cgroups()
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str().to_string_lossy().contains(&mark)));
    problems.extend(cgroups.map(|path| format!("edged reset left on {place}: cgroup {}", path.display())));
    problems
}

fn remove_folder(folder: &Folder) -> Result<()> {
    let mounts = namespace::mounts_below(folder.path())?;
    if !mounts.is_empty() {
        bail!("{} is kept because of mounts in it: {}", folder.path().display(), mounts.join(", "));
    }
    match fs::remove_dir_all(folder.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.path().display()))
        }
        _ => Ok(()),
    }
}
