//! Containers, through youki's libcontainer, by one [`shim`] process each.
//!
//! The agent asks [`Runtime`] for one step at a time (create, start, signal, delete) and looks at what is there with
//! [`Runtime::observe`], which reads files and the kernel and remembers nothing: `edged` may be killed and replaced at any
//! moment, and the next one finds every container as it is. [`Runtime::changes`] says when it is worth looking again.
//!
//! ```text
//!            create            start                    ends
//! (nothing) ───────► Created ───────► Running ─────────────────► Exited ── delete ──► (nothing, logs stay) ── forget
//!                       └─────────────── shim killed ──► Broken ── delete ──►
//! ```

mod capabilities;
mod cgroup;
mod config;
mod confined;
mod devices;
mod error;
mod exec;
mod files;
mod filter;
mod health;
pub mod host;
mod log_format;
mod logs;
mod prepare;
mod process_ref;
mod seccomp;
pub mod shim;
mod spec;
mod staging;
mod user;
mod wire;

pub use cgroup::Stats;
pub use config::*;
pub use error::{RuntimeError, error_line};
pub use exec::{ExecExit, ExecInput, ExecOutput, ExecSession, Output, Terminal};
pub use log_format::{LogLine, Stream};
pub use logs::{LogQuery, Logs};

use cgroup::Hierarchies;
use error::At;
use files::{Exit, ShimConfig, Started};
use filter::Filters;
use orchestrator_core::model::{Signal, TaskId, UnixMillis};
use prepare::Places;
use process_ref::ProcessRef;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, unix::AsyncFd},
    sync::{RwLock, watch},
};
use wire::{Failure, FailureKind, Reply, Request};

/// A slow SD card under load needs seconds to page the binary in; beyond this something hangs.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
/// A killed container's shim has only to write its last output and one file.
const SHIM_END_DEADLINE: Duration = Duration::from_secs(5);

/// The containers of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: RuntimeConfig,
    hierarchies: Hierarchies,
    filters: Filters,
    changes: watch::Sender<u64>,
    /// Shims whose end is waited for.
    watched: Mutex<BTreeSet<TaskId>>,
    /// Held for writing by who removes the node's control groups, for reading by who puts something into them.
    groups: RwLock<()>,
}

impl Runtime {
    /// Opens the folders and begins to watch the containers that are there.
    ///
    /// # Errors
    /// The folders cannot be made, or the mount table cannot be read.
    pub async fn open(mut config: RuntimeConfig) -> Result<Self, RuntimeError> {
        for dir in [&mut config.state_dir, &mut config.run_dir] {
            // The shims do not run in the folder that this process runs in.
            *dir = std::path::absolute(&*dir).at("find", &*dir)?;
            fs::create_dir_all(&*dir).at("create", &*dir)?;
            // Environments hold secrets.
            fs::set_permissions(&*dir, fs::Permissions::from_mode(0o700)).at("protect", &*dir)?;
        }
        let hierarchies = Hierarchies::detect()?;
        let inner = Inner {
            config,
            hierarchies,
            filters: Filters::default(),
            changes: watch::Sender::new(0),
            watched: Mutex::default(),
            groups: RwLock::new(()),
        };
        let runtime = Self { inner: Arc::new(inner) };
        runtime.observe().await?;
        Ok(runtime)
    }

