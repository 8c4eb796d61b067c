//! A disk that can lose its power: it remembers what was synced and what was only written, and makes every state the device
//! may be in afterwards.
//!
//! The model: sectors of 512 bytes are written singly and in any order, one of them may be torn; unsynced changes of names
//! survive up to some point in their order (what a journaling file system does), or all but one removal before that point;
//! what was synced stays.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::store::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// What a device holds: names and contents.
pub(super) type Contents = BTreeMap<String, Vec<u8>>;

/// One thing that happened, in order.
#[derive(Clone, Debug)]
enum Event {
    Create { name: String, file: usize, len: usize },
    Write { file: usize, offset: usize, bytes: Vec<u8> },
    Sync { file: usize },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncNames,
}

#[derive(Debug, Default)]
struct Inner {
    names: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
    started_with: Contents,
    events: Vec<Event>,
    fail_at: Option<usize>,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimDisk {
    /// A disk as a power cut left it.
    pub(super) fn with(contents: &Contents) -> Self {
        let mut inner = Inner { started_with: contents.clone(), ..Inner::default() };
        for (name, bytes) in contents {
            inner.names.insert(name.clone(), inner.files.len());
            inner.files.push(bytes.clone());
        }
        SimDisk(Arc::new(Mutex::new(inner)))
    }

    /// Lets everything from event number `event` on fail.
    pub(super) fn fail_at(&self, event: usize) {
        self.lock().fail_at = Some(event);
    }

    /// How much has happened so far.
    pub(super) fn events(&self) -> usize {
        self.lock().events.len()
    }

    /// What is there without a power cut.
    pub(super) fn contents(&self) -> Contents {
        let inner = self.lock();
        inner.names.iter().map(|(name, file)| (name.clone(), inner.files[*file].clone())).collect()
    }

    /// What happened so far, as something to cut the power in.
    pub(super) fn history(&self) -> History {
        let inner = self.lock();
        let names = inner.started_with.keys().cloned().zip(0..).collect();
        let files = inner.started_with.values().cloned().collect();
        History { events: inner.events.clone(), names, files, at: 0, unsynced: Vec::new(), pending_names: Vec::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn happen(&self, event: Event) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.fail_at.is_some_and(|at| inner.events.len() >= at) {
            return Err(io::Error::from_raw_os_error(5));
        }
        apply_names(&mut inner.names, &event);
        match &event {
            Event::Create { len, .. } => inner.files.push(vec![0; *len]),
            Event::Write { file, offset, bytes } => overwrite(&mut inner.files[*file], *offset, bytes),
            _ => {}
        }
        inner.events.push(event);
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.lock().names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        Ok(self.lock().files[file].clone())
    }
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = self.lock().files.len();
        self.happen(Event::Create { name: name.into(), file, len: len as usize })?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SimFile { disk: self.clone(), file: self.file(name)? }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.happen(Event::Rename { from: from.into(), to: to.into() })
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.happen(Event::Remove { name: name.into() })
    }
    fn sync_names(&self) -> io::Result<()> {
        self.happen(Event::SyncNames)
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.happen(Event::Write { file: self.file, offset: offset as usize, bytes: bytes.to_vec() })
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.happen(Event::Sync { file: self.file })
    }
}

/// The events of a disk, replayed one by one; between any two the power can be cut.
#[derive(Debug)]
pub(super) struct History {
    events: Vec<Event>,
    at: usize,
    /// Durable.
    names: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
    /// Not yet durable.
    unsynced: Vec<(usize, usize, Vec<u8>)>,
    pending_names: Vec<Event>,
}

impl History {
    /// Number of events replayed.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Lets the next thing happen. False at the end.
    pub(super) fn step(&mut self) -> bool {
        let Some(event) = self.events.get(self.at).cloned() else { return false };
        self.at += 1;
        match event {
            Event::Create { len, .. } => {
                self.files.push(vec![0; len]);
                self.pending_names.push(event);
            }
            Event::Write { file, offset, bytes } => self.unsynced.push((file, offset, bytes)),
            Event::Sync { file } => {
                for (to, offset, bytes) in self.unsynced.extract_if(.., |write| write.0 == file) {
                    overwrite(&mut self.files[to], offset, &bytes);
                }
            }
            Event::Rename { .. } | Event::Remove { .. } => self.pending_names.push(event),
            Event::SyncNames => {
                for event in self.pending_names.drain(..) {
                    apply_names(&mut self.names, &event);
                }
            }
        }
        true
    }

