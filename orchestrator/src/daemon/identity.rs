//! Who this node is, across restarts: `node.json` in the state directory. Written once, when the node becomes a member.

use orchestrator_core::model::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

const FILE: &str = "node.json";

/// A node's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// The node.
    #[serde(with = "text")]
    pub node: NodeId,
    /// Its number among the voters; new for every join.
    pub raft_id: u64,
}

/// The identity could not be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct IdentityError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Identity {
    /// A new cluster of one node.
    #[must_use]
    pub fn first() -> Self {
        Self { cluster: ClusterId(random()), node: NodeId(random()), raft_id: 1 }
    }

    /// Reads the identity below `state_dir`; `None` if the node belongs to no cluster.
    ///
    /// # Errors
    /// The file is there and cannot be read or makes no sense; it is never guessed.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = state_dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError { action: "reading", path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| IdentityError {
            action: "understanding",
            path,
            source: error.into(),
        })
    }

    /// Keeps the identity below `state_dir`; after this returns, it is on the disk.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn save(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let path = state_dir.join(FILE);
        let temporary = state_dir.join("node.json.new");
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(state_dir)?;
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_data()?;
            std::fs::rename(&temporary, &path)?;
            File::open(state_dir)?.sync_all()
        };
        write().map_err(|source| IdentityError { action: "writing", path: path.clone(), source })
    }
}

/// 128 bits of the kernel's randomness (getrandom(2)); blocks only before the pool is seeded at boot.
pub(super) fn random() -> u128 {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("16 bytes come whole once the pool is seeded");
    u128::from_ne_bytes(bytes)
}

/// Ids as text in JSON.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub(super) fn serialize<T: Display, S: Serializer>(id: &T, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(id)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
        String::deserialize(input)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_outlives_the_process_and_damage_is_not_guessed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), None);
        let identity = Identity::first();
        identity.save(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), Some(identity));
        std::fs::write(dir.path().join(FILE), "{\"cluster\":\"zz\"}").unwrap();
        assert!(Identity::load(dir.path()).is_err());
    }
}