    /// Makes a container: everything is in place, its process waits to be started.
    ///
    /// # Errors
    /// [`RuntimeError::AlreadyExists`], or what is wrong with the request or the node. Nothing is left behind then.
    pub async fn create(&self, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let groups = self.inner.groups.read().await;
        let places = self.places(config.task);
        match fs::create_dir(&places.run) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::AlreadyExists(config.name.clone()));
            }
            made => made.at("create", &places.run)?,
        }
        let made = match self.prepare(config.clone()).await {
            Ok(()) => self.run_shim(config, &places).await,
            Err(error) => Err(error),
        };
        drop(groups);
        let staging = places.staging;
        let left = blocking(move || Ok(staging::clear(&staging))).await?;
        if let Some(error) = left.first() {
            // The next delete tries again.
            tracing::warn!(container = config.name, error = error_line(error), "a mount was left behind");
        }
        match &made {
            Ok(()) => self.watch(config.task),
            // What is met on the way back is less important than what `made` says, and is met again by the next delete.
            Err(_) => drop((self.delete(config.task).await, self.forget(config.task).await)),
        }
        made
    }

    async fn prepare(&self, config: ContainerConfig) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let prepare = move || prepare::prepare(&config, &inner.places(config.task), &inner.hierarchies, &inner.filters);
        blocking(prepare).await
    }

    async fn run_shim(&self, config: &ContainerConfig, places: &Places) -> Result<(), RuntimeError> {
        let log = places.run.join(files::SHIM_LOG);
        let stderr = File::create(&log).at("create", &log)?;
        let shim_exe = &self.inner.config.shim_exe;
        let mut child = tokio::process::Command::new(shim_exe)
            .arg("shim")
            .arg(&places.run)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .at("run", shim_exe)?;
        let mut answer = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            let read = stdout.read_to_string(&mut answer);
            let _ = tokio::time::timeout(CREATE_DEADLINE, read).await;
        }
        let _ = child.wait().await;
        match serde_json::from_str(&answer) {
            Ok(Reply::Failed(failure)) => Err(failure.about(&config.name)),
            Ok(_) => Ok(()),
            Err(_) => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let reason = said.lines().next().unwrap_or("it ended without a word").to_owned();
                Err(RuntimeError::Shim { container: config.name.clone(), reason })
            }
        }
    }

    /// Lets the process of a created container run. Fine if it was started before.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::NoSuchCommand`] if the program cannot be executed, or the shim is gone.
    pub async fn start(&self, task: TaskId) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let connection = inner.connect(task)?;
            match inner.ask(&connection, task, &Request::Start, &[])? {
                (Reply::Failed(failure), _) => Err(failure.about(&task.to_string())),
                _ => Ok(()),
            }
        })
        .await?;
        self.notify();
        Ok(())
    }

    /// Sends a signal to a container's first process, without waiting for what it does.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] and [`RuntimeError::NotRunning`].
    pub async fn signal(&self, task: TaskId, signal: Signal) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.signal(task, signal.number())).await
    }

    /// Asks a container to end, by its own stop signal, without waiting for it.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] and [`RuntimeError::NotRunning`].
    pub async fn stop(&self, task: TaskId) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let dir = inner.container(task)?;
            let config =
                files::read::<ShimConfig>(&dir, files::SHIM_CONFIG).at("read", dir.join(files::SHIM_CONFIG))?;
            inner.signal(task, config.map_or(Signal::TERM.number(), |c| c.stop_signal))
        })
        .await
    }

    /// Removes a container, killing what is left of it: processes, shim, control groups, files. Its logs stay until
    /// [`Runtime::forget`]. Fine if there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Teardown`] with everything that could not be removed; calling again tries again.
    pub async fn delete(&self, task: TaskId) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove(task)).await?;
        if let Ok(_groups) = self.inner.groups.try_write() {
            self.inner.hierarchies.remove_parent_if_empty(&self.inner.parent());
        }
        self.notify();
        Ok(())
    }

    /// Removes what is kept of a container that was deleted: its logs.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub async fn forget(&self, task: TaskId) -> Result<(), RuntimeError> {
        let dir = self.places(task).state;
        blocking(move || match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", dir),
            _ => Ok(()),
        })
        .await
    }

    /// Tasks of which something is kept until [`Runtime::forget`], whether or not they have a container.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn traces(&self) -> Result<BTreeSet<TaskId>, RuntimeError> {
        let dir = self.inner.config.state_dir.clone();
        blocking(move || Ok(tasks_in(&dir)?.into_iter().map(|(task, _)| task).collect())).await
    }

    /// Removes the control groups of the node and what is left in them. For taking a node down whole, after its containers.
    ///
    /// # Errors
    /// [`RuntimeError::Teardown`] with everything that could not be removed.
    pub async fn remove_base(&self) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let _groups = self.inner.groups.write().await;
        blocking(move || match inner.hierarchies.remove(&inner.parent()) {
            errors if errors.is_empty() => Ok(()),
            errors => Err(RuntimeError::Teardown { container: inner.parent(), errors }),
        })
        .await
    }

    /// All containers of the node as they are.
    ///
    /// # Errors
    /// The folder of containers cannot be read.
    pub async fn observe(&self) -> Result<BTreeMap<TaskId, ContainerStatus>, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let all = blocking(move || inner.observe()).await?;
        for (task, status) in &all {
            if matches!(status.state, ContainerState::Created { .. } | ContainerState::Running { .. }) {
                self.watch(*task);
            }
        }
        Ok(all)
    }

    /// Counts up whenever a container may have changed its state or its health.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`].
    pub async fn stats(&self, task: TaskId) -> Result<Stats, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.container(task)?;
            Ok(inner.hierarchies.stats(&inner.group(task)))
        })
        .await
    }

    fn places(&self, task: TaskId) -> Places {
        self.inner.places(task)
    }

    fn notify(&self) {
        self.inner.changes.send_modify(|n| *n += 1);
    }

    /// Checks the health of a container until its shim has ended, which it does after it has recorded the container's end;
    /// then notifies.
    fn watch(&self, task: TaskId) {
        if !self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(task) {
            return;
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            let shim = files::live_shim(&runtime.places(task).run).and_then(|shim| shim.pidfd());
            // SAFETY: an owned descriptor stays open as long as the registration that owns it.
            if let Some(fd) = shim.and_then(|fd| unsafe { AsyncFd::register(fd) }.ok()) {
                tokio::select! {
                    _ = fd.readable() => {}
                    () = health::watch(&runtime, task) => {}
                }
            }
            runtime.inner.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
            runtime.notify();
        });
    }
}