    /// The sectors that may or may not have reached the device.
    fn sectors(&self) -> Vec<(usize, usize, &[u8])> {
        let mut sectors = Vec::new();
        for (file, offset, bytes) in &self.unsynced {
            let (mut offset, mut bytes) = (*offset, bytes.as_slice());
            while !bytes.is_empty() {
                let (sector, rest) = bytes.split_at(bytes.len().min(SECTOR - offset % SECTOR));
                sectors.push((*file, offset, sector));
                offset += sector.len();
                bytes = rest;
            }
        }
        sectors
    }

    /// Cuts the power here, in every way up to `limit` of them, chosen by `random` where there are more; hands each result to
    /// `found`.
    pub(super) fn cut(&self, limit: usize, random: &mut impl FnMut() -> u64, mut found: impl FnMut(Contents)) {
        let sectors = self.sectors();
        let subsets = 1_usize.checked_shl(sectors.len() as u32).unwrap_or(usize::MAX);
        for names in self.survivals() {
            for n in 0..subsets.min(limit) {
                let subset = if subsets <= limit { n as u64 } else { random() };
                found(self.result(&names, &sectors, subset, None));
            }
            // Each sector torn at some place, with the others there or not.
            for torn in 0..sectors.len() {
                for _ in 0..4 {
                    found(self.result(&names, &sectors, random(), Some((torn, random()))));
                }
            }
        }
    }

    /// The names that may be there after a power cut.
    fn survivals(&self) -> Vec<BTreeMap<String, usize>> {
        let mut survivals = Vec::new();
        for reached in 0..=self.pending_names.len() {
            let pending = &self.pending_names[..reached];
            let removals = (0..reached).filter(|n| matches!(pending[*n], Event::Remove { .. }));
            for left_out in std::iter::once(None).chain(removals.map(Some)) {
                let mut names = self.names.clone();
                let survived = (0..reached).filter(|n| Some(*n) != left_out);
                survived.for_each(|n| apply_names(&mut names, &pending[n]));
                survivals.push(names);
            }
        }
        survivals
    }

    fn result(
        &self,
        names: &BTreeMap<String, usize>,
        sectors: &[(usize, usize, &[u8])],
        subset: u64,
        torn: Option<(usize, u64)>,
    ) -> Contents {
        let mut files = self.files.clone();
        for (n, (file, offset, bytes)) in sectors.iter().enumerate() {
            match torn {
                Some((torn, place)) if torn == n => {
                    let (head, tail) = bytes.split_at(place as usize % bytes.len());
                    if place & 1 << 40 == 0 {
                        overwrite(&mut files[*file], *offset, head);
                    } else {
                        overwrite(&mut files[*file], *offset + head.len(), tail);
                    }
                }
                _ if subset >> (n % 64) & 1 == 1 => overwrite(&mut files[*file], *offset, bytes),
                _ => {}
            }
        }
        names.iter().map(|(name, file)| (name.clone(), std::mem::take(&mut files[*file]))).collect()
    }
}

fn apply_names(names: &mut BTreeMap<String, usize>, event: &Event) {
    match event {
        Event::Create { name, file, .. } => drop(names.insert(name.clone(), *file)),
        Event::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Event::Remove { name } => drop(names.remove(name)),
        Event::Write { .. } | Event::Sync { .. } | Event::SyncNames => {}
    }
}

fn overwrite(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}
