//! Images from Debian packages: apt says which packages are needed, their files are laid out, the recipe adds the rest.
//!
//! Comes in: a recipe, `images/debian-apps/NAME.json`, and the files beside it. Goes out: an archive. Maintainer scripts
//! are not run, so nothing is started and nothing but the image's folder is written; packages are kept in
//! `target/images/packages`.

use super::{Scratch, archive};
use crate::{
    paths,
    process::{command, output, run},
};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

/// What an image is made of.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Recipe {
    /// Packages by name; their dependencies come along.
    packages: Vec<String>,
    /// Dependencies that serve only installation and administration.
    #[serde(default)]
    leave_out: Vec<String>,
    #[serde(default)]
    folders: Vec<Folder>,
    /// Symbolic links: where, to what.
    #[serde(default)]
    links: BTreeMap<String, String>,
    config: archive::Config,
}

/// A folder that the service writes to.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Folder {
    path: String,
    /// User and group id.
    owner: u32,
    /// In octal, as for chmod.
    mode: String,
}

/// Since Debian 12 these are links into /usr on every system; packages of both kinds lay their files through them.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

pub(super) fn make(recipes: &Path, name: &str, archive: &Path) -> Result<()> {
    let path = recipes.join(format!("{name}.json"));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let recipe: Recipe = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let root = Scratch::new(name)?;
    lay_base(root.path())?;
    for package in download(&recipe)? {
        unpack(&package, root.path())?;
    }
    trim(root.path())?;
    busybox(root.path())?;
    lay_over(&recipes.join("base"), root.path())?;
    lay_over(&recipes.join(name), root.path())?;
    finish(&recipe, root.path())?;
    archive::write(archive, name, root.path(), &recipe.config)
}

/// Fetches the packages and what they depend on.
fn download(recipe: &Recipe) -> Result<Vec<PathBuf>> {
    if recipe.packages.is_empty() {
        return Ok(Vec::new());
    }
    let cache = paths::images().join("packages");
    fs::create_dir_all(cache.join("partial")).with_context(|| format!("create {}", cache.display()))?;
    // To apt this is an empty machine: it names everything that is needed and installs nothing.
    let status = cache.join("no-packages");
    fs::write(&status, "").with_context(|| format!("write {}", status.display()))?;
    let mut plan = command("apt-get", ["--yes", "--quiet", "--quiet", "--print-uris", "--no-install-recommends"]);
    plan.arg("--option").arg(format!("Dir::State::status={}", status.display()));
    plan.arg("--option").arg(format!("Dir::Cache::archives={}", empty(&cache)?.display()));
    let plan = output(plan.arg("install").args(&recipe.packages))?;
    let wanted =
        plan.lines().filter_map(planned).filter(|file| !recipe.leave_out.iter().any(|name| name == file.package));
    wanted.map(|file| fetch(&cache, &file)).collect()
}

/// An archive folder without packages: apt does not name those it has already.
fn empty(cache: &Path) -> Result<PathBuf> {
    let path = cache.join("none");
    fs::create_dir_all(path.join("partial")).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// One line of apt's plan: `'uri' file size hash`.
#[derive(Debug, PartialEq, Eq)]
struct Planned<'a> {
    package: &'a str,
    /// `name=version`, for `apt-get download`.
    exact: String,
    file: &'a str,
}

fn planned(line: &str) -> Option<Planned<'_>> {
    let file = line.split_whitespace().nth(1)?;
    let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
    let (package, version) = (parts.next()?, parts.next()?);
    // In file names the colon of an epoch is written %3a.
    Some(Planned { package, exact: format!("{package}={}", version.replace("%3a", ":")), file })
}

/// Fetches one package by apt, which checks its signature chain.
fn fetch(cache: &Path, wanted: &Planned<'_>) -> Result<PathBuf> {
    let path = cache.join(wanted.file);
    if !path.exists() {
        // apt's own unprivileged user cannot write here, and says so at length.
        let mut download =
            command("apt-get", ["--quiet", "--quiet", "--option", "APT::Sandbox::User=root", "download"]);
        output(download.arg(&wanted.exact).current_dir(cache))?;
    }
    Ok(path)
}

fn lay_base(root: &Path) -> Result<()> {
    for name in MERGED {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name)).with_context(|| format!("link /{name}"))?;
    }
    for (name, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("run", 0o755),
        ("sys", 0o755),
        ("var", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
    ] {
        let path = root.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    symlink("../run", root.join("var/run")).context("link /var/run")
}

fn unpack(package: &Path, root: &Path) -> Result<()> {
    let script = r#"dpkg-deb --fsys-tarfile "$1" | tar --extract --keep-directory-symlink --directory "$2""#;
    let mut sh = command("bash", ["-o", "pipefail", "-c", script, "unpack"]);
    output(sh.arg(package).arg(root)).map(drop).with_context(|| format!("unpack {}", package.display()))
}

/// What people read is not needed in a test image.
fn trim(root: &Path) -> Result<()> {
    for path in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug"] {
        match fs::remove_dir_all(root.join(path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {path}"))?
            }
            _ => {}
        }
    }
    Ok(())
}

/// A shell and its tools, for start scripts and for people who look into a container; the packages' own programs win.
fn busybox(root: &Path) -> Result<()> {
    let program = paths::program("busybox").context("find busybox")?;
    fs::copy(&program, root.join("usr/bin/busybox")).with_context(|| format!("copy {}", program.display()))?;
    for applet in output(&mut command(&program, ["--list"]))?.lines().filter(|name| *name != "busybox") {
        let taken = ["usr/bin", "usr/sbin"].iter().any(|dir| root.join(dir).join(applet).symlink_metadata().is_ok());
        if !taken {
            symlink("busybox", root.join("usr/bin").join(applet)).with_context(|| format!("link {applet}"))?;
        }
    }
    Ok(())
}

fn lay_over(folder: &Path, root: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    // Whoever owns the checkout, in the image the files are root's.
    let mut copy = command("cp", ["--recursive", "--preserve=mode", "--no-target-directory"]);
    run(copy.arg(folder).arg(root))
}

fn finish(recipe: &Recipe, root: &Path) -> Result<()> {
    for folder in &recipe.folders {
        let path = root.join(folder.path.trim_start_matches('/'));
        let mode = u32::from_str_radix(&folder.mode, 8).with_context(|| format!("the mode of {}", folder.path))?;
        fs::create_dir_all(&path).with_context(|| format!("create {}", folder.path))?;
        chown(&path, Some(folder.owner), Some(folder.owner)).with_context(|| format!("chown {}", folder.path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("chmod {}", folder.path))?;
    }
    for (link, to) in &recipe.links {
        symlink(to, root.join(link.trim_start_matches('/'))).with_context(|| format!("link {link}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apts_plan_names_package_and_exact_version() {
        let line = "'http://mirror/pool/z/zlib1g_1.2.13.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86724 SHA256:aa";
        let want = Planned {
            package: "zlib1g",
            exact: "zlib1g=1:1.2.13.dfsg-1".to_owned(),
            file: "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb",
        };
        assert_eq!(planned(line), Some(want));
        assert_eq!(planned("Reading package lists..."), None);
    }

    #[test]
    fn every_recipe_is_read() {
        let folder = paths::root().join("images/debian-apps");
        for name in ["busybox", "nginx", "redis", "postgres"] {
            let text = fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
            serde_json::from_str::<Recipe>(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}
