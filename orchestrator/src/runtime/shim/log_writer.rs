//! Log files of one container: appended to, rotated by size, oldest removed. Comes in: what the container wrote; goes out:
//! files `<number>.log` in the format of [`super::super::log_format`]. Called by the shim's loop only.
//!
//! Files are numbered and never renamed, so that a reader who follows them knows what comes next. When the disk is full the
//! output is dropped and counted, never held back: a container must not stop because its log cannot be written.

use super::super::log_format::{Stream, encode, now_nanos};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Space for entries that a shim keeps between two writes; enough for what is read at once, in lines of usual length.
const KEPT_BYTES: usize = 8192;

/// Appends to the newest log file of a container.
pub(super) struct LogWriter {
    dir: PathBuf,
    max_bytes: u64,
    max_files: u64,
    number: u64,
    file: Option<File>,
    size: u64,
    /// Bytes of output that could not be written since the last success.
    lost: u64,
    entries: Vec<u8>,
}

impl LogWriter {
    pub(super) fn new(dir: &Path, max_bytes: u64, max_files: u32) -> Self {
        Self {
            dir: dir.into(),
            max_bytes,
            max_files: u64::from(max_files.max(1)),
            number: log_numbers(dir).last().copied().unwrap_or(1),
            file: None,
            size: 0,
            lost: 0,
            entries: Vec::new(),
        }
    }

    /// Writes what the container wrote to one stream.
    pub(super) fn append(&mut self, stream: Stream, chunk: &[u8]) {
        self.entries.clear();
        let now = now_nanos();
        if self.lost > 0 {
            let note = format!("[edged: {} bytes of output were lost: the log could not be written]\n", self.lost);
            encode(&mut self.entries, now, Stream::Stderr, note.as_bytes());
        }
        encode(&mut self.entries, now, stream, chunk);
        let written = self.write_entries();
        // Many short lines at once need many times their own space, once.
        self.entries.clear();
        self.entries.shrink_to(KEPT_BYTES);
        match written {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += chunk.len() as u64,
        }
    }

    fn write_entries(&mut self) -> io::Result<()> {
        if self.file.is_some() && self.size >= self.max_bytes {
            self.number += 1;
            self.file = None;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let written = file.write_all(&self.entries);
        match written {
            Ok(()) => self.size += self.entries.len() as u64,
            // What was written of the entries would make the next one unreadable.
            Err(_) => file.set_len(self.size)?,
        }
        self.file = Some(file);
        written
    }

    fn open(&mut self) -> io::Result<File> {
        fs::create_dir_all(&self.dir)?;
        let file = OpenOptions::new().create(true).append(true).open(log_path(&self.dir, self.number))?;
        self.size = file.metadata()?.len();
        let kept_from = (self.number + 1).saturating_sub(self.max_files);
        for number in log_numbers(&self.dir).into_iter().filter(|n| *n < kept_from) {
            let _ = fs::remove_file(log_path(&self.dir, number));
        }
        Ok(file)
    }
}

/// Where log file `number` lies.
pub(crate) fn log_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.log"))
}

/// Numbers of the log files that exist, ascending.
pub(crate) fn log_numbers(dir: &Path) -> Vec<u64> {
    let mut numbers: Vec<u64> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_followed_by_new_ones_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(dir.path(), 100, 2);
        for _ in 0..10 {
            log.append(Stream::Stdout, b"0123456789\n");
        }
        assert_eq!(log_numbers(dir.path()), [4, 5]);
        assert!(fs::metadata(log_path(dir.path(), 4)).unwrap().len() <= 100 + 60);
    }

    #[test]
    fn output_that_cannot_be_written_is_counted_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("logs");
        fs::write(&blocked, b"a file where the folder should be").unwrap();
        let mut log = LogWriter::new(&blocked, 1000, 2);
        log.append(Stream::Stdout, b"lost\n");
        fs::remove_file(&blocked).unwrap();
        log.append(Stream::Stdout, b"kept\n");
        let text = fs::read_to_string(log_path(&blocked, 1)).unwrap();
        assert!(text.contains("[edged: 5 bytes of output were lost") && text.ends_with("F kept\n"), "{text}");
    }
}
