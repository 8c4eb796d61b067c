//! openraft's storage suite against the log store and the state machine on a real folder.

use std::sync::{Arc, atomic::AtomicU64};

use openraft::{StorageError, testing::StoreBuilder, testing::Suite};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::store::{
    disk::HostDisk,
    log::{
        Log,
        writer::{Health, Writer},
    },
    log_store::LogStore,
    machine::Machine,
    meter::Meter,
    raft::TypeConfig,
    snapshot::SnapshotFiles,
};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<u64>> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(HostDisk::new(dir.path()));
        let meter = Arc::new(Meter::default());
        let (log, image, _) = Log::open(disk.clone(), meter.clone(), 0, 64 * 1024, true).unwrap();
        let writer = Writer::spawn(log, watch::Sender::new(Health::Writable), ()).unwrap();
        let appended = Arc::new(AtomicU64::new(0));
        let machine = Machine::new(SnapshotFiles::new(disk, meter, None), None, appended.clone()).unwrap();
        Ok((dir, LogStore::new(image, writer, appended), machine))
    }
}

#[test]
fn openraft_finds_no_fault_with_the_storage() {
    Suite::test_all(Builder).unwrap();
}
