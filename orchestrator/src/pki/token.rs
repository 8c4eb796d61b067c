//! Join tokens: what a node must know to be let in, and how it knows that it talks to the right cluster.
//!
//! Text form `EDGE-1-<digest>-<secret>`: the SHA-256 of the CA's certificate in DER as 50 characters of base 36, by which
//! the joining node recognises the cluster, and a 128-bit secret as 25 characters, by which the cluster recognises the
//! node's right to join and the role it may have.

use orchestrator_core::model::{Role, Secret16, Tokens};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq;

const PREFIX: &str = "EDGE";
const VERSION: &str = "1";
/// What Docker's tokens begin with.
const DOCKER_PREFIX: &str = "SWMTKN";
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// 36^50 is the first power of 36 above 2^256.
const DIGEST_CHARS: usize = 50;
/// 36^25 is the first power of 36 above 2^128.
const SECRET_CHARS: usize = 25;

/// SHA-256 of a CA's certificate in DER. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaDigest(pub [u8; 32]);

impl CaDigest {
    /// The digest of this certificate.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&base36::<DIGEST_CHARS>(&self.0))
    }
}

impl fmt::Debug for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaDigest({self})")
    }
}

/// A join token. `Display` shows the secret, since that is what a token is for; `Debug` does not.
#[derive(Clone, Copy)]
pub struct Token {
    /// The CA that the cluster must show.
    pub digest: CaDigest,
    /// What the cluster must be told.
    pub secret: [u8; 16],
}

/// A new secret for join tokens, from the kernel's randomness.
#[must_use]
pub fn new_secret() -> Secret16 {
    let mut secret = [0; 16];
    super::random(&mut secret);
    Secret16(secret)
}

/// The role that this secret lets a node have. Takes the same time whether and wherever it differs.
#[must_use]
pub fn granted(secret: &[u8; 16], tokens: &Tokens) -> Option<Role> {
    let manager = secret.ct_eq(&tokens.manager.0);
    let worker = secret.ct_eq(&tokens.worker.0);
    match (bool::from(manager), bool::from(worker)) {
        (true, _) => Some(Role::Manager),
        (false, true) => Some(Role::Worker),
        (false, false) => None,
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}", self.digest, base36::<SECRET_CHARS>(&self.secret))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({PREFIX}-{VERSION}-{}-…)", self.digest)
    }
}

/// The text is not a join token. The texts never repeat a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It is empty.
    #[error("the join token is empty")]
    Empty,
    /// It is one of Docker's.
    #[error(
        "this is a docker join token (SWMTKN): a token of this cluster begins with EDGE-1- and comes from `edgectl cluster join-token`"
    )]
    Docker,
    /// It begins otherwise.
    #[error("not a join token: it begins with {0:?}, not with \"EDGE-1-\"")]
    Prefix(String),
    /// A later or unknown form.
    #[error("the join token is of version {0:?}, and this program knows version \"1\"")]
    Version(String),
    /// Not four parts.
    #[error("the join token has {0} parts, not 4 (EDGE-1-<CA digest>-<secret>): was it cut off?")]
    Parts(usize),
    /// A part that is too short or too long.
    #[error("the {part} in the join token has {found} characters, not {expected}: was it cut off?")]
    Length {
        /// Which part.
        part: &'static str,
        /// Characters found.
        found: usize,
        /// Characters there should be.
        expected: usize,
    },
    /// A character that no token has.
    #[error("the {part} in the join token has {character:?} at place {place}: only 0-9 and a-z may stand there")]
    Character {
        /// Which part.
        part: &'static str,
        /// The first such character.
        character: char,
        /// Its place in the part, from 1.
        place: usize,
    },
    /// Beyond the largest value.
    #[error("the {part} in the join token is larger than any that is given out: was it mistyped?")]
    TooLarge {
        /// Which part.
        part: &'static str,
    },
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        // What is pasted or read from a file often ends in a newline.
        let text = text.trim();
        if text.is_empty() {
            return Err(BadToken::Empty);
        }
        let parts: Vec<&str> = text.split('-').collect();
        match parts[0] {
            PREFIX => {}
            DOCKER_PREFIX => return Err(BadToken::Docker),
            // Cut short: what was pasted here may be anything, a password included.
            other => return Err(BadToken::Prefix(other.chars().take(PREFIX.len()).collect())),
        }
        match parts.get(1) {
            None | Some(&VERSION) => {}
            Some(other) => return Err(BadToken::Version(other.chars().take(4).collect())),
        }
        let [_, _, digest, secret] = parts[..] else {
            return Err(BadToken::Parts(parts.len()));
        };
        Ok(Self {
            digest: CaDigest(bytes("CA digest", digest, DIGEST_CHARS)?),
            secret: bytes("secret", secret, SECRET_CHARS)?,
        })
    }
}

/// The big-endian number `bytes` in base 36, padded with zeros to `CHARS`, which must suffice.
fn base36<const CHARS: usize>(bytes: &[u8]) -> String {
    let mut number = bytes.to_vec();
    let mut text = [b'0'; CHARS];
    for place in text.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *place = DIGITS[rest as usize];
    }
    text.iter().map(|digit| char::from(*digit)).collect()
}

/// The inverse of [`base36`].
fn bytes<const LEN: usize>(part: &'static str, text: &str, expected: usize) -> Result<[u8; LEN], BadToken> {
    let wrong = |c: &char| !c.is_ascii_digit() && !c.is_ascii_lowercase();
    if let Some((at, character)) = text.chars().enumerate().find(|(_, c)| wrong(c)) {
        return Err(BadToken::Character { part, character, place: at + 1 });
    }
    if text.len() != expected {
        return Err(BadToken::Length { part, found: text.len(), expected });
    }
    let mut number = [0u8; LEN];
    for digit in text.bytes() {
        let mut carry = u32::from(if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 });
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = value as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return Err(BadToken::TooLarge { part });
        }
    }
    Ok(number)
}
