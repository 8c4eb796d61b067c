//! The seam between the API and the rest of the daemon: [`Cluster`] is what the replicated side gives, [`Remote`] the way to
//! other nodes, [`LocalNode`] what the drivers of this machine give. The daemon implements all; the tests of the API bring
//! fakes.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use orchestrator_core::{
    model::{
        Availability, ClusterId, Invalid, Live, Millis, NodeId, Platform, Protocol, Role, ServiceId, Settings, Signal,
        TaskId,
    },
    plan::{NodeRefusal, Subject, Why},
    state::{Applied, Entry, State},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, pin::Pin, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{broadcast, watch},
};

/// Items that arrive over time. Dropping it cancels the work behind it.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// Nanoseconds since the Unix epoch: the resolution of log lines and events in Docker's API. Lasts until the year 2554.
pub type UnixNanos = u64;

/// Why a request could not be served, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The named thing does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It exists already, is in use, or was changed meanwhile.
    #[error("{0}")]
    Conflict(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Credentials are missing or wrong.
    #[error("{0}")]
    Denied(String),
    /// This version cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// Not now: no leader, not a manager, registry down.
    #[error("{0}")]
    Unavailable(String),
    /// Another node leads, or none: nothing was done, and the same request may be tried again there.
    #[error("{0}")]
    NotLeader(String),
    /// Something broke on our side.
    #[error("{what}")]
    Internal {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Failure::Invalid(invalid.to_string())
    }
}

/// The replicated side of the daemon.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// The state as this node knows it; may lag behind the leader's.
    fn state(&self) -> Arc<State>;

    /// The state, at least as new as every change that was acknowledged before the call (linearizable).
    ///
    /// # Errors
    /// [`Failure::NotLeader`] when this node does not lead (any more), [`Failure::Unavailable`] when it is no manager.
    async fn read(&self) -> Result<Arc<State>, Failure>;

    /// What nodes reported; empty on nodes that do not lead.
    fn live(&self) -> Arc<Live>;

    /// Commits an entry. Returns when it is applied here.
    ///
    /// # Errors
    /// See [`ProposeError`]. A conflict is no error but [`Applied::Conflict`].
    async fn propose(&self, entry: Entry) -> Result<Applied, ProposeError>;

    /// The revision of [`Cluster::state`], each time it changes.
    fn watch(&self) -> watch::Receiver<u64>;

    /// Why the planner did not do what was asked, as text for people.
    fn reasons(&self) -> Arc<Reasons>;

    /// Makes this node the first manager of a new cluster; with [`InitRequest::force_new_cluster`], the only manager of the
    /// cluster that it is part of, with all that its store has. Returns when it serves.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when it is part of one already (and nothing is forced), [`Failure::Invalid`] for addresses
    /// that this machine does not have.
    async fn init(&self, request: InitRequest) -> Result<NodeId, Failure>;

    /// Makes this node a member of the cluster that the token belongs to. Returns when it is one; goes on behind the scenes
    /// when the caller stops waiting ([`Membership::joining`] tells).
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when it is part of one already or no manager answers, [`Failure::Denied`] when the token is
    /// refused.
    async fn join(&self, request: JoinRequest) -> Result<NodeId, Failure>;

    /// Ends this node's membership: its tasks end, its store and keys go. The API has asked already whether the cluster can
    /// do without this manager.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when it is part of none, or the cluster cannot be told and `force` is not given.
    async fn leave(&self, force: bool) -> Result<(), Failure>;

    /// Who this node is in the cluster.
    fn membership(&self) -> Membership;
}

/// Why an entry was not committed.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads; its address if known.
    #[error("this node does not lead the cluster (leader: {})", .leader.as_deref().unwrap_or("unknown"))]
    NotLeader {
        /// Address of the leader.
        leader: Option<String>,
    },
    /// This node is part of no cluster.
    #[error(
        "This node is not a swarm manager. Use \"edgectl cluster init\" (or \"docker swarm init\") to make it one and try again."
    )]
    NoCluster,
    /// The entry could not be stored, or a majority was not reached in time. It may still be applied later.
    #[error("the change was not acknowledged: {0}")]
    Unavailable(String),
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { .. } => Failure::NotLeader(error.to_string()),
            ProposeError::NoCluster | ProposeError::Unavailable(_) => Failure::Unavailable(error.to_string()),
        }
    }
}

