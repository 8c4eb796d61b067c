//! Keys and certificates on the disk.

use super::*;
use std::{error::Error, fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::atomic::AtomicBool, thread};

struct Home {
    dir: tempfile::TempDir,
    cluster: Cluster,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), cluster: Cluster::new(CLUSTER) }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("pki/node.pem")
    }

    fn load(&self) -> Option<Credentials> {
        Credentials::load(self.dir.path()).unwrap()
    }

    /// All that is said when loading fails.
    fn refusal(&self) -> String {
        let error = Credentials::load(self.dir.path()).unwrap_err();
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text += &format!(": {cause}");
            next = cause.source();
        }
        text.replace(self.dir.path().to_str().unwrap(), "STATE")
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_member_is_still_itself_after_a_restart() {
    let home = Home::new();
    assert!(home.load().is_none());
    let saved = home.cluster.node(Role::Manager);
    saved.save(home.dir.path()).unwrap();
    let loaded = home.load().unwrap();
    assert_eq!(loaded.subject(), saved.subject());
    assert_eq!(loaded.certificate(), saved.certificate());
    assert_eq!(loaded.ca(), home.cluster.ca.certificate);
    assert_eq!(loaded.key().pkcs8(), saved.key().pkcs8());
}

#[test]
fn nobody_else_reads_the_key() {
    let home = Home::new();
    let directory = home.dir.path().join("pki");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    NodeKey::load_or_create(home.dir.path()).unwrap();
    assert_eq!((mode(&directory), mode(&directory.join("joining-key.pem"))), (0o700, 0o600));
    let member = home.cluster.node(Role::Worker);
    member.save(home.dir.path()).unwrap();
    assert_eq!((mode(&directory), mode(&home.file())), (0o700, 0o600));
    let shown = format!("{member:?}");
    assert!(shown.contains(&member.subject().node.to_string()) && !shown.contains("pkcs8"), "{shown}");
}

#[test]
fn a_join_that_is_tried_again_is_by_the_same_node_until_it_leaves() {
    let home = Home::new();
    let first = NodeKey::load_or_create(home.dir.path()).unwrap();
    let second = NodeKey::load_or_create(home.dir.path()).unwrap();
    assert_eq!(second.node_id(), first.node_id());
    home.cluster.certify(second, Role::Worker, START, DAY).save(home.dir.path()).unwrap();
    assert!(!home.dir.path().join("pki/joining-key.pem").exists(), "the key lies in one place");
    Credentials::remove(home.dir.path()).unwrap();
    Credentials::remove(home.dir.path()).unwrap();
    assert!(home.load().is_none());
    assert_ne!(NodeKey::load_or_create(home.dir.path()).unwrap().node_id(), first.node_id());
}

#[test]
fn leaving_forgets_a_key_that_an_interrupted_write_left() {
    let home = Home::new();
    home.cluster.node(Role::Worker).save(home.dir.path()).unwrap();
    fs::copy(home.file(), home.file().with_extension("new")).unwrap();
    Credentials::remove(home.dir.path()).unwrap();
    assert_eq!(fs::read_dir(home.dir.path().join("pki")).unwrap().count(), 0);
}

#[test]
fn a_key_that_does_not_fit_its_certificate_is_found() {
    let home = Home::new();
    let (one, other) = (home.cluster.node(Role::Worker), home.cluster.node(Role::Worker));
    let file = |member: &Credentials| {
        member.save(home.dir.path()).unwrap();
        fs::read_to_string(home.file()).unwrap()
    };
    let (first, second) = (file(&one), file(&other));
    let after_key = |text: &str| text.find("-----BEGIN CERTIFICATE").unwrap();
    fs::write(home.file(), first[..after_key(&first)].to_owned() + &second[after_key(&second)..]).unwrap();
    assert_eq!(
        home.refusal(),
        format!(
            "the contents of STATE/pki/node.pem do not fit each other: the certificate is of node {}, and the key is of \
             node {}",
            other.subject().node,
            one.subject().node
        )
    );
}

#[test]
fn a_certificate_of_another_ca_is_found() {
    let home = Home::new();
    let (own, foreign) = (home.cluster.node(Role::Worker), Cluster::new(CLUSTER));
    let mixed = Credentials::new(own.key().clone(), own.certificate().to_vec(), foreign.ca.certificate).unwrap_err();
    assert_eq!(
        mixed.source().unwrap().to_string(),
        format!(
            "the certificate of node {} (cluster {CLUSTER}) is not signed by the CA of this cluster",
            own.subject().node
        )
    );
}

#[test]
fn a_member_whose_certificate_ran_out_still_knows_who_it_is() {
    let home = Home::new();
    let member = home.cluster.certify(NodeKey::generate(), Role::Worker, START, HOUR);
    member.save(home.dir.path()).unwrap();
    assert_eq!(home.load().unwrap().subject(), member.subject());
}

#[test]
fn every_truncation_of_the_file_is_found() {
    let home = Home::new();
    home.cluster.node(Role::Worker).save(home.dir.path()).unwrap();
    let whole = fs::read(home.file()).unwrap();
    // The last byte is a newline that nothing depends on.
    for end in (0..whole.len() - 1).step_by(7).chain([whole.len() - 2]) {
        fs::write(home.file(), &whole[..end]).unwrap();
        let text = home.refusal();
        assert!(text.contains("STATE/pki/node.pem"), "{end}: {text}");
    }
}

#[test]
fn damage_to_the_file_is_found_and_named() {
    let home = Home::new();
    home.cluster.node(Role::Worker).save(home.dir.path()).unwrap();
    fs::write(home.file(), b"").unwrap();
    assert_eq!(
        home.refusal(),
        "STATE/pki/node.pem is damaged: it has not one private key and two certificates, in this order"
    );
    fs::write(home.file(), "x".repeat(70_000)).unwrap();
    assert_eq!(home.refusal(), "STATE/pki/node.pem is damaged: it has 70000 bytes");
    fs::remove_file(home.file()).unwrap();
    fs::create_dir(home.file()).unwrap();
    assert_eq!(home.refusal(), "reading STATE/pki/node.pem: Is a directory (os error 21)");
    fs::write(home.dir.path().join("pki/joining-key.pem"), "nothing").unwrap();
    assert!(NodeKey::load_or_create(home.dir.path()).is_err(), "a damaged key is not replaced by a guess");
}

#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let home = Home::new();
    let (old, new) = (home.cluster.node(Role::Worker), home.cluster.node(Role::Worker));
    old.save(home.dir.path()).unwrap();
    fs::create_dir(home.file().with_extension("new")).unwrap();
    let error = new.save(home.dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("writing ") && error.to_string().ends_with("pki/node.pem"), "{error}");
    assert_eq!(home.load().unwrap().subject(), old.subject());
}

#[test]
fn whoever_reads_during_a_replacement_finds_a_whole_pair() {
    let home = Home::new();
    let pairs = [home.cluster.node(Role::Worker), home.cluster.node(Role::Manager)];
    pairs[0].save(home.dir.path()).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..100 {
                pairs[round % 2].save(home.dir.path()).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let found = home.load().unwrap();
            assert!(pairs.iter().any(|pair| pair.subject() == found.subject()));
        }
    });
}
