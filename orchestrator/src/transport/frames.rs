//! Frames on a stream: a length (`u32`, little endian) and that many bytes. Typed messages have a version byte before their
//! postcard form.
//!
//! A frame that is too long is refused by its length before any of it is read; memory grows with the bytes that come, not with
//! the length that was promised.

use super::limits::FRAME_TIME;
use serde::{Serialize, de::DeserializeOwned};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// What travels in a frame of its own.
pub trait Message: Serialize + DeserializeOwned {
    /// What people call it in error messages.
    const NAME: &'static str;
    /// Largest encoded size in bytes.
    const LIMIT: usize;
    /// Changes when an older reader would misunderstand the encoding. postcard forgives appended enum variants only.
    const VERSION: u8 = 1;
}

/// A frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended where a frame should begin.
    #[error("the stream ended before the {what}")]
    Ended {
        /// What was expected.
        what: &'static str,
    },
    /// The stream ended within a frame.
    #[error("the {what} was cut off after {got} of {size} bytes")]
    Truncated {
        /// What was expected.
        what: &'static str,
        /// Bytes that came.
        got: usize,
        /// Bytes that were promised.
        size: usize,
    },
    /// The frame is larger than its kind may be.
    #[error("the {what} has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// What was sent.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// The frame began and did not become complete.
    #[error("the {what} was not complete within {} s", after.as_secs())]
    Slow {
        /// What was expected.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The peer speaks another version.
    #[error("the {what} has version {got}; this node knows version {known}")]
    Version {
        /// What was sent.
        what: &'static str,
        /// The peer's version.
        got: u8,
        /// This node's.
        known: u8,
    },
    /// The bytes are not what they should be.
    #[error("the {what} cannot be decoded")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// Why.
        #[source]
        source: postcard::Error,
    },
    /// Bytes follow the message within its frame.
    #[error("the {what} is followed by {rest} unexpected bytes")]
    Trailing {
        /// What was expected.
        what: &'static str,
        /// How many.
        rest: usize,
    },
    /// The stream failed.
    #[error("the stream failed at the {what}")]
    Io {
        /// What was to be sent or read.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Reads the next message.
///
/// # Errors
/// Everything in [`FrameError`].
pub async fn read<T: Message>(from: &mut (impl AsyncRead + Unpin)) -> Result<T, FrameError> {
    decode(&read_bytes(from, T::NAME, T::LIMIT).await?)
}

/// Reads the next message, or `None` where the stream ends between two.
///
/// # Errors
/// Everything in [`FrameError`] but [`FrameError::Ended`].
pub async fn read_next<T: Message>(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, FrameError> {
    match read(from).await {
        Ok(message) => Ok(Some(message)),
        Err(FrameError::Ended { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes `message` and flushes.
///
/// # Errors
/// [`FrameError::TooLarge`] before anything is written, [`FrameError::Io`].
pub async fn write<T: Message>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), FrameError> {
    write_bytes(to, T::NAME, T::LIMIT, &encode(message)?).await
}

/// The bytes of `message` within a frame.
///
/// # Errors
/// [`FrameError::Malformed`] if the type has no postcard form.
pub fn encode<T: Message>(message: &T) -> Result<Vec<u8>, FrameError> {
    postcard::to_extend(message, vec![T::VERSION]).map_err(|source| FrameError::Malformed { what: T::NAME, source })
}

/// The message that [`encode`] made `bytes` of.
///
/// # Errors
/// [`FrameError::Version`], [`FrameError::Malformed`], [`FrameError::Trailing`].
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, FrameError> {
    let what = T::NAME;
    let [version, body @ ..] = bytes else {
        return Err(FrameError::Malformed { what, source: postcard::Error::DeserializeUnexpectedEnd });
    };
    if *version != T::VERSION {
        return Err(FrameError::Version { what, got: *version, known: T::VERSION });
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Trailing { what, rest: rest.len() }),
        Err(source) => Err(FrameError::Malformed { what, source }),
    }
}

/// Reads the bytes of a frame. Waits for its first byte for ever, for the others only [`FRAME_TIME`].
///
/// # Errors
/// [`FrameError::Ended`], [`FrameError::Truncated`], [`FrameError::TooLarge`], [`FrameError::Slow`], [`FrameError::Io`].
pub async fn read_bytes(
    from: &mut (impl AsyncRead + Unpin),
    what: &'static str,
    limit: usize,
) -> Result<Vec<u8>, FrameError> {
    read_within(from, what, limit, FRAME_TIME).await
}

async fn read_within(
    from: &mut (impl AsyncRead + Unpin),
    what: &'static str,
    limit: usize,
    after: Duration,
) -> Result<Vec<u8>, FrameError> {
    let first = from.read_u8().await.map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Ended { what },
        _ => FrameError::Io { what, source },
    })?;
    timeout(after, read_rest(from, first, what, limit)).await.unwrap_or(Err(FrameError::Slow { what, after }))
}

async fn read_rest(
    from: &mut (impl AsyncRead + Unpin),
    first: u8,
    what: &'static str,
    limit: usize,
) -> Result<Vec<u8>, FrameError> {
    let mut length = [first, 0, 0, 0];
    from.read_exact(&mut length[1..]).await.map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Ended { what },
        _ => FrameError::Io { what, source },
    })?;
    let size = usize::try_from(u32::from_le_bytes(length)).expect("addresses have at least 32 bits");
    if size > limit {
        return Err(FrameError::TooLarge { what, size, limit });
    }
    let mut bytes = Vec::new();
    let got = from.take(size as u64).read_to_end(&mut bytes).await.map_err(|source| FrameError::Io { what, source })?;
    if got < size {
        return Err(FrameError::Truncated { what, got, size });
    }
    Ok(bytes)
}

