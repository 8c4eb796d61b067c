//! `cargo xtask images`: archives of the demo's and the tests' container images.
//!
//! Comes in: names. Goes out: `target/images/NAME.tar`, for `edgectl image load` and `docker load`; what is there already
//! and newer than its recipe is kept. Runs as root, since files in images have owners. Called by people, `demo` and tests.

pub(crate) mod archive;
mod debian;
pub(crate) mod push;

use crate::{
    paths,
    process::{self, cargo, step},
    root, setup,
};
use anyhow::{Context, Result};
use archive::Config;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    Whoami,
    Busybox,
    Nginx,
    Redis,
    Postgres,
}

const ALL: [Image; 5] = [Image::Whoami, Image::Busybox, Image::Nginx, Image::Redis, Image::Postgres];

impl Image {
    fn name(self) -> &'static str {
        match self {
            Self::Whoami => "whoami",
            Self::Busybox => "busybox",
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }
}

pub(crate) fn run(names: &[Image]) -> Result<ExitCode> {
    setup::ensure()?;
    let images = if names.is_empty() { &ALL } else { names };
    // Compiled before this is root, so that no build output is root's.
    if images.contains(&Image::Whoami) {
        build_whoami()?;
    }
    root::become_root("making images")?;
    for image in images {
        let path = make(*image)?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes one image's archive, unless a fresh one is there.
pub(crate) fn make(image: Image) -> Result<PathBuf> {
    let archive = paths::images().join(format!("{}.tar", image.name()));
    fs::create_dir_all(paths::images()).with_context(|| format!("create {}", paths::images().display()))?;
    match image {
        Image::Whoami => whoami(&archive)?,
        _ => {
            let recipes = paths::root().join("images/debian-apps");
            if !newer(&archive, newest(&recipes)?) {
                step(&format!("image {} from Debian packages", image.name()));
                debian::make(&recipes, image.name(), &archive)?;
            }
        }
    }
    Ok(archive)
}

/// Compiles the program of the image `whoami`: static, so that it is all the image needs.
pub(crate) fn build_whoami() -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--locked", "--manifest-path", "images/whoami/Cargo.toml"]);
    build.arg("--target-dir").arg(paths::target().join("whoami"));
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    process::run(&mut build)
}

fn whoami(archive: &Path) -> Result<()> {
    build_whoami()?;
    let program = paths::target().join("whoami/release/whoami");
    let changed = fs::metadata(&program)
        .and_then(|data| data.modified())
        .with_context(|| format!("look at {}", program.display()))?;
    if newer(archive, changed) {
        return Ok(());
    }
    let root = Scratch::new("whoami")?;
    fs::copy(&program, root.path().join("whoami")).with_context(|| format!("copy {}", program.display()))?;
    let config: Config = serde_json::from_value(serde_json::json!({
        "Entrypoint": ["/whoami"],
        "ExposedPorts": { "80/tcp": {} },
    }))?;
    archive::write(archive, "whoami", root.path(), &config)
}

fn newer(file: &Path, than: SystemTime) -> bool {
    fs::metadata(file).and_then(|data| data.modified()).is_ok_and(|made| made > than)
}

/// When the youngest file below a folder changed.
fn newest(folder: &Path) -> Result<SystemTime> {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let time = if entry.file_type()?.is_dir() { newest(&entry.path())? } else { entry.metadata()?.modified()? };
        latest = latest.max(time);
    }
    Ok(latest)
}

/// A folder below `target/images` in which an image's files are put together.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = paths::images().join(format!("{name}.root"));
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("empty {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}
