//! Power cuts, failing disks and flipped bits under the log and the snapshots.
//!
//! A seeded history of appends, votes, truncations and purges runs once on a simulated disk. Then the power is cut after every
//! single disk operation, with every subset of the unsynced sectors (and torn ones) on the device, and the log is opened:
//! it must be what the first k records make, for a k between what was acknowledged and what was submitted.

use std::sync::Arc;

use crate::store::{
    disk::Disk,
    log::{
        Log, LogError,
        record::{Image, Pointers, Position, Record, Vote},
        segment,
    },
    meter::Meter,
    raft::Members,
    snapshot::{Moment, Snapshot, SnapshotFiles},
    tests::sim::{Contents, SimDisk},
};

/// Small, so that a short history goes through many segments.
const SEGMENT: u32 = 4096;
const OWNER: u64 = 9;
/// Subsets of unsynced sectors tried per moment.
const SUBSETS: usize = 256;
/// Every so many power cuts, the log is gone on with and the power cut again.
const NESTED: u64 = 16;
const SEEDS: u64 = 8;
const BATCHES: usize = 40;
/// At least this many power cuts are tried.
const CUTS: usize = 100_000;

/// SplitMix64 (Steele, Lea, Flood 2014): every run draws the same numbers.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

fn open(disk: &SimDisk) -> Result<(Log, Image), LogError> {
    let (log, image, _) = Log::open(Arc::new(disk.clone()), Arc::new(Meter::default()), OWNER, SEGMENT, true)?;
    Ok((log, image))
}

/// What the log was asked to do, and what it should be after each record.
#[derive(Debug)]
struct Model {
    /// After 0, 1, 2, … records.
    images: Vec<Facts>,
    records: Vec<Record>,
    image: Image,
}

impl Model {
    fn of(image: Image) -> Self {
        Model { images: vec![facts(&image)], records: Vec::new(), image }
    }

    fn note(&mut self, record: &Record) {
        self.image.note(record).unwrap();
        self.images.push(facts(&self.image));
        self.records.push(record.clone());
    }

    fn submitted(&self) -> usize {
        self.images.len() - 1
    }

    /// How many records between `acknowledged` and `submitted` make `image`? `None` when no number does.
    fn reached(&self, image: &Image, acknowledged: usize, submitted: usize) -> Option<usize> {
        let image = facts(image);
        (acknowledged..=submitted).find(|n| self.images[*n] == image)
    }

    fn allows(&self, image: &Image, acknowledged: usize, submitted: usize) -> bool {
        self.reached(image, acknowledged, submitted).is_some()
    }
}

type Facts = (Pointers, Vec<(Position, Arc<[u8]>)>);

fn facts(image: &Image) -> Facts {
    (*image.pointers(), image.range(0, u64::MAX).cloned().collect())
}

/// The records of the next append.
fn batch(image: &Image, random: &mut impl FnMut() -> u64) -> Vec<Record> {
    let Pointers { last, purged, committed, .. } = *image.pointers();
    let term = last.map_or(1, |last| last.term);
    let next = |n: u64| Position { term, node: 1, index: last.map_or(0, |last| last.index + 1) + n };
    match random() % 12 {
        0 => vec![Record::Vote(Vote { term: term + 1, node: random() % 3, committed: random().is_multiple_of(2) })],
        1 if last > committed.max(purged) => {
            // Another leader overwrites the uncommitted tail.
            let floor = committed.max(purged).map_or(0, |at| at.index + 1);
            let from = floor + random() % (last.unwrap().index + 1 - floor);
            let left =
                from.checked_sub(1).and_then(|index| image.range(index, from).next()).map(|(at, _)| *at).or(purged);
            vec![
                Record::Truncated(left),
                Record::Entry(Position { term: term + 1, node: 2, index: from }, Arc::from([7; 30])),
            ]
        }
        2 if committed > purged => vec![Record::Purged(committed.unwrap())],
        // A snapshot from the leader replaces the whole log.
        3 if random().is_multiple_of(4) => vec![Record::Purged(Position { term: term + 1, ..next(5) })],
        _ => {
            let entries = 1 + random() % 3;
            let mut records: Vec<_> = (0..entries)
                .map(|n| {
                    // One in 50 does not fit a segment.
                    let longest = if random().is_multiple_of(50) { 6000 } else { 900 };
                    let bytes: Vec<u8> = (0..random() % longest).map(|_| random() as u8).collect();
                    Record::Entry(next(n), bytes.into())
                })
                .collect();
            records.extend(last.filter(|_| random().is_multiple_of(3)).map(Record::Committed));
            records
        }
    }
}

/// A history on a simulated disk: at which event how much was submitted and acknowledged.
struct Run {
    disk: SimDisk,
    model: Model,
    /// (events so far, records submitted, records acknowledged), each valid from that event on.
    marks: Vec<(usize, usize, usize)>,
}