impl Inner {
    fn parent(&self) -> String {
        format!("edged-{}", self.config.node_key)
    }

    fn group(&self, task: TaskId) -> String {
        format!("{}/{task}", self.parent())
    }

    fn places(&self, task: TaskId) -> Places {
        let name = task.to_string();
        Places {
            run: self.config.run_dir.join(&name),
            staging: self.config.run_dir.join(format!("mounts-{name}")),
            state: self.config.state_dir.join(&name),
            parent: self.parent(),
        }
    }

    /// The folder of a container that exists.
    fn container(&self, task: TaskId) -> Result<PathBuf, RuntimeError> {
        let dir = self.places(task).run;
        if dir.exists() { Ok(dir) } else { Err(RuntimeError::NotFound(task.to_string())) }
    }

    fn observe(&self) -> Result<BTreeMap<TaskId, ContainerStatus>, RuntimeError> {
        let status = |dir: PathBuf| ContainerStatus {
            state: state_of(&dir),
            health: files::read(&dir, files::HEALTH).unwrap_or_default(),
        };
        Ok(tasks_in(&self.config.run_dir)?.into_iter().map(|(task, dir)| (task, status(dir))).collect())
    }

    fn signal(&self, task: TaskId, signal: u8) -> Result<(), RuntimeError> {
        let dir = self.container(task)?;
        let init = files::read::<ProcessRef>(&dir, files::INIT_PID).at("read", dir.join(files::INIT_PID))?;
        let init = init.filter(ProcessRef::is_alive).ok_or_else(|| RuntimeError::NotRunning(task.to_string()))?;
        init.signal(i32::from(signal)).at("signal", format!("/proc/{}", init.pid))
    }

    fn connect(&self, task: TaskId) -> Result<OwnedFd, RuntimeError> {
        let dir = self.container(task)?;
        let path = dir.join(files::CONTROL_SOCKET);
        connect_to(&path).map_err(|error| {
            if files::read::<Exit>(&dir, files::EXIT).is_ok_and(|e| e.is_some()) {
                RuntimeError::NotRunning(task.to_string())
            } else {
                RuntimeError::Shim { container: task.to_string(), reason: format!("cannot connect to it: {error}") }
            }
        })
    }

    fn ask(
        &self,
        connection: &OwnedFd,
        task: TaskId,
        request: &Request,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        let failed = |reason: String| RuntimeError::Shim { container: task.to_string(), reason };
        wire::send(connection, request, fds).map_err(|e| failed(format!("cannot ask it: {e}")))?;
        match wire::receive(connection) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) if self.container(task).is_ok_and(|dir| dir.join(files::EXIT).exists()) => {
                Err(RuntimeError::NotRunning(task.to_string()))
            }
            Ok(None) => Err(failed("it ended while it was asked".into())),
            Err(error) => Err(failed(format!("no answer from it: {error}"))),
        }
    }

    /// Ends everything of a container; goes on after errors.
    fn remove(&self, task: TaskId) -> Result<(), RuntimeError> {
        let Places { run: dir, staging, .. } = self.places(task);
        let mut errors = staging::clear(&staging);
        let mut note = |result: Result<(), RuntimeError>| errors.extend(result.err());
        let init = files::read::<ProcessRef>(&dir, files::INIT_PID).ok().flatten();
        let shim = files::live_shim(&dir);
        if let Some(init) = init {
            note(init.signal(libc::SIGKILL).at("kill", format!("/proc/{}", init.pid)));
        }
        if let Some(shim) = shim {
            // One that is still creating has nothing to record; one with a killed container ends by itself.
            if init.is_none() || !shim.wait(SHIM_END_DEADLINE) {
                note(shim.signal(libc::SIGKILL).at("kill", format!("/proc/{}", shim.pid)));
                shim.wait(SHIM_END_DEADLINE);
            }
        }
        errors.extend(self.hierarchies.remove(&self.group(task)));
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.extend(Err::<(), _>(error).at("remove", &dir).err())
            }
            _ => {}
        }
        if errors.is_empty() { Ok(()) } else { Err(RuntimeError::Teardown { container: task.to_string(), errors }) }
    }
}

