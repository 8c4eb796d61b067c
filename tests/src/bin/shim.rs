//! `shim shim <dir>`: the shim of a container as a program of its own, for tests of the runtime that need no whole `edged`.
//! `shim daemon <dir> <key>`: runs one container in the folder and waits to be killed, as `edged` may be.
#![allow(clippy::unwrap_used, reason = "part of the tests: what cannot go on ends")]

#[path = "../../tests/runtime_containers/support.rs"]
mod support;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("shim") => orchestrator::runtime::shim::main(),
        Some("daemon") => daemon(&args[2], &args[3], &args[0]),
        _ => eprintln!("usage: shim shim <dir> | shim daemon <dir> <key>"),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn daemon(dir: &str, key: &str, this: &str) {
    let node = support::Node::at(dir.as_ref(), key, this).await;
    let config = node.shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    node.run(&config).await;
    println!("running");
    std::future::pending::<()>().await;
}
