//! Compiles the eBPF programs of `orchestrator-ebpf` and leaves the object where the library embeds it.
//!
//! In: the sources beside this package, and a Rust that can target BPF: Debian's, which ships `core` for it, or
//! rustup's nightly with `rust-src`. Out: `$OUT_DIR/orchestrator-ebpf.o`. One little-endian object serves x86-64
//! and arm64 alike, since no program looks into kernel registers or structures.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const TARGET: &str = "bpfel-unknown-none";
const PROGRAMS: &str = "../orchestrator-ebpf";
const INPUTS: [&str; 5] = ["Cargo.toml", "Cargo.lock", "src", "common/Cargo.toml", "common/src"];
/// What Cargo hands down that the inner build must not inherit, and what of it is the user's own setting.
const INHERITED: [&str; 4] = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_"];

fn main() {
    if !env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.split(',').any(|f| f == "crt-static")) {
        // Every container has a shim, which is this program: linked to a fixed address, its tables need no relocation and
        // stay shared pages, 0.2 instead of 1.2 MiB of private memory per shim. Libraries, stack and heap move as ever.
        println!("cargo::rustc-link-arg-bin=edged=-no-pie");
    }
    for input in INPUTS {
        println!("cargo::rerun-if-changed={PROGRAMS}/{input}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let Some(mut cargo) = debian().or_else(rustup) else {
        fail("no Rust toolchain here can compile for BPF");
    };
    let own: Vec<_> = cargo.get_envs().map(|(name, _)| name.to_os_string()).collect();
    let path = search_path();
    if !env::split_paths(&path).any(|directory| directory.join("bpf-linker").is_file()) {
        fail("bpf-linker is not in PATH or in Cargo's bin directory");
    }
    let target_directory = out.join("ebpf-target");
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let inherited = INHERITED.iter().any(|prefix| text.starts_with(prefix));
        if inherited && !KEPT.iter().any(|prefix| text.starts_with(prefix)) && !own.contains(&name) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .env("PATH", path)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Clinker=bpf-linker")
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target_directory)
        .current_dir(PROGRAMS);
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("compiling {PROGRAMS} failed ({status}); the compiler's words are above")),
        Err(error) => fail(&format!("cannot run {:?}: {error}", cargo.get_program())),
    }
    let object = target_directory.join(TARGET).join("release/orchestrator-ebpf");
    if let Err(error) = fs::copy(&object, out.join("orchestrator-ebpf.o")) {
        fail(&format!("cannot copy {}: {error}", object.display()));
    }
}

/// Debian's compiler, where `core` for BPF is installed with it (package `libstd-rust-web-dev-bpf`).
fn debian() -> Option<Command> {
    let rustc = Path::new("/usr/bin/rustc");
    let library = output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let has_core = fs::read_dir(library.trim())
        .ok()?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    if !has_core {
        return None;
    }
    let mut cargo = Command::new("/usr/bin/cargo");
    // aya-ebpf's inline assembly for BPF is behind a feature gate of the compiler.
    cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
    Some(cargo)
}

/// rustup's nightly, where the sources of `core` are installed with it (component `rust-src`).
fn rustup() -> Option<Command> {
    let sysroot = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir() {
        return None;
    }
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
    Some(cargo)
}

/// `PATH` and, after it, where `cargo install` puts bpf-linker.
fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let directories = env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin")));
    env::join_paths(directories).expect("PATH was split at the separator it is joined with")
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn fail(what: &str) -> ! {
    println!("cargo::error=eBPF programs: {what}; run `cargo xtask setup`");
    std::process::exit(1)
}
