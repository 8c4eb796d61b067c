//! A strict, streaming reader of tar archives.
//!
//! In: the plain bytes of a layer or an archive. Out: one entry after the other, with GNU and PAX extensions applied, and
//! the content of the current entry through [`Read`]. Used by `unpack` and `load`.
//!
//! The fields of a header are decoded by the `tar` crate; the walk is our own because hostile archives are its normal
//! case: extension records are bounded (they would otherwise be read into memory whole), PAX values may hold newlines (as
//! `security.capability` does), and everything on which tar readers are known to disagree is refused instead of
//! interpreted. Format: POSIX.1-2008 `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
//! "Basic Tar Format".

use std::io::{self, Read};

use tar::{EntryType, Header};

/// Longest extension record, in bytes: room for every name, link and extended attribute that is accepted.
const EXTENSION_MAX: u64 = 1 << 20;
/// Longest path or link target in bytes, PATH_MAX of Linux.
pub(crate) const PATH_MAX: usize = 4096;
const BLOCK: u64 = 512;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// Not a tar archive, or one whose meaning is ambiguous.
    #[error("malformed tar archive: {0}")]
    Malformed(String),
    /// The stream below failed or was cut off.
    #[error("cannot read the tar archive")]
    Io(#[from] io::Error),
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Directory,
    Fifo,
}

/// One entry's metadata. Names are bytes as they stand in the archive, without NUL.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits including setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The archive. [`Read`] gives the content of the entry that [`TarReader::next_entry`] returned last.
pub(crate) struct TarReader<R> {
    source: R,
    /// Content bytes of the current entry not read yet.
    remaining: u64,
    /// Zero bytes between that content and the next header.
    padding: u64,
}

/// Extensions that describe the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    seen: bool,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, remaining: 0, padding: 0 }
    }

    /// The stream below, standing after the last header read.
    pub(crate) fn into_inner(self) -> R {
        self.source
    }

    /// The next entry, or `None` at the end. Content of the previous entry that was not read is passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        let mut extension_bytes = 0u64;
        loop {
            let Some(header) = self.next_header()? else {
                if extensions.seen {
                    return Err(malformed("an extension record describes no entry"));
                }
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| malformed("unreadable size"))?;
            if matches!(header.entry_type(), EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink) {
                extension_bytes = extension_bytes.saturating_add(size);
                if extension_bytes > EXTENSION_MAX {
                    return Err(malformed("extension records of more than 1 MiB for one entry"));
                }
            }
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    parse_pax(&records, &mut extensions)?;
                }
                EntryType::GNULongName => extensions.path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.extension(size)?)),
                // Comments of `git archive` and the like: nothing that concerns an entry.
                EntryType::XGlobalHeader => {
                    self.extension(size)?;
                    continue;
                }
                _ => return self.entry(&header, size, extensions).map(Some),
            }
            extensions.seen = true;
        }
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        let skip = self.remaining + self.padding;
        (self.remaining, self.padding) = (0, 0);
        if io::copy(&mut self.source.by_ref().take(skip), &mut io::sink())? != skip {
            return Err(malformed("it ends within an entry"));
        }
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK as usize {
            match self.source.read(&mut header.as_mut_bytes()[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(malformed("it ends within a header")),
                count => filled += count,
            }
        }
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let stored = header.cksum().map_err(|_| malformed("wrong header checksum"))?;
        let bytes = header.as_bytes();
        let sum =
            bytes[..148].iter().chain(&bytes[156..]).map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ');
        if sum != stored {
            return Err(malformed("wrong header checksum"));
        }
        Ok(Some(header))
    }

    fn start_content(&mut self, size: u64) -> Result<(), TarError> {
        self.remaining = size;
        let padded = size.checked_next_multiple_of(BLOCK).ok_or_else(|| malformed("a size out of range"))?;
        self.padding = padded - size;
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_MAX {
            return Err(malformed("an extension record of more than 1 MiB"));
        }
        self.start_content(size)?;
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn entry(&mut self, header: &Header, header_size: u64, extensions: Extensions) -> Result<Entry, TarError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            extensions.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
        let shown = String::from_utf8_lossy(&path[..path.len().min(120)]).escape_debug().to_string();
        let wrong = |what: &str| TarError::Malformed(format!("\"{shown}\" {what}"));
        for name in [&path, &link] {
            if name.contains(&0) {
                return Err(wrong("has a NUL in its name or target"));
            }
            if name.len() >= PATH_MAX {
                return Err(wrong("has a name or target longer than 4095 bytes"));
            }
        }
        let device = || -> Result<(u32, u32), TarError> {
            let number = |field: io::Result<Option<u32>>| field.map_err(|_| wrong("has an unreadable device number"));
            Ok((number(header.device_major())?.unwrap_or(0), number(header.device_minor())?.unwrap_or(0)))
        };
        let kind = match header.entry_type() {
            // Archives older than POSIX mark a directory by its trailing slash only.
            EntryType::Regular if path.ends_with(b"/") && header.as_bytes()[156] == 0 => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Directory => Kind::Directory,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            EntryType::GNUSparse => return Err(wrong("is a sparse file, which layers do not have")),
            other => return Err(wrong(&format!("has the unknown type {:#04x}", other.as_byte()))),
        };
        // A writer whose size does not fit the header leaves zero there; any other difference is read differently by
        // different readers.
        let size = match extensions.size {
            Some(size) if header_size != 0 && size != header_size => return Err(wrong("has two different sizes")),
            Some(size) => size,
            None => header_size,
        };
        if kind != Kind::File && size != 0 {
            return Err(wrong("has content although it is not a file"));
        }
        self.start_content(size)?;
        // Fields left blank mean zero.
        let blank =
            |field: std::ops::Range<usize>| header.as_bytes()[field].iter().all(|byte| matches!(byte, 0 | b' '));
        let id = |extended: Option<u32>, field: io::Result<u64>, position| -> Result<u32, TarError> {
            let id = match extended {
                Some(id) => id,
                None if blank(position) => 0,
                None => field
                    .ok()
                    .and_then(|id| u32::try_from(id).ok())
                    .ok_or_else(|| wrong("has an owner out of range"))?,
            };
            // The kernel takes -1 for "leave as it is".
            if id == u32::MAX { Err(wrong("has an owner out of range")) } else { Ok(id) }
        };
        Ok(Entry {
            kind,
            mode: if blank(100..108) {
                0
            } else {
                header.mode().map_err(|_| wrong("has unreadable permissions"))? & 0o7777
            },
            uid: id(extensions.uid, header.uid(), 108..116)?,
            gid: id(extensions.gid, header.gid(), 116..124)?,
            mtime: extensions
                .mtime
                .unwrap_or_else(|| (header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0)),
            path,
            link,
            xattrs: extensions.xattrs,
        })
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within an entry"));
        }
        self.remaining -= count as u64;
        Ok(count)
    }
}