/// A stream of bytes to another node.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The way to other nodes of the cluster.
#[async_trait]
pub trait Remote: Send + Sync + 'static {
    /// Which node requests for the cluster go to.
    fn leader(&self) -> Leader;

    /// Opens a stream to the API of another node, which answers it with [`super::server::serve_stream`]. Managers can
    /// reach every node, workers none.
    ///
    /// # Errors
    /// [`Failure::NotFound`] when no such node is a member, [`Failure::Unavailable`] when it does not answer.
    async fn dial(&self, node: NodeId) -> Result<Box<dyn Io>, Failure>;
}

/// Which node requests for the cluster go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This one.
    Own,
    /// Another one.
    Other(NodeId),
    /// None at the moment, and why, for people.
    None(String),
    /// This node is no manager: a worker, or part of no cluster.
    NotManager,
}

/// Why the planner did not do what was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// Why a task is not placed, one line per rule and the nodes that it refused.
    pub tasks: BTreeMap<TaskId, Vec<String>>,
    /// Why each node refuses a task that no node takes, by its id.
    pub refusals: BTreeMap<TaskId, Arc<BTreeMap<NodeId, NodeRefusal>>>,
    /// What holds for a service as a whole, for example a paused update.
    pub services: BTreeMap<ServiceId, Vec<String>>,
}

impl Reasons {
    /// The planner's reasons as text.
    #[must_use]
    pub fn of(plan: &BTreeMap<Subject, Why>) -> Self {
        let mut reasons = Self::default();
        for (subject, why) in plan {
            match subject {
                Subject::Task(task) => {
                    if let Why::NoNode(nodes) = why {
                        reasons.refusals.insert(*task, Arc::clone(nodes));
                    }
                    reasons.tasks.entry(*task).or_default().push(why.to_string());
                }
                Subject::Service(service) => reasons.services.entry(*service).or_default().push(why.to_string()),
            }
        }
        reasons
    }
}

/// What a new cluster is made with; what is `None` has the daemon's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitRequest {
    /// Address, with or without port, that others reach this node by.
    pub advertise_addr: Option<String>,
    /// Address, with or without port, that the daemon listens on.
    pub listen_addr: Option<String>,
    /// Whether tasks may be placed on this node.
    pub availability: Option<Availability>,
    /// The settings that differ from the defaults.
    pub settings: SettingsWish,
    /// Takes over the cluster that this node is part of, alone: the other managers are lost for good.
    pub force_new_cluster: bool,
}

/// How a node joins; what is `None` has the daemon's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinRequest {
    /// The token as the user gave it.
    pub token: String,
    /// Managers to ask, each with or without port; empty looks for one on the local network.
    pub addresses: Vec<String>,
    /// Address, with or without port, that others reach this node by.
    pub advertise_addr: Option<String>,
    /// Address, with or without port, that the daemon listens on.
    pub listen_addr: Option<String>,
    /// Whether tasks may be placed on this node.
    pub availability: Option<Availability>,
}

/// Settings of a cluster that users want changed; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsWish {
    /// Ended tasks kept per slot.
    pub task_history: Option<u32>,
    /// Time between two signs of life of a node.
    pub heartbeat: Option<Millis>,
    /// How long certificates of nodes are valid.
    pub cert_validity: Option<Millis>,
    /// Labels of the cluster.
    pub labels: Option<BTreeMap<String, String>>,
}

/// Signs of life that may be lost before a node is down, when a user sets the time between two: as in the defaults.
const MISSED_HEARTBEATS: u64 = 5;

impl SettingsWish {
    /// These settings with the wishes fulfilled; the time after which a node is down goes with the heartbeat.
    #[must_use]
    pub fn over(self, settings: Settings) -> Settings {
        let heartbeat = self.heartbeat.filter(|wanted| *wanted != settings.heartbeat);
        Settings {
            task_history: self.task_history.unwrap_or(settings.task_history),
            heartbeat: heartbeat.unwrap_or(settings.heartbeat),
            down_after: heartbeat
                .map_or(settings.down_after, |every| Millis(every.0.saturating_mul(MISSED_HEARTBEATS))),
            cert_validity: self.cert_validity.unwrap_or(settings.cert_validity),
            labels: self.labels.unwrap_or(settings.labels),
        }
    }
}

