//! Commands in a place of the lab, with the sockets and programs that a person there would expect.

use super::{
    Lab, namespace,
    topology::{Folder, Place},
};
use anyhow::Result;
use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

/// Replaces this process by the command.
pub(super) fn exec(folder: &Folder, place: Place, words: &[OsString]) -> Result<ExitCode> {
    let lab = Lab::is_up(folder)?;
    lab.has(place)?;
    let mut command = environment(folder, &lab, place, words);
    namespace::enter(folder, place)?;
    let error = command.exec();
    // What shells answer: 127 for a command that is not there, 126 for one that cannot run.
    eprintln!("error: run {}: {error}", words[0].to_string_lossy());
    Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
}

fn environment(folder: &Folder, lab: &Lab, place: Place, words: &[OsString]) -> Command {
    // The client has no daemon; it talks to the first node's.
    let number = if let Place::Node(number) = place { number } else { 1 };
    let host = format!("unix://{}", folder.node(number).socket().display());
    let mut path = lab.binaries.clone().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // A user's PATH on Debian lacks these, and on a node one looks at links and rules.
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("EDGE_HOST", &host).env("DOCKER_HOST", &host).env("PATH", path);
    command
}

/// A command that runs in a place with what `lab exec` would give it.
pub(crate) fn command_in(folder: &Folder, place: Place, words: &[&str]) -> Result<Command> {
    let lab = Lab::is_up(folder)?;
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let wanted = environment(folder, &lab, place, &words);
    let program = paths_in(&wanted, &words[0]);
    let mut command = namespace::inside(folder, place, program, &words[1..]);
    command.envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ok(command)
}

/// `nsenter` itself is found by this process' PATH, the program in it by the command's.
fn paths_in(command: &Command, program: &OsString) -> OsString {
    let path = command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap_or_default();
    let found = std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.map_or_else(|| program.clone(), PathBuf::into_os_string)
}