fn malformed(reason: &str) -> TarError {
    TarError::Malformed(reason.to_owned())
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    // GNU terminates long names with one NUL; a NUL elsewhere stays and is refused.
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}

/// Records are `<length> <key>=<value>\n`, the length being decimal and counting itself.
fn parse_pax(mut records: &[u8], extensions: &mut Extensions) -> Result<(), TarError> {
    let wrong = || malformed("a PAX record that does not parse");
    let text = |value: &[u8]| std::str::from_utf8(value).map(str::to_owned).map_err(|_| wrong());
    while !records.is_empty() {
        let space = records.iter().take(20).position(|&byte| byte == b' ').ok_or_else(wrong)?;
        let length: usize = text(&records[..space])?.parse().map_err(|_| wrong())?;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(wrong());
        }
        let (record, rest) = (&records[space + 1..length - 1], &records[length..]);
        records = rest;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extensions.path = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => extensions.size = Some(text(value)?.parse().map_err(|_| wrong())?),
            b"uid" => extensions.uid = Some(text(value)?.parse().map_err(|_| wrong())?),
            b"gid" => extensions.gid = Some(text(value)?.parse().map_err(|_| wrong())?),
            b"mtime" => extensions.mtime = Some(parse_time(&text(value)?).ok_or_else(wrong)?),
            _ if key.starts_with(b"GNU.sparse.") => return Err(malformed("a sparse file, which layers do not have")),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    extensions.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// `seconds[.fraction]`, possibly negative; nanoseconds count forward from the second at or before the time.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (negative, nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let length =
            (1..=4).map(|digits| body + digits).find(|length| length.to_string().len() == length - body).unwrap();
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn pax_values_may_hold_newlines_and_times_may_be_negative() {
        let mut extensions = Extensions::default();
        let records = [
            pax("SCHILY.xattr.security.capability", b"\x01\n\n\0"),
            pax("path", "ä/b".as_bytes()),
            pax("mtime", b"-1.25"),
        ]
        .concat();
        parse_pax(&records, &mut extensions).unwrap();
        assert_eq!(extensions.xattrs, [(b"security.capability".to_vec(), b"\x01\n\n\0".to_vec())]);
        assert_eq!(extensions.path.as_deref(), Some("ä/b".as_bytes()));
        assert_eq!(extensions.mtime, Some((-2, 750_000_000)));
        assert_eq!(parse_time("12.5"), Some((12, 500_000_000)));
        for bad in
            [&b"5 a=b\n"[..], b"7 a=b\n", b"x a=b\n", b"99999999999999999999999 a=b\n", b"6 ab\n", b"3 \n", b"0 \n"]
        {
            assert!(parse_pax(bad, &mut Extensions::default()).is_err(), "{}", bad.escape_ascii());
        }
    }
}
