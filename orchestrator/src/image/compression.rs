//! Decompression of layers and archives, metered.
//!
//! In: a stream that is plain, gzip (also of several members) or zstd (also of several and skippable frames), told apart
//! by its first bytes because media types lie. Out: the plain bytes, hashed, counted and cut off at the limits that make
//! a decompression bomb harmless. Used by `unpack` and `load`.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// Plain bytes after which [`RATIO_MAX`] applies; a small layer of zeros harms nobody.
const RATIO_AFTER: u64 = 64 << 20;
/// Highest ratio of plain to compressed bytes. Real layers stay below 20; gzip of zeros reaches 1030, zstd far more.
const RATIO_MAX: u64 = 200;
/// Read-ahead from the compressed stream, in bytes.
const BUFFER: usize = 64 << 10;

/// Why a stream was cut off. Travels inside an [`io::Error`]; see [`CutOff::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CutOff {
    /// More plain bytes than allowed.
    #[error("more than {0} bytes unpacked")]
    Bytes(u64),
    /// A decompression bomb.
    #[error("unpacks to more than {RATIO_MAX} times its size")]
    Ratio,
    /// Compressed in a way that images do not use.
    #[error("compressed with {0}, which images do not use (gzip, zstd and plain tar are read)")]
    Unsupported(&'static str),
    /// The caller no longer wants the result.
    #[error("cancelled")]
    Cancelled,
}

impl CutOff {
    /// The reason inside `error`, if it is one of these.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Plain bytes of a possibly compressed stream.
pub(crate) struct Plain<'a> {
    decoder: Box<dyn Read + 'a>,
    compressed: Rc<Cell<u64>>,
    plain: u64,
    limit: u64,
    hasher: Sha256,
    cancel: &'a AtomicBool,
}

impl<'a> Plain<'a> {
    /// Reads `source`, giving at most `limit` plain bytes and stopping soon after `cancel` is set.
    pub(crate) fn new(source: impl Read + 'a, limit: u64, cancel: &'a AtomicBool) -> io::Result<Self> {
        let compressed = Rc::new(Cell::new(0));
        let counted = Counted { inner: source, count: Rc::clone(&compressed) };
        let mut source = BufReader::with_capacity(BUFFER, counted);
        let start = source.fill_buf()?;
        let decoder: Box<dyn Read + 'a> = match start {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(source)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(Zstd::new(source)),
            [b'B', b'Z', b'h', ..] => return Err(io::Error::other(CutOff::Unsupported("bzip2"))),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(io::Error::other(CutOff::Unsupported("xz"))),
            _ => Box::new(source),
        };
        Ok(Self { decoder, compressed, plain: 0, limit, hasher: Sha256::new(), cancel })
    }

    /// Reads what is left, so that the digest covers the whole stream, and returns it with the number of plain bytes.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((Digest::from_hasher(self.hasher), self.plain))
    }
}

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other(CutOff::Cancelled));
        }
        let count = self.decoder.read(buffer)?;
        self.plain += count as u64;
        if self.plain > self.limit {
            return Err(io::Error::other(CutOff::Bytes(self.limit)));
        }
        if self.plain > RATIO_AFTER && self.plain / RATIO_MAX > self.compressed.get() {
            return Err(io::Error::other(CutOff::Ratio));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// All frames of a zstd stream. ruzstd decodes one frame; `zstd:chunked` layers and `zstd -T` write several.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Starts the next frame, passing over skippable ones. False at the end of the stream.
    fn start_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped != u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.start_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn read(source: &[u8], limit: u64) -> Result<Vec<u8>, CutOff> {
        let live = AtomicBool::new(false);
        let mut out = Vec::new();
        let result = Plain::new(source, limit, &live).and_then(|mut plain| plain.read_to_end(&mut out));
        result.map(|_| out).map_err(|error| CutOff::of(&error).unwrap_or_else(|| panic!("{error}")))
    }

    #[test]
    fn plain_gzip_and_zstd_of_several_parts_give_the_same_bytes() {
        let (one, two) = (b"hello ".repeat(1000), b"world".to_vec());
        let both = [one.clone(), two.clone()].concat();
        let zstd = |content: &[u8]| compress_to_vec(content, CompressionLevel::Fastest);
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3].to_vec();
        for encoded in [
            both.clone(),
            gzip(&both),
            [gzip(&one), gzip(&two)].concat(),
            zstd(&both),
            [zstd(&one), skippable.clone(), zstd(&two), skippable.clone()].concat(),
            [skippable, zstd(&both)].concat(),
        ] {
            assert_eq!(read(&encoded, u64::MAX), Ok(both.clone()));
        }
        assert_eq!(read(b"", 10), Ok(Vec::new()));
    }

    #[test]
    fn bombs_limits_foreign_formats_and_cancellation_cut_the_stream_off() {
        let bomb = gzip(&vec![0; (RATIO_AFTER + (1 << 20)) as usize]);
        assert_eq!(read(&bomb, u64::MAX).map(drop), Err(CutOff::Ratio));
        assert_eq!(read(&gzip(&[0; 4096]), 4095), Err(CutOff::Bytes(4095)));
        assert_eq!(read(b"BZh91AY", 10), Err(CutOff::Unsupported("bzip2")));
        assert_eq!(read(b"\xfd7zXZ\0..", 10), Err(CutOff::Unsupported("xz")));
        let cancelled = AtomicBool::new(true);
        let error = Plain::new(&b"abc"[..], 10, &cancelled).unwrap().read(&mut [0; 3]).unwrap_err();
        assert_eq!(CutOff::of(&error), Some(CutOff::Cancelled));
    }
}