/// Folders that are named after tasks.
fn tasks_in(dir: &Path) -> Result<Vec<(TaskId, PathBuf)>, RuntimeError> {
    let entries = fs::read_dir(dir).at("read", dir)?.flatten();
    Ok(entries.filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path()))).collect())
}

/// What the files of a container and the kernel say, in an order that holds while its shim writes.
fn state_of(dir: &Path) -> ContainerState {
    let started_at = || files::read::<Started>(dir, files::STARTED).ok().flatten().map(|s| UnixMillis(s.at));
    let exited = || {
        files::read::<Exit>(dir, files::EXIT).ok().flatten().map(|exit| ContainerState::Exited {
            code: exit.code,
            signal: exit.signal,
            oom: exit.oom,
            started_at: started_at(),
            finished_at: UnixMillis(exit.finished_at),
        })
    };
    // Whether the shim lives is asked before the last look at its files: once it is dead they do not change any more.
    let shim = files::live_shim(dir);
    if let Some(exited) = exited() {
        return exited;
    }
    let init = files::read::<ProcessRef>(dir, files::INIT_PID).ok().flatten();
    match (shim, init) {
        (Some(_), Some(init)) => match started_at() {
            Some(started_at) => ContainerState::Running { pid: init.pid, started_at },
            None => ContainerState::Created { pid: init.pid },
        },
        (Some(_), None) => ContainerState::Creating,
        // Between its folder and its shim's first file a container is being made as well, unless nobody makes it any more.
        (None, None) if !dir.join(files::SHIM_PID).exists() && is_young(dir) => ContainerState::Creating,
        (None, None) => ContainerState::Broken { why: "its shim ended before it was created".into(), pid: None },
        (None, Some(init)) if init.is_alive() => ContainerState::Broken {
            why: "its shim was killed; the process runs on without it".into(),
            pid: Some(init.pid),
        },
        (None, Some(_)) => ContainerState::Broken {
            why: "its shim and its process were killed; the exit code is lost".into(),
            pid: None,
        },
    }
}

fn is_young(dir: &Path) -> bool {
    let age = fs::metadata(dir).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    age.is_some_and(|age| age < CREATE_DEADLINE)
}

/// Connects by way of the folder, because a whole path may be longer than the 108 bytes of unix(7).
fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let dir = File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(short)?)?;
    // A shim that hangs, on a dead file system for example, does not hang who asks it.
    set_socket_timeout(&socket, Timeout::Recv, Some(CREATE_DEADLINE))?;
    Ok(socket)
}

impl Failure {
    fn about(self, container: &str) -> RuntimeError {
        let (container, reason) = (container.to_owned(), self.text);
        match self.kind {
            FailureKind::Command => RuntimeError::NoSuchCommand { container, reason },
            FailureKind::Mount => RuntimeError::BadMount { container, what: "what was asked for".into(), reason },
            FailureKind::Seccomp => RuntimeError::Seccomp { container, reason },
            FailureKind::Cgroup => RuntimeError::Cgroup { container, reason },
            FailureKind::Workdir => {
                RuntimeError::BadRequest { container, reason: format!("working directory: {reason}") }
            }
            FailureKind::NotRunning => RuntimeError::NotRunning(container),
            FailureKind::Other | FailureKind::Log => RuntimeError::Shim { container, reason },
        }
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RuntimeError::Shim {
            container: "runtime".into(),
            reason: format!("an operation was cut off: {error}"),
        }),
    }
}
