//! A member's key and certificates, and the one place where they meet the disk: `pki/` in the state directory (0700, files
//! 0600).
//!
//! `node.pem` holds the private key, the node's certificate and the CA's, in this order and in one file: one rename(2)
//! replaces all three, so there is no moment, and no power cut, after which a key lies beside another key's certificate.
//! `joining-key.pem` holds a key that was made for joining, until its certificate has come.

use super::{NodeKey, Refusal, Subject, subject::chain};
use base64::{Engine, prelude::BASE64_STANDARD};
use orchestrator_core::model::NodeId;
use rustls::pki_types::pem::{SectionKind, from_buf};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use webpki::KeyUsage;

const DIRECTORY: &str = "pki";
const MEMBER: &str = "node.pem";
const JOINING: &str = "joining-key.pem";
/// Key, certificate and CA have some 2.5 KiB together; more is none of ours.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What makes a node a member: its key, its certificate, and the CA that signed it. They fit: nothing else is constructed.
#[derive(Clone, Debug)]
pub struct Credentials {
    key: NodeKey,
    certificate: Arc<[u8]>,
    ca: Arc<[u8]>,
    subject: Subject,
}

/// Key, certificate and CA do not make credentials, or the disk failed.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The certificate is another node's.
    #[error("the certificate is of node {certificate}, and the key is of node {key}")]
    KeyMismatch {
        /// Whom the certificate names.
        certificate: NodeId,
        /// Whose key it is.
        key: NodeId,
    },
    /// The certificate is none, or this CA did not sign it.
    #[error("the certificate is not sound")]
    Certificate(#[source] Refusal),
    /// A file cannot be read or written.
    #[error("{action} {path}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file has not what it should have.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file's contents do not fit each other.
    #[error("the contents of {path} do not fit each other")]
    Unfit {
        /// Which.
        path: PathBuf,
        /// In what.
        #[source]
        source: Box<CredentialsError>,
    },
}

impl Credentials {
    /// Key, certificate and CA (DER) as they came from joining or renewal.
    ///
    /// # Errors
    /// The certificate is of another key, or not signed by this CA. Whether its time is over is not asked: a node that was
    /// off for long still knows who it is.
    pub fn new(key: NodeKey, certificate: Vec<u8>, ca: Vec<u8>) -> Result<Self, CredentialsError> {
        let subject = Subject::of(&certificate).map_err(CredentialsError::Certificate)?;
        if subject.node != key.node_id() {
            return Err(CredentialsError::KeyMismatch { certificate: subject.node, key: key.node_id() });
        }
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            chain(&certificate, &ca, usage, subject.not_before, &subject).map_err(CredentialsError::Certificate)?;
        }
        Ok(Self { key, certificate: certificate.into(), ca: ca.into(), subject })
    }

    /// What lies below `state_dir`; `None` if the node is no member.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or does not fit; it is never guessed.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let path = state_dir.join(DIRECTORY).join(MEMBER);
        let Some(parts) = read(&path)? else { return Ok(None) };
        let [(SectionKind::PrivateKey, key), (SectionKind::Certificate, certificate), (SectionKind::Certificate, ca)] =
            parts.as_slice()
        else {
            let what = "it has not one private key and two certificates, in this order".into();
            return Err(CredentialsError::Damaged { path, what });
        };
        let key = match NodeKey::from_pkcs8(key) {
            Ok(key) => key,
            Err(error) => return Err(CredentialsError::Damaged { path, what: error.to_string() }),
        };
        Self::new(key, certificate.clone(), ca.clone())
            .map(Some)
            .map_err(|source| CredentialsError::Unfit { path, source: Box::new(source) })
    }

    /// Keeps these and no others below `state_dir`; after this returns, they are on the disk. Whenever the power goes,
    /// either what was there before or these are there, whole.
    ///
    /// # Errors
    /// The disk is full or broken; what was there before is still there.
    pub fn save(&self, state_dir: &Path) -> Result<(), CredentialsError> {
        let dir = directory(state_dir)?;
        let text =
            [pem("PRIVATE KEY", self.key.pkcs8()), pem("CERTIFICATE", &self.certificate), pem("CERTIFICATE", &self.ca)];
        write(&dir.join(MEMBER), text.concat().as_bytes())?;
        forget(&dir, JOINING)
    }

    /// Forgets all keys and certificates below `state_dir`, for a node that leaves. The next join makes a new key.
    ///
    /// # Errors
    /// One of the files cannot be removed; the others are.
    pub fn remove(state_dir: &Path) -> Result<(), CredentialsError> {
        let dir = state_dir.join(DIRECTORY);
        let joining = forget(&dir, JOINING);
        forget(&dir, MEMBER).and(joining)
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The node's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    /// What the certificate says.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }
}

/// What kind of thing a part of a PEM file is, and its DER.
type Section = (SectionKind, Vec<u8>);

/// See [`NodeKey::load_or_create`].
pub(super) fn joining_key(state_dir: &Path) -> Result<NodeKey, CredentialsError> {
    let path = directory(state_dir)?.join(JOINING);
    let Some(parts) = read(&path)? else {
        let key = NodeKey::generate();
        write(&path, pem("PRIVATE KEY", key.pkcs8()).as_bytes())?;
        return Ok(key);
    };
    let key = match parts.as_slice() {
        [(SectionKind::PrivateKey, key)] => NodeKey::from_pkcs8(key).map_err(|error| error.to_string()),
        _ => Err("it has not one private key".into()),
    };
    key.map_err(|what| CredentialsError::Damaged { path, what })
}

/// Replaces the file as a whole, readable by its owner only; after this returns, it is on the disk.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
    replace(path, bytes).map_err(|source| CredentialsError::Disk { action: "writing", path: path.into(), source })
}

/// The sections of a PEM file (RFC 7468); `None` if there is no file.
fn read(path: &Path) -> Result<Option<Vec<Section>>, CredentialsError> {
    let failed = |source| CredentialsError::Disk { action: "reading", path: path.into(), source };
    let damaged = |what: String| CredentialsError::Damaged { path: path.into(), what };
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err(damaged(format!("it has {} bytes", metadata.len())));
        }
        _ => std::fs::read(path).map_err(failed)?,
    };
    let mut rest = text.as_slice();
    let mut parts = Vec::new();
    while let Some(part) = from_buf(&mut rest).map_err(|error| damaged(format!("it is no PEM: {error:?}")))? {
        parts.push(part);
    }
    Ok(Some(parts))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + &format!("-----END {label}-----\n")
}

fn directory(state_dir: &Path) -> Result<PathBuf, CredentialsError> {
    let dir = state_dir.join(DIRECTORY);
    let make = || -> io::Result<()> {
        std::fs::create_dir_all(state_dir)?;
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::set_permissions(&dir, Permissions::from_mode(0o700))
            }
            Err(error) => Err(error),
            Ok(()) => File::open(state_dir)?.sync_all(),
        }
    };
    make().map_err(|source| CredentialsError::Disk { action: "making", path: dir.clone(), source })?;
    Ok(dir)
}

/// Removes the file and what an interrupted write of it left.
fn forget(dir: &Path, name: &str) -> Result<(), CredentialsError> {
    let path = dir.join(name);
    let mut found = false;
    for path in [path.with_extension("new"), path] {
        match std::fs::remove_file(&path) {
            Ok(()) => found = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CredentialsError::Disk { action: "removing", path, source }),
        }
    }
    if !found {
        return Ok(());
    }
    let sync = File::open(dir).and_then(|dir| dir.sync_all());
    sync.map_err(|source| CredentialsError::Disk { action: "removing", path: dir.into(), source })
}