/// Who this node is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The cluster, if this node is part of one.
    pub cluster: Option<ClusterId>,
    /// This node's identity in it.
    pub node: Option<NodeId>,
    /// This node's role in it.
    pub role: Option<Role>,
    /// The node that leads, if known.
    pub leader: Option<NodeId>,
    /// Address of this node for others, without port; empty if not known.
    pub address: String,
    /// Managers and whether they answer: address with port.
    pub managers: BTreeMap<NodeId, ManagerPeer>,
    /// What keeps the node from taking part, for people.
    pub error: Option<String>,
    /// A join or an initialisation is under way.
    pub joining: bool,
}

/// Another manager, or this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerPeer {
    /// Address and port of its control endpoint.
    pub address: String,
    /// Whether it answers; `None` if not known.
    pub reachable: Option<bool>,
}

/// The drivers of this machine.
#[async_trait]
pub trait LocalNode: Send + Sync + 'static {
    /// The machine.
    async fn info(&self) -> Result<MachineInfo, Failure>;
    /// What could keep the node from working, and how to mend it.
    async fn doctor(&self) -> Vec<Finding>;
    /// Network interfaces and how packets are taken from them.
    async fn interfaces(&self) -> Result<Vec<Interface>, Failure>;
    /// Bytes used on disk.
    async fn disk_usage(&self) -> Result<DiskUsage, Failure>;
    /// What happens on this node from now on: containers and images. Slow receivers lose the oldest.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// All containers of this node, ended ones that are still kept included.
    async fn containers(&self) -> Result<Vec<Container>, Failure>;
    /// Log lines of one task. Without `follow` it ends after the last line; with it, when the container has ended.
    ///
    /// # Errors
    /// [`Failure::NotFound`] when this node has no log of the task (yet).
    async fn logs(&self, task: TaskId, query: LogQuery) -> Result<BoxStream<Result<LogLine, Failure>>, Failure>;
    /// One reading of the counters of a running container.
    async fn stats(&self, task: TaskId) -> Result<Stats, Failure>;
    /// Sends the stop signal, then SIGKILL after the grace period; `None` takes the container's own. Returns when it ended.
    async fn stop(&self, task: TaskId, signal: Option<Signal>, grace: Option<Millis>) -> Result<(), Failure>;
    /// Sends a signal.
    async fn kill(&self, task: TaskId, signal: Signal) -> Result<(), Failure>;

    /// Prepares a process in a running container; returns the exec's id.
    async fn exec_create(&self, task: TaskId, spec: ExecSpec) -> Result<String, Failure>;
    /// Starts it once. `size` is the terminal's, if it has one.
    async fn exec_start(&self, id: &str, size: Option<TerminalSize>) -> Result<ExecIo, Failure>;
    /// Tells the terminal its size.
    async fn exec_resize(&self, id: &str, size: TerminalSize) -> Result<(), Failure>;
    /// What became of it.
    async fn exec_inspect(&self, id: &str) -> Result<ExecState, Failure>;

    /// All images of this node.
    async fn images(&self) -> Result<Vec<Image>, Failure>;
    /// One image by id, id prefix, name or digest.
    async fn image(&self, name: &str) -> Result<Image, Failure>;
    /// Fetches an image. The stream ends with the pull; an `Err` item says why it failed.
    async fn image_pull(&self, request: PullRequest) -> Result<BoxStream<Result<Progress, Failure>>, Failure>;
    /// Sends an image to its registry.
    async fn image_push(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure>;
    /// Reads a `docker save` or OCI archive.
    async fn image_load(
        &self,
        archive: BoxStream<std::io::Result<Bytes>>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure>;
    /// Writes images as an archive that [`LocalNode::image_load`] reads.
    async fn image_save(&self, names: Vec<String>) -> Result<BoxStream<std::io::Result<Bytes>>, Failure>;
    /// Removes a name, and the image with its last name.
    async fn image_remove(&self, name: &str, force: bool) -> Result<Vec<ImageRemoved>, Failure>;
    /// Removes images that no container uses: those without a name, or all of them.
    async fn image_prune(&self, all: bool) -> Result<ImagePruned, Failure>;
    /// Gives an image another name.
    async fn image_tag(&self, name: &str, new_name: &str) -> Result<(), Failure>;
    /// Asks the registry which content a name stands for.
    async fn resolve(&self, name: &str, credentials: Option<Credentials>) -> Result<Resolved, Failure>;
    /// Tries credentials at their registry.
    async fn login(&self, credentials: Credentials) -> Result<(), Failure>;
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineInfo {
    /// Host name.
    pub hostname: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release, for example `6.12.20`.
    pub kernel: String,
    /// For people, for example `Debian GNU/Linux 12 (bookworm)`.
    pub os_name: String,
    /// `VERSION_ID` of os-release(5).
    pub os_version: String,
    /// Platform in Go's words.
    pub platform: Platform,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Version of `edged`.
    pub version: String,
    /// Commit that it was built from; empty if not known.
    pub commit: String,
    /// Folder of all its files.
    pub data_dir: String,
    /// Labels from the node's configuration.
    pub labels: BTreeMap<String, String>,
    /// Things a user should know.
    pub warnings: Vec<String>,
}

/// One thing that the node needs, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, for example `cgroup memory controller`.
    pub what: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub why: String,
    /// What to do about it; empty when nothing needs doing.
    pub fix: String,
}

/// A network interface and how packets are taken from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Kernel driver; empty if it tells none.
    pub driver: String,
    /// The attachment in use, for example `xdp-native`, `tcx`, `clsact`.
    pub attachment: String,
    /// Why not a better one; empty if it is the best.
    pub why: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
}