/// Writes a frame of `bytes` and flushes.
///
/// # Errors
/// [`FrameError::TooLarge`] before anything is written, [`FrameError::Io`].
pub async fn write_bytes(
    to: &mut (impl AsyncWrite + Unpin),
    what: &'static str,
    limit: usize,
    bytes: &[u8],
) -> Result<(), FrameError> {
    let size = bytes.len();
    let length = u32::try_from(size).ok().filter(|_| size <= limit);
    let length = length.ok_or(FrameError::TooLarge { what, size, limit })?;
    let write = async {
        to.write_all(&length.to_le_bytes()).await?;
        to.write_all(bytes).await?;
        to.flush().await
    };
    write.await.map_err(|source| FrameError::Io { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Greeting {
        text: String,
    }

    impl Message for Greeting {
        const NAME: &'static str = "greeting";
        const LIMIT: usize = 64;
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct NewGreeting;

    impl Message for NewGreeting {
        const NAME: &'static str = "greeting";
        const LIMIT: usize = 64;
        const VERSION: u8 = 2;
    }

    fn greeting() -> Greeting {
        Greeting { text: "hello".to_owned() }
    }

    async fn refused(bytes: &[u8]) -> String {
        read::<Greeting>(&mut &*bytes).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn messages_arrive_in_order_until_the_end() {
        let mut wire = Vec::new();
        write(&mut wire, &greeting()).await.unwrap();
        write(&mut wire, &Greeting { text: String::new() }).await.unwrap();
        let mut from = &*wire;
        assert_eq!(read_next(&mut from).await.unwrap(), Some(greeting()));
        assert_eq!(read_next(&mut from).await.unwrap(), Some(Greeting { text: String::new() }));
        assert_eq!(read_next::<Greeting>(&mut from).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_form_on_the_wire_stays() {
        let mut wire = Vec::new();
        write(&mut wire, &greeting()).await.unwrap();
        assert_eq!(wire, b"\x07\0\0\0\x01\x05hello");
    }

    #[tokio::test]
    async fn bad_frames_are_refused_by_name_and_number() {
        assert_eq!(refused(b"").await, "the stream ended before the greeting");
        assert_eq!(refused(b"\x07\0").await, "the stream ended before the greeting");
        assert_eq!(refused(b"\x07\0\0\0\x01\x05he").await, "the greeting was cut off after 4 of 7 bytes");
        assert_eq!(refused(b"\xff\xff\xff\xff").await, "the greeting has 4294967295 bytes; the limit is 64");
        assert_eq!(refused(b"\0\0\0\0").await, "the greeting cannot be decoded");
        assert_eq!(refused(b"\x02\0\0\0\x01\x05").await, "the greeting cannot be decoded");
        assert_eq!(refused(b"\x03\0\0\0\x01\0x").await, "the greeting is followed by 1 unexpected bytes");
        let mut wire = Vec::new();
        write(&mut wire, &NewGreeting).await.unwrap();
        assert_eq!(refused(&wire).await, "the greeting has version 2; this node knows version 1");
    }

    #[tokio::test]
    async fn an_oversized_message_is_not_sent() {
        let mut wire = Vec::new();
        let error = write(&mut wire, &Greeting { text: "x".repeat(63) }).await.unwrap_err();
        assert_eq!(error.to_string(), "the greeting has 65 bytes; the limit is 64");
        assert!(wire.is_empty());
    }

    #[tokio::test]
    async fn a_frame_that_stops_midway_is_given_up() {
        let (mut sender, mut receiver) = tokio::io::duplex(64);
        sender.write_all(b"\x07\0\0\0\x01").await.unwrap();
        let error = read_within(&mut receiver, "greeting", 64, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "the greeting was not complete within 0 s");
    }

    #[tokio::test]
    async fn the_first_byte_of_a_frame_is_waited_for() {
        let (_sender, mut receiver) = tokio::io::duplex(64);
        let read = read_within(&mut receiver, "greeting", 64, Duration::from_millis(1));
        assert!(timeout(Duration::from_millis(20), read).await.is_err());
    }
}
