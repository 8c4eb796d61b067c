//! A node's key. Made once per membership; the node's id follows from it.

use super::credentials;
use orchestrator_core::model::NodeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};
use sha2::{Digest, Sha256};
use std::{fmt, path::Path, sync::Arc};

/// A P-256 private key. `Debug` shows whose it is, not what it is.
#[derive(Clone)]
pub struct NodeKey {
    pkcs8: Arc<[u8]>,
    signing: Arc<dyn SigningKey>,
    node: NodeId,
}

/// The bytes are not a key that a node can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 private key in PKCS#8 form")]
pub struct KeyError;

impl NodeKey {
    /// A new key, from the kernel's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the kernel gives randomness");
        Self::from_pkcs8(pair.serialized_der()).expect("a key that was just made is whole")
    }

    /// The key in these bytes (PKCS#8 version 1, RFC 5208).
    ///
    /// # Errors
    /// They hold none, or one of another kind.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pair = pair(der)?;
        let signing = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))).map_err(|_| KeyError)?;
        Ok(Self { pkcs8: der.into(), signing, node: node_id(&pair.subject_public_key_info()) })
    }

    /// The key that was made for joining below `state_dir` and has no certificate yet, or a new one, kept there before it
    /// is used: whoever asks again after a lost answer or a power cut asks as the same node.
    ///
    /// # Errors
    /// The disk is full or broken, or what lies there is no key.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, credentials::CredentialsError> {
        credentials::joining_key(state_dir)
    }

    /// The node that has this key.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// A request for a certificate (PKCS#10, RFC 2986, in DER), signed by this key. It asks for no name and no right: the
    /// authority knows both.
    #[must_use]
    pub fn csr(&self) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let pair = pair(&self.pkcs8).expect("the key was read before");
        params.serialize_request(&pair).expect("a P-256 key signs").der().to_vec()
    }

    /// 256 bits that follow from the key and tell nothing of it, another for each purpose.
    pub(crate) fn secret(&self, purpose: &str) -> [u8; 32] {
        Sha256::new().chain_update(purpose).chain_update([0]).chain_update(&self.pkcs8).finalize().into()
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(super) fn signing(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.signing)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.node)
    }
}

/// The node whose public key this is (DER SubjectPublicKeyInfo).
pub(super) fn node_id(spki: &[u8]) -> NodeId {
    let digest = Sha256::digest(spki);
    NodeId(u128::from_be_bytes(*digest.first_chunk().expect("SHA-256 has 32 bytes")))
}

/// Reads a P-256 key pair.
pub(super) fn pair(pkcs8: &[u8]) -> Result<KeyPair, KeyError> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| KeyError)
}
