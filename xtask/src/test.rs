//! `cargo xtask test`: every check and every test; the last line counts them.
//!
//! Comes in: the repository, or a filter on test names. Goes out: what each tool prints, then
//! `N passed, N failed, N skipped`, and an exit code. Called by people and by `.ci/run`.
//!
//! Three profiles are compiled, each because another one could not stand in for it: clippy and rustdoc share the
//! metadata of a check build; tests take the dev profile, whose assertions and overflow checks they are for; the lab
//! runs the release binaries that users get, and tests could not share those since they need unwinding.
//!
//! Root is only for the test programs: without it nextest starts them under sudo, and nothing in `target` is root's.

mod junit;

use crate::{
    paths,
    process::{self, build_release, cargo, shown, step},
    root, setup, tidy,
};
use anyhow::{Context, Result, bail};
use junit::Count;
use std::{
    fs,
    process::{Command, ExitCode},
};

pub(crate) fn run(filter: &[String]) -> Result<ExitCode> {
    setup::ensure()?;
    let mut count = Count::default();
    if filter.is_empty() {
        static_checks(&mut count);
    }
    check(&mut count, "the release binaries for the lab", build_release);
    count.add(tests(filter)?);
    if filter.is_empty() {
        let target = paths::target().join("whoami");
        count.add(libtest(cargo().args(["test", "--quiet", "--manifest-path", WHOAMI, "--target-dir"]).arg(target))?);
        // Examples in documentation; nextest does not run them.
        count.add(libtest(cargo().args(["test", "--quiet", "--workspace", "--doc"]))?);
        check(&mut count, "documentation", documentation);
    }
    for (test, why) in &count.skips {
        eprintln!("skipped: {test}: {why}");
    }
    for name in &count.failures {
        eprintln!("failed: {name}");
    }
    println!("{} passed, {} failed, {} skipped", count.passed, count.failures.len(), count.skips.len());
    Ok(if count.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Packages that are built in ways of their own and so are workspaces of their own.
const OTHER_WORKSPACES: [&str; 2] = ["orchestrator-ebpf/Cargo.toml", WHOAMI];
const WHOAMI: &str = "images/whoami/Cargo.toml";

/// What needs no running program, the quickest first.
fn static_checks(count: &mut Count) {
    check(count, "format", || process::run(cargo().args(["fmt", "--all", "--check"])));
    for manifest in OTHER_WORKSPACES {
        check(count, &format!("format of {manifest}"), || {
            process::run(cargo().args(["fmt", "--manifest-path", manifest, "--check"]))
        });
    }
    check(count, "tidy", || match tidy::run()? {
        ExitCode::SUCCESS => Ok(()),
        _ => bail!("the findings above"),
    });
    check(count, "the core depends on no runtime", core_is_pure);
    check(count, "clippy", || {
        process::run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
        let mut whoami = cargo();
        whoami.args(["clippy", "--quiet", "--all-targets", "--manifest-path", WHOAMI]);
        process::run(whoami.arg("--target-dir").arg(paths::target().join("whoami")).args(["--", "--deny", "warnings"]))
    });
}

/// One check counts as one test.
fn check(count: &mut Count, name: &str, what: impl FnOnce() -> Result<()>) {
    step(name);
    match what() {
        Ok(()) => count.passed += 1,
        Err(error) => {
            eprintln!("error: {error:#}");
            count.failures.push(name.to_owned());
        }
    }
}

/// Cargo finds no way from the core to an async runtime.
fn core_is_pure() -> Result<()> {
    let args = ["tree", "--quiet", "--package", "orchestrator-core", "--edges", "normal", "--invert", "tokio"];
    let mut tree = cargo();
    match tree.args(args).output().context("run cargo tree")? {
        // Cargo refuses to show the inverse of what is not in the tree.
        answer if !answer.status.success() && String::from_utf8_lossy(&answer.stderr).contains("tokio") => Ok(()),
        answer if answer.status.success() && answer.stdout.is_empty() => Ok(()),
        answer if answer.status.success() => {
            bail!("orchestrator-core depends on tokio:\n{}", String::from_utf8_lossy(&answer.stdout))
        }
        answer => bail!("`{}` ended with {}: {}", shown(&tree), answer.status, String::from_utf8_lossy(&answer.stderr)),
    }
}

fn tests(filter: &[String]) -> Result<Count> {
    let report = paths::target().join("nextest/default/junit.xml");
    // The report of an earlier run must not be taken for this one's.
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("remove {}", report.display()))?;
    }
    let mut nextest = cargo();
    nextest.args(["nextest", "run", "--workspace", "--no-tests=pass"]).args(filter);
    nextest.env("EDGED_XTASK", paths::target().join("debug/xtask"));
    as_root(&mut nextest);
    step(&shown(&nextest));
    let status = nextest.status().context("run cargo nextest")?;
    let text = match fs::read_to_string(&report) {
        Ok(text) => text,
        Err(_) if status.success() => return Ok(Count::default()),
        Err(_) => {
            return Ok(Count { failures: vec!["the tests do not build".to_owned()], ..Count::default() });
        }
    };
    let mut count = junit::count(&text)?;
    if !status.success() && count.failures.is_empty() {
        count.failures.push(format!("cargo nextest ended with {status}"));
    }
    Ok(count)
}

/// Has the test programs started under sudo where this is not root.
fn as_root(nextest: &mut Command) {
    if !root::is_root() {
        let triple = format!("{}_UNKNOWN_LINUX_GNU", std::env::consts::ARCH.to_uppercase());
        eprintln!("the lab and the drivers' tests need root: their programs are started under sudo");
        nextest.env(format!("CARGO_TARGET_{triple}_RUNNER"), "sudo --preserve-env");
    }
}

/// Tests that cargo runs itself.
fn libtest(test: &mut Command) -> Result<Count> {
    step(&shown(test));
    let output = test.output().with_context(|| format!("run `{}`", shown(test)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut count = junit::count_libtest(&text, "a test of another workspace or an example in the documentation");
    if !output.status.success() {
        eprint!("{text}{}", String::from_utf8_lossy(&output.stderr));
        if count.failures.is_empty() {
            count.failures.push(format!("`{}` does not build", shown(test)));
        }
    }
    Ok(count)
}

fn documentation() -> Result<()> {
    let mut doc = cargo();
    doc.args(["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings");
    process::run(&mut doc)
}