/// Bytes used on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Image content, layers shared by images counted once.
    pub images_bytes: u64,
    /// Part of it that no container uses.
    pub images_reclaimable_bytes: u64,
    /// Writable layers of containers.
    pub containers_bytes: u64,
    /// Log files of containers.
    pub logs_bytes: u64,
    /// Volumes: name and bytes.
    pub volumes: BTreeMap<String, u64>,
    /// The daemon's own state.
    pub state_bytes: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: UnixNanos,
    /// Docker's type: `container`, `image`, `service`, `node`.
    pub kind: &'static str,
    /// Docker's action, for example `start`, `die`, `pull`, `update`.
    pub action: String,
    /// `local` or `swarm`.
    pub scope: &'static str,
    /// Id of the object.
    pub id: String,
    /// Name, image, exit code and labels.
    pub attributes: BTreeMap<String, String>,
}

/// A container of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its task; the container's id is the task's.
    pub task: TaskId,
    /// For example `web.1.<task id>`.
    pub name: String,
    /// The service.
    pub service: ServiceId,
    /// Name of the service.
    pub service_name: String,
    /// The image as it was asked for.
    pub image: String,
    /// The content it runs, `sha256:…`; empty if not known.
    pub image_id: String,
    /// The whole command line.
    pub command: Vec<String>,
    /// How far it is.
    pub state: ContainerState,
    /// Process id on the node, while it runs.
    pub pid: Option<u32>,
    /// When it was made.
    pub created: UnixNanos,
    /// When its process started.
    pub started: Option<UnixNanos>,
    /// When its process ended.
    pub finished: Option<UnixNanos>,
    /// Exit code, once it ended.
    pub exit_code: Option<i32>,
    /// Whether it was killed for memory.
    pub oom_killed: bool,
    /// State of the health check, if it has one.
    pub health: Option<Health>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports that answer for it.
    pub ports: Vec<ContainerPort>,
    /// Environment, as the process got it.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// User.
    pub user: String,
    /// Host name inside.
    pub hostname: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What went wrong, for people.
    pub error: String,
}

/// States of a container, in Docker's sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
}

/// States of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No check counted yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// Too many checks failed.
    Unhealthy,
}

/// A port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Port inside.
    pub target: u16,
    /// Port on the nodes, if published.
    pub published: Option<u16>,
}

/// Which log lines are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Goes on with new lines.
    pub follow: bool,
    /// Only the last lines; `None` is all.
    pub tail: Option<u64>,
    /// Not before.
    pub since: Option<UnixNanos>,
    /// Not after.
    pub until: Option<UnixNanos>,
    /// Lines of standard output.
    pub stdout: bool,
    /// Lines of standard error.
    pub stderr: bool,
}

