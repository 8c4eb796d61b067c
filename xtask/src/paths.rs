//! Where things are in the repository; every path is absolute, so that a verb works from any folder.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a folder of the workspace")
}

/// Cargo's output folder; `CARGO_TARGET_DIR` is honoured.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The folder of the release binaries `edged` and `edgectl`.
pub(crate) fn release() -> PathBuf {
    target().join("release")
}

/// The folder of the one lab of this checkout.
pub(crate) fn lab() -> PathBuf {
    target().join("lab")
}

/// The folder of the image archives.
pub(crate) fn images() -> PathBuf {
    target().join("images")
}

/// Finds a program as a shell would, in the folders of `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    // A user's PATH on Debian lacks the sbin folders, in which `ip` and `nft` may lie; sudo adds them.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file())
}