fn run(seed: u64, fail_at: Option<usize>) -> Run {
    let mut random = random(seed);
    let disk = SimDisk::default();
    if let Some(event) = fail_at {
        disk.fail_at(event);
    }
    let Ok((mut log, image)) = open(&disk) else {
        return Run { disk, model: Model::of(Image::default()), marks: vec![(0, 0, 0)] };
    };
    let mut model = Model::of(image);
    let mut marks = vec![(0, 0, 0)];
    for _ in 0..BATCHES {
        let tidied = log.tidy();
        assert!(tidied.is_ok() || fail_at.is_some());
        let records = batch(&model.image, &mut random);
        let before = model.submitted();
        for record in &records {
            model.note(record);
        }
        marks.push((disk.events(), model.submitted(), before));
        if log.append(&records).is_err() {
            assert!(fail_at.is_some());
            break;
        }
        marks.push((disk.events(), model.submitted(), model.submitted()));
    }
    Run { disk, model, marks }
}

impl Run {
    fn mark(&self, event: usize) -> (usize, usize) {
        let (_, submitted, acknowledged) = self.marks.iter().rfind(|mark| mark.0 <= event).unwrap();
        (*submitted, *acknowledged)
    }
}

#[test]
fn after_a_power_cut_at_any_moment_the_log_is_what_was_acknowledged() {
    let mut cuts = 0;
    let mut seed = 0;
    while seed < SEEDS || cuts < CUTS {
        cuts += cut_everywhere(seed);
        seed += 1;
    }
    println!("{cuts} power cuts in {seed} histories");
}

fn cut_everywhere(seed: u64) -> usize {
    let run = run(seed, None);
    let mut random = random(!seed);
    let mut history = run.disk.history();
    let mut cuts = 0;
    loop {
        let (submitted, acknowledged) = run.mark(history.at());
        let mut nested = random() % NESTED;
        history.cut(SUBSETS, &mut random, |contents| {
            cuts += 1;
            let disk = SimDisk::with(&contents);
            let (log, image) = recovered(&disk, seed, history.at());
            let Some(reached) = run.model.reached(&image, acknowledged, submitted) else {
                let (at, facts) = (history.at(), facts(&image));
                panic!("seed {seed}, event {at}: {facts:?} is not between {acknowledged} and {submitted} records")
            };
            nested += 1;
            if nested.is_multiple_of(NESTED) {
                cuts += go_on_and_cut_again(&disk, log, image, &run.model.records[reached..submitted], seed);
            }
        });
        if !history.step() {
            return cuts;
        }
    }
}

fn recovered(disk: &SimDisk, seed: u64, event: usize) -> (Log, Image) {
    open(disk).unwrap_or_else(|error| panic!("seed {seed}, event {event}: {error:?}"))
}

/// Goes on with a recovered log, then cuts the power during the recovery and during what followed it. What is appended has the
/// sizes of the `lost` records but for the last, which would fit in behind if it had been left on the device.
fn go_on_and_cut_again(disk: &SimDisk, mut log: Log, image: Image, lost: &[Record], seed: u64) -> usize {
    let mut model = Model::of(image);
    let recovered_at = disk.events();
    let lost = lost.split_last().map_or(lost, |(_, before)| before);
    let mut sizes: Vec<usize> =
        lost.iter().map(|record| if let Record::Entry(_, bytes) = record { bytes.len() } else { 8 }).collect();
    if sizes.is_empty() {
        sizes.push(700);
    }
    let mut records = Vec::new();
    for size in sizes {
        let last = model.image.pointers().last;
        let term = last.map_or(9, |last| last.term);
        let position = Position { term, node: 1, index: last.map_or(0, |last| last.index + 1) };
        records.push(Record::Entry(position, vec![1; size].into()));
        model.note(&records[records.len() - 1]);
    }
    let _ = log.tidy();
    log.append(&records).unwrap();
    let appended_at = disk.events();

    let mut history = disk.history();
    let mut random = random(seed);
    let mut cuts = 0;
    loop {
        let submitted = if history.at() >= recovered_at { model.submitted() } else { 0 };
        let acknowledged = if history.at() >= appended_at { model.submitted() } else { 0 };
        history.cut(8, &mut random, |contents| {
            cuts += 1;
            let (_, image) = recovered(&SimDisk::with(&contents), seed, history.at());
            assert!(model.allows(&image, acknowledged, submitted), "seed {seed}: cut again at event {}", history.at());
        });
        if !history.step() {
            return cuts;
        }
    }
}

#[test]
fn after_a_failed_write_or_sync_nothing_acknowledged_is_missing() {
    let whole = run(1, None).disk.events();
    for event in 0..whole {
        let run = run(1, Some(event));
        let (submitted, acknowledged) = run.mark(run.disk.events());
        let (_, image) = recovered(&SimDisk::with(&run.disk.contents()), 1, event);
        assert!(run.model.allows(&image, acknowledged, submitted), "failed at event {event}");
    }
}

