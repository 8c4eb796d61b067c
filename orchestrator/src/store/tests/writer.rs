//! The writer thread on a disk that fails.

use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::watch;

use crate::store::{
    log::{
        Log,
        record::{Position, Record},
        writer::{Health, Writer},
    },
    meter::Meter,
    tests::sim::SimDisk,
};

fn entry(index: u64) -> Record {
    Record::Entry(Position { term: 1, node: 1, index }, vec![1; 100].into())
}

fn submit(writer: &Writer, record: Record) -> io::Result<()> {
    let (done, result) = mpsc::channel();
    writer.submit(vec![record], Box::new(move |outcome| done.send(outcome).unwrap()));
    result.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn after_a_failed_sync_every_request_fails_and_none_is_retried() {
    let disk = SimDisk::default();
    let (log, _, _) = Log::open(Arc::new(disk.clone()), Arc::new(Meter::default()), 1, 4096, true).unwrap();
    let health = watch::Sender::new(Health::Writable);
    let mut reported = health.subscribe();
    let writer = Writer::spawn(log, health, ()).unwrap();
    submit(&writer, entry(0)).unwrap();
    // The next write succeeds and its sync fails.
    disk.fail_at(disk.events() + 1);
    assert_eq!(submit(&writer, entry(1)).unwrap_err().to_string(), io::Error::from_raw_os_error(5).to_string());
    assert!(
        matches!(&*reported.borrow_and_update(), Health::Failed { reason } if reason.contains("Input/output error"))
    );
    let events = disk.events();
    disk.fail_at(usize::MAX);
    assert!(submit(&writer, entry(2)).is_err());
    assert_eq!(disk.events(), events, "the disk was touched again");
}

#[test]
fn completions_come_in_the_order_of_the_requests() {
    let disk = SimDisk::default();
    let (log, _, _) = Log::open(Arc::new(disk), Arc::new(Meter::default()), 1, 4096, true).unwrap();
    let writer = Writer::spawn(log, watch::Sender::new(Health::Writable), ()).unwrap();
    let (done, results) = mpsc::channel();
    for index in 0..50 {
        let done = done.clone();
        writer.submit(vec![entry(index)], Box::new(move |outcome| done.send((index, outcome.is_ok())).unwrap()));
    }
    drop(writer);
    drop(done);
    assert!(results.iter().eq((0..50).map(|index| (index, true))));
}
