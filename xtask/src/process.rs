//! Running other programs: what is run is said when it fails, and shown first where a reader learns from it.
//!
//! Comes in: a `Command`. Goes out: nothing, its output, or an error that names the command line.

use anyhow::{Context, Result, bail};
use std::{
    ffi::OsStr,
    io::Write as _,
    process::{Command, Stdio},
};

/// Says what is done next, in one line.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// The command line as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command with this process' standard streams.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; its standard error becomes part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    fed(command, "")
}

/// Like [`output`], with `input` on the command's standard input.
pub(crate) fn fed(command: &mut Command, input: &str) -> Result<String> {
    let line = shown(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run `{line}`"))?;
    let mut stdin = child.stdin.take().expect("standard input was asked to be a pipe");
    // A command that ends before it has read its input says why on its standard error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("wait for `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A `Command` in one line: `command("ip", ["link"])`.
pub(crate) fn command<I>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Cargo, the one that started this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::paths::root());
    command
}

/// Builds the release binaries of the product; nothing happens where they are fresh.
pub(crate) fn build_release() -> Result<()> {
    run(cargo().args(["build", "--quiet", "--release", "--package", "orchestrator", "--bins"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_shown_as_one_would_type_it() {
        let command = command("echo", ["plain-word", "two words", "it's", ""]);
        assert_eq!(shown(&command), r"echo plain-word 'two words' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_is_named_with_what_it_said() {
        let error = output(&mut command("sh", ["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c 'echo no such thing >&2; exit 3'` ended with exit status: 3: no such thing"
        );
    }
}