/// Two segments, one full and one begun; where the last append begins, and what the image is with and without it.
fn small_log() -> (Contents, usize, Model) {
    let disk = SimDisk::default();
    let (mut log, image) = open(&disk).unwrap();
    let mut model = Model::of(image);
    let mut last_append = 0;
    for index in 0..8 {
        log.tidy().unwrap();
        let entry = Record::Entry(Position { term: 1, node: 1, index }, vec![index as u8; 700].into());
        let vote = Record::Vote(Vote { term: index, node: 1, committed: true });
        model.note(&entry);
        model.note(&vote);
        last_append = end_of(&disk.contents(), 2);
        log.append(&[entry, vote]).unwrap();
    }
    log.tidy().unwrap();
    (disk.contents(), last_append, model)
}

fn end_of(contents: &Contents, seq: u64) -> usize {
    contents.get(&segment::file_name(seq)).map_or(0, |bytes| segment::scan(bytes, seq).unwrap().end)
}

#[test]
fn a_flipped_bit_is_cut_in_the_last_append_and_refused_before_it() {
    let (contents, last_append, model) = small_log();
    let end = end_of(&contents, 2);
    assert!(last_append > 0 && end > last_append, "the last append lies in the second segment");
    let (mut refused, mut cut, mut harmless) = (0, 0, 0);
    for seq in 1..=2 {
        let name = segment::file_name(seq);
        for byte in 0..SEGMENT as usize {
            let mut contents = contents.clone();
            contents.get_mut(&name).unwrap()[byte] ^= 1 << (byte % 8);
            match open(&SimDisk::with(&contents)) {
                Ok((_, image)) if facts(&image) == *model.images.last().unwrap() => harmless += 1,
                Ok((_, image)) => {
                    assert!(seq == 2 && (last_append..end).contains(&byte), "{name} byte {byte} was cut silently");
                    assert!(model.allows(&image, model.submitted() - 2, model.submitted()));
                    cut += 1;
                }
                Err(LogError::Corrupt { file, offset, .. }) => {
                    assert_eq!(file, name);
                    assert!(
                        offset as usize <= byte && byte < offset as usize + 800,
                        "{name} byte {byte}: offset {offset}"
                    );
                    refused += 1;
                }
                Err(error) => panic!("{name} byte {byte}: {error:?}"),
            }
        }
    }
    // Harmless are the padding behind records and the unused ends of the segments.
    assert!(refused > 4000 && cut > 700 && harmless > 1000, "refused {refused}, cut {cut}, harmless {harmless}");
}

#[test]
fn a_zeroed_sector_is_refused_before_the_last_append() {
    let (contents, last_append, model) = small_log();
    for seq in 1..=2 {
        for sector in 0..SEGMENT as usize / 512 {
            let mut damaged = contents.clone();
            damaged.get_mut(&segment::file_name(seq)).unwrap()[sector * 512..][..512].fill(0);
            if damaged == contents {
                continue;
            }
            match open(&SimDisk::with(&damaged)) {
                Ok((_, image)) => {
                    assert!(
                        seq == 2 && sector * 512 + 512 > last_append,
                        "segment {seq} sector {sector} was lost silently"
                    );
                    assert!(model.allows(&image, model.submitted() - 2, model.submitted()));
                }
                Err(error) => assert!(matches!(error, LogError::Corrupt { .. }), "{error:?}"),
            }
        }
    }
}

#[test]
fn a_missing_or_shortened_segment_is_refused() {
    let (contents, _, _) = small_log();
    for seq in 1..=2 {
        let name = segment::file_name(seq);
        let mut missing = contents.clone();
        missing.remove(&name);
        assert!(matches!(open(&SimDisk::with(&missing)), Err(LogError::Corrupt { file, .. }) if file == name));
        let mut short = contents.clone();
        short.get_mut(&name).unwrap().truncate(3000);
        assert!(matches!(open(&SimDisk::with(&short)), Err(LogError::Corrupt { .. })));
    }
}

#[test]
fn after_a_power_cut_the_newest_written_snapshot_is_found() {
    let disk = SimDisk::default();
    let files = |disk: &SimDisk| SnapshotFiles::new(Arc::new(disk.clone()), Arc::new(Meter::default()), None);
    let snapshot = |index: u64| Snapshot {
        moment: Moment {
            last: Some(Position { term: 1, node: 1, index }),
            members_at: None,
            members: Members::default(),
        },
        state: vec![index as u8; 1500],
    };
    let mut written = Vec::new();
    for index in 1..=5 {
        files(&disk).write(&snapshot(index), false).unwrap();
        written.push(disk.events());
    }
    assert_eq!(disk.list().unwrap().len(), 2);
    let mut random = random(1);
    let mut history = disk.history();
    loop {
        let durable = written.iter().filter(|event| **event <= history.at()).count() as u64;
        history.cut(SUBSETS, &mut random, |contents| {
            let found = files(&SimDisk::with(&contents)).find().unwrap();
            let index = found.newest.map_or(0, |found| {
                let index = found.moment.last.unwrap().index;
                assert_eq!(found.state, snapshot(index).state);
                index
            });
            assert!((durable..=durable + 1).contains(&index), "event {}: {index} instead of {durable}", history.at());
            assert_eq!(found.damaged, Vec::<String>::new());
        });
        if !history.step() {
            break;
        }
    }
}
