//! Discovery between two namespaces on one link. Needs root.

use super::*;
use crate::network::netns;
use rustix::{
    mount::{MountPropagationFlags, mount_change},
    thread::UnshareFlags,
};
use std::{path::Path, process::Command};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(20);

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip_in(namespace: &Path, line: &str) {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .arg("ip")
        .args(line.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `test` in a namespace with a link `up0` to another, which it is given the path of. Both end with it.
fn as_neighbours<F: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf) -> F + Send + 'static) {
    let tools = ["ip", "nsenter"].iter().all(|tool| Command::new(tool).arg("-V").output().is_ok());
    if !rustix::process::geteuid().is_root() || !tools {
        println!("SKIPPED: network namespaces need root, ip and nsenter");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: the FILES flag, which would break the sharing of file descriptors, is not set.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let other = folder.path().join("other");
            netns::ensure(&other).await.unwrap();
            ip("link set lo up");
            ip(&format!("link add up0 type veth peer name up0 netns {}", other.display()));
            ip("addr add 192.0.2.1/24 dev up0");
            ip("link set up0 up");
            ip_in(&other, "link set lo up");
            ip_in(&other, "addr add 192.0.2.2/24 dev up0");
            ip_in(&other, "link set up0 up");
            test(other.clone()).await;
            netns::delete(&other).await.unwrap();
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Starts discovery in another namespace: its thread, and what it opens, belong there.
async fn start_in(namespace: &Path, interfaces: Vec<String>) -> Discovery {
    netns::run(namespace, move || Ok(Discovery::start(&interfaces).unwrap())).await.unwrap()
}

/// Waits until the node is heard of at `addr`.
async fn hear(found: &mut mpsc::Receiver<Found>, expected: &Announcement, addr: SocketAddr) {
    let heard = tokio::time::timeout(DEADLINE, async {
        loop {
            let heard = found.recv().await.expect("discovery goes on");
            if heard.addrs.contains(&addr) {
                return heard;
            }
        }
    });
    let heard = heard.await.unwrap_or_else(|_| panic!("{addr} was not heard of"));
    assert_eq!((heard.cluster, heard.node, heard.role), (expected.cluster, expected.node, expected.role));
}

fn announcement() -> Announcement {
    Announcement { cluster: ClusterId(5), node: NodeId(6), role: Role::Manager, port: 2377 }
}

#[test]
fn a_neighbour_is_heard_of_and_so_is_its_new_address() {
    as_neighbours(|other| async move {
        let said = announcement();
        let theirs = start_in(&other, Vec::new()).await;
        theirs.announce(Some(&said)).unwrap();
        let ours = Discovery::start(&[]).unwrap();
        let mut found = ours.browse().unwrap();
        hear(&mut found, &said, "192.0.2.2:2377".parse().unwrap()).await;
        ip_in(&other, "addr del 192.0.2.2/24 dev up0");
        ip_in(&other, "addr add 192.0.2.77/24 dev up0");
        hear(&mut found, &said, "192.0.2.77:2377".parse().unwrap()).await;
    });
}

#[test]
fn a_neighbour_that_comes_later_is_heard_of_on_the_named_interface() {
    as_neighbours(|other| async move {
        let said = announcement();
        let ours = Discovery::start(&["up0".to_owned()]).unwrap();
        let mut found = ours.browse().unwrap();
        let theirs = start_in(&other, vec!["192.0.2.2".to_owned()]).await;
        theirs.announce(Some(&said)).unwrap();
        hear(&mut found, &said, "192.0.2.2:2377".parse().unwrap()).await;
    });
}
