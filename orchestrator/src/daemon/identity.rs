//! Who this node is, across restarts: `node.json` in the state directory. Written when the node becomes a
//! member, and when its role changes.

use orchestrator_core::model::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

const FILE: &str = "node.json";

/// A node's membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// The node: what its key's digest says.
    #[serde(with = "text")]
    pub node: NodeId,
    /// Its number among the voters, while it is a manager; new for every join and every promotion.
    pub raft_id: Option<u64>,
    /// Number of a store of this node that was damaged: under it the node never votes again.
    #[serde(default)]
    pub lost_raft_id: Option<u64>,
    /// Address that the user wants others to reach this node by.
    #[serde(default)]
    pub advertise: Option<std::net::IpAddr>,
    /// Where managers listened when it joined; empty for the node that made the cluster. Later assignments, which the ledger keeps, know better.
    #[serde(default)]
    pub managers: Vec<String>,
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

    /// Forgets the membership; after this returns, the disk has forgotten it, too.
    ///
    /// # Errors
    /// The disk is broken or read-only.
    pub fn remove(state_dir: &Path) -> Result<(), IdentityError> {
        let path = state_dir.join(FILE);
        let remove = || -> io::Result<()> {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(()) => File::open(state_dir)?.sync_all(),
            }
        };
        remove().map_err(|source| IdentityError { action: "removing", path: path.clone(), source })
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
        let managers = vec!["10.0.0.1:2377".to_owned()];
        let identity = Identity {
            cluster: ClusterId(1),
            node: NodeId(2),
            raft_id: Some(3),
            lost_raft_id: None,
            advertise: None,
            managers,
        };
        identity.save(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), Some(identity));
        Identity::remove(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join(FILE), "{\"cluster\":\"zz\"}").unwrap();
        assert!(Identity::load(dir.path()).is_err());
    }
}
