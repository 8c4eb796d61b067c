//! A runtime of its own for each test, and a root file system made of busybox.
#![allow(dead_code, reason = "the program that plays the daemon needs less of it")]

use orchestrator::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, ImageDefaults, LogQuery, Runtime, RuntimeConfig,
};
use orchestrator_core::model::{ContainerSpec, ImageName, Resources, TaskId};
use orchestrator_tests::wait_for;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Why containers cannot run here, if they cannot.
pub fn unavailable() -> Option<String> {
    if !rustix_is_root() {
        return Some("containers need root".into());
    }
    (!Path::new("/bin/busybox").exists()).then(|| "there is no /bin/busybox: install busybox-static".into())
}

fn rustix_is_root() -> bool {
    fs::read_to_string("/proc/self/status").unwrap().lines().any(|l| l.starts_with("Uid:\t0\t"))
}

/// One node's containers.
pub struct Node {
    pub runtime: Runtime,
    pub config: RuntimeConfig,
    dir: PathBuf,
    next: AtomicU64,
    /// Removed at the end by who made it.
    folder: Option<tempfile::TempDir>,
}

impl Node {
    /// In a new folder, with the shim as the program of this path.
    pub async fn new(shim_exe: &str) -> Self {
        static NODES: AtomicU64 = AtomicU64::new(0);
        let folder = tempfile::tempdir().unwrap();
        make_rootfs(&folder.path().join("rootfs"));
        let key = format!("test-{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        let node = Self::at(folder.path(), &key, shim_exe).await;
        node.owning(folder)
    }

    /// In a folder that another node has made: what a restarted daemon does.
    pub async fn at(dir: &Path, key: &str, shim_exe: &str) -> Self {
        let config = RuntimeConfig {
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            node_key: key.into(),
            shim_exe: shim_exe.into(),
        };
        let runtime = Runtime::open(config.clone()).await.unwrap();
        Self { runtime, config, dir: dir.into(), next: AtomicU64::new(1), folder: None }
    }

    fn owning(mut self, folder: tempfile::TempDir) -> Self {
        self.folder = Some(folder);
        self
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// A container that runs a line of shell.
    pub fn shell(&self, line: &str) -> ContainerConfig {
        self.container(&["sh", "-c", line])
    }

    pub fn container(&self, command: &[&str]) -> ContainerConfig {
        let task = TaskId(u128::from(self.next.fetch_add(1, Ordering::Relaxed)));
        let mut spec = ContainerSpec::new(ImageName::new("busybox").unwrap());
        spec.command = Some(command.iter().map(|s| (*s).into()).collect());
        ContainerConfig {
            task,
            name: format!("web.{task}"),
            spec,
            resources: Resources::default(),
            image: ImageDefaults::default(),
            rootfs: self.rootfs(),
            netns: None,
            hostname: "box".into(),
            hosts: "127.0.0.1 localhost\n".into(),
            resolv_conf: "nameserver 127.0.0.53\n".into(),
            volumes: BTreeMap::new(),
        }
    }

    /// Creates and starts.
    pub async fn run(&self, config: &ContainerConfig) {
        self.runtime.create(config).await.unwrap();
        self.runtime.start(config.task).await.unwrap();
    }

    pub async fn state(&self, task: TaskId) -> ContainerState {
        self.status(task).await.state
    }

    pub async fn status(&self, task: TaskId) -> ContainerStatus {
        self.runtime.observe().await.unwrap().remove(&task).unwrap()
    }

    /// Waits until the container has ended; its exit code.
    pub async fn exit_code(&self, task: TaskId) -> i32 {
        match self.ended(task).await {
            ContainerState::Exited { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the container has ended, by what the runtime tells of changes.
    pub async fn ended(&self, task: TaskId) -> ContainerState {
        let mut changes = self.runtime.changes();
        let wait = async {
            loop {
                match self.state(task).await {
                    state @ (ContainerState::Exited { .. } | ContainerState::Broken { .. }) => return state,
                    _ => changes.changed().await.unwrap(),
                }
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(state) => state,
            Err(_) => panic!("it does not end: {:?}", self.state(task).await),
        }
    }

    /// Runs a line of shell to its end: exit code and output.
    pub async fn output(&self, config: &ContainerConfig) -> (i32, String) {
        self.run(config).await;
        let code = self.exit_code(config.task).await;
        (code, self.log(config.task).await)
    }

    /// What the container wrote.
    pub async fn log(&self, task: TaskId) -> String {
        self.read_log(task, LogQuery::default()).await
    }

    pub async fn read_log(&self, task: TaskId, query: LogQuery) -> String {
        let mut logs = self.runtime.logs(task, query).await.unwrap();
        let mut all = Vec::new();
        while let Some(line) = tokio::time::timeout(DEADLINE, logs.next()).await.expect("the log ends") {
            all.extend(line.unwrap().bytes);
        }
        String::from_utf8(all).unwrap()
    }

    /// Waits until the container has written this.
    pub async fn await_output(&self, task: TaskId, wanted: &str) {
        let mut logs = self.runtime.logs(task, LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
        let mut seen = String::new();
        while !seen.contains(wanted) {
            match tokio::time::timeout(DEADLINE, logs.next()).await {
                Ok(Some(line)) => seen += &String::from_utf8_lossy(&line.unwrap().bytes),
                _ => panic!("{wanted:?} is not in {seen:?}"),
            }
        }
    }

    /// Removes everything and checks that nothing is left.
    pub async fn close(self) {
        for task in self.runtime.observe().await.unwrap().into_keys() {
            self.runtime.delete(task).await.unwrap();
        }
        assert_eq!(self.left(), Vec::<String>::new());
    }

    /// Control groups, mounts, processes and files of this node's containers.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let group = format!("edged-{}", self.config.node_key);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join(&group);
            if path.exists() {
                left.push(path.display().to_string());
            }
        }
        let dir = self.dir.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(dir)).map(Into::into));
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if command.contains(dir) {
                left.push(format!("{}: {command}", process.path().display()));
            }
        }
        left.extend(fs::read_dir(&self.config.run_dir).unwrap().flatten().map(|e| e.path().display().to_string()));
        left
    }
}

impl Drop for Node {
    /// A test that failed leaves nothing behind either.
    fn drop(&mut self) {
        if self.folder.is_none() {
            return;
        }
        let runtime = self.runtime.clone();
        let cleanup = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                for task in runtime.observe().await.unwrap().into_keys() {
                    let _ = runtime.delete(task).await;
                }
                let _ = runtime.remove_base().await;
            });
        });
        let _ = cleanup.join();
    }
}

fn make_rootfs(root: &Path) {
    for dir in ["bin", "etc", "tmp", "root", "var", "usr/bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for name in String::from_utf8(list).unwrap().lines().filter(|n| *n != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\nvideo:x:44:web\n").unwrap();
}

/// Waits until `done` holds, for what does not need this thread.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    wait_for(what, DEADLINE, || if done() { Ok(()) } else { Err("it is not so") }).unwrap();
}