/// Standard output or standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// One line of a log, or a part of one that was longer than the log's limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub at: UnixNanos,
    /// Where it was written.
    pub stream: Stdio,
    /// The bytes, with the line end if it had one.
    pub bytes: Bytes,
}

/// Counters of a container, from its cgroups and network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// When they were read.
    pub at: UnixNanos,
    /// CPU time used, in nanoseconds.
    pub cpu_nanos: u64,
    /// Part of it in user mode.
    pub cpu_user_nanos: u64,
    /// Part of it in the kernel.
    pub cpu_system_nanos: u64,
    /// CPU time used by the whole machine, in nanoseconds (proc(5) `stat`).
    pub machine_cpu_nanos: u64,
    /// Processors of the machine.
    pub online_cpus: u32,
    /// Memory used, page cache included.
    pub memory_bytes: u64,
    /// Part of it that is page cache and can be given back (`inactive_file`).
    pub memory_inactive_file_bytes: u64,
    /// Limit, or the machine's memory.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Their limit; 0 is none.
    pub pids_limit: u64,
    /// Received by interface: bytes and packets, then sent: bytes and packets.
    pub networks: BTreeMap<String, NetworkStats>,
    /// Bytes read from block devices.
    pub block_read_bytes: u64,
    /// Bytes written to block devices.
    pub block_write_bytes: u64,
}

/// Counters of an interface, seen from inside the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

/// A process to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Additional environment.
    pub env: Vec<String>,
    /// Working directory; `None` is the container's.
    pub workdir: Option<String>,
    /// User; `None` is the container's.
    pub user: Option<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether standard input is connected.
    pub stdin: bool,
    /// All capabilities.
    pub privileged: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// Input and output of a started process.
pub struct ExecIo {
    /// Its standard input; shut down to end it.
    pub stdin: Pin<Box<dyn AsyncWrite + Send>>,
    /// Its output, until it ended and all was read. With a terminal everything is [`Stdio::Out`].
    pub output: BoxStream<std::io::Result<(Stdio, Bytes)>>,
}

/// What became of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecState {
    /// The container.
    pub task: TaskId,
    /// What it is.
    pub spec: ExecSpec,
    /// Whether it runs.
    pub running: bool,
    /// Its exit code, once it ended.
    pub exit_code: Option<i32>,
    /// Process id on the node.
    pub pid: Option<u32>,
}

/// An image of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration, `sha256:…`.
    pub id: String,
    /// Names with tag, as users write them: `nginx:latest`.
    pub tags: Vec<String>,
    /// Names with digest: `nginx@sha256:…`.
    pub digests: Vec<String>,
    /// When it was built.
    pub created: UnixNanos,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Bytes of each layer on disk, lowest first.
    pub layer_sizes: Vec<u64>,
    /// Platform.
    pub platform: Platform,
    /// Containers that use it.
    pub containers: u32,
    /// Its OCI image configuration document (image-spec `config.md`).
    pub config: serde_json::Value,
}

/// An image to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullRequest {
    /// Name with tag or digest.
    pub name: String,
    /// Platform other than the node's.
    pub platform: Option<Platform>,
    /// For the registry.
    pub credentials: Option<Credentials>,
}

/// Credentials for a registry, in the form of Docker's `X-Registry-Auth`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "lowercase")]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Registry that they are for.
    pub serveraddress: String,
    /// OAuth2 refresh token, instead of a password.
    pub identitytoken: String,
    /// Bearer token, sent as it is.
    pub registrytoken: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How far a transfer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Short id of the layer; `None` for the whole.
    pub id: Option<String>,
    /// Docker's words: `Downloading`, `Extracting`, `Pull complete`, …
    pub status: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all; 0 if not known or not meant.
    pub total: u64,
}

/// What an image removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRemoved {
    /// A name was taken away.
    Untagged(String),
    /// Content was deleted.
    Deleted(String),
}

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePruned {
    /// What was removed.
    pub removed: Vec<ImageRemoved>,
    /// Bytes freed.
    pub reclaimed_bytes: u64,
}

/// What a name stands for at its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Digest of the manifest or index.
    pub digest: String,
    /// Media type of it.
    pub media_type: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Platforms it has.
    pub platforms: Vec<Platform>,
}
