//! A cluster in memory, for tests: the real planner over a state that nobody stores and all nodes share, and nodes whose
//! containers start at once. What an image's name says happens to it: `broken` fails, `nginx` runs. Nodes dial each other
//! through pipes.

use super::{
    App,
    node::{Cluster, *},
    server,
};
use crate::pki::{Authority, BadToken, Token};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use orchestrator_core::{
    intent::{self, Refusal},
    model::*,
    plan,
    state::{Applied, Entry, State, Stored},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::AsyncReadExt,
    sync::{broadcast, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

/// The digest that the fake registry gives every image.
pub(crate) const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// How often the fake daemon looks at what time alone changes.
const TICK: Duration = Duration::from_millis(10);

pub(crate) fn now() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

/// A served fake. Dropping it stops the server.
pub(crate) struct Fake {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) socket: PathBuf,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: Option<tokio::task::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Fake {
    /// A node that is part of no cluster.
    pub(crate) async fn bare() -> Self {
        Self::serve(Daemon::new(Arc::default(), 0))
    }

    fn serve(daemon: Daemon) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let daemon = Arc::new(daemon);
        let shutdown = CancellationToken::new();
        let parts = (Arc::clone(&daemon), Arc::clone(&daemon), Arc::clone(&daemon));
        let app = App::new(parts.0, parts.1, parts.2, now, shutdown.clone());
        daemon.shared.inner.lock().unwrap().apps.insert(daemon.id, app.clone());
        let listener = server::bind(&socket).unwrap();
        let server = tokio::spawn(server::serve(listener, app));
        let (ticking, stop) = (Arc::clone(&daemon), shutdown.clone());
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            while !stop.is_cancelled() {
                tick.tick().await;
                ticking.shared.settle();
            }
        });
        Self { daemon, socket, shutdown, server: Some(server), _folder: folder }
    }

    /// A node that is its cluster's manager.
    pub(crate) async fn cluster() -> Self {
        let fake = Self::bare().await;
        fake.daemon.init(InitRequest::default()).await.unwrap();
        fake
    }

    /// Another node beside this one, which is part of no cluster yet.
    pub(crate) fn neighbour(&self) -> Self {
        let number = self.daemon.shared.inner.lock().unwrap().apps.len() as u32;
        Self::serve(Daemon::new(Arc::clone(&self.daemon.shared), number))
    }

    /// Another node of the cluster.
    pub(crate) fn joined(&self, role: Role) -> Self {
        let fake = self.neighbour();
        fake.daemon.enter(role, Availability::Active, Settings::default()).unwrap();
        fake
    }

    /// From now on this node leads, or none.
    pub(crate) fn set_leader(&self, leader: Option<&Fake>) {
        self.daemon.shared.inner.lock().unwrap().leader = leader.map(|fake| fake.daemon.id);
    }

    /// Streams to this node open, but nobody answers them.
    pub(crate) fn mute(&self) {
        self.daemon.shared.inner.lock().unwrap().mute.insert(self.daemon.id);
    }

    /// Whether the other nodes reach this one.
    pub(crate) fn cut(&self, cut: bool) {
        let mut inner = self.daemon.shared.inner.lock().unwrap();
        let id = self.daemon.id;
        if cut {
            inner.cut.insert(id)
        } else {
            inner.cut.remove(&id)
        };
        if let Some(live) = inner.live.nodes.get_mut(&id) {
            live.ready = !cut;
        }
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// One request; status, headers and body.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &str) -> (u16, hyper::HeaderMap, String) {
        exchange(tokio::net::UnixStream::connect(&self.socket).await.unwrap(), method, path, body).await
    }

    /// What another node answers this one; status and body.
    pub(crate) async fn ask_as_node(&self, other: &Fake, path: &str) -> (u16, String) {
        let stream = self.daemon.dial(other.daemon.id).await.unwrap();
        let (status, _, body) = exchange(stream, "GET", path, "").await;
        (status, body)
    }
}

async fn exchange(stream: impl Io + 'static, method: &str, path: &str, body: &str) -> (u16, hyper::HeaderMap, String) {
    use http_body_util::BodyExt;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "edged")
        .body(http_body_util::Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&bytes).into_owned())
}

/// One node.
pub(crate) struct Daemon {
    shared: Arc<Shared>,
    id: NodeId,
    /// `pi1`, `pi2`, …
    hostname: String,
    address: String,
    member: AtomicBool,
    events: broadcast::Sender<Event>,
    execs: Mutex<Vec<FakeExec>>,
    images: Mutex<Vec<Image>>,
    /// Bytes that `image load` received.
    pub(crate) loaded: Mutex<usize>,
}

/// What the nodes have in common.
struct Shared {
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { inner: Mutex::default(), revision: watch::channel(0).0 }
    }
}

#[derive(Default)]
struct Inner {
    state: State,
    live: Live,
    reasons: Reasons,
    leader: Option<NodeId>,
    apps: BTreeMap<NodeId, App>,
    cut: BTreeSet<NodeId>,
    mute: BTreeSet<NodeId>,
}

struct FakeExec {
    task: TaskId,
    spec: ExecSpec,
    exit_code: Arc<Mutex<Option<i32>>>,
    size: Arc<Mutex<Option<TerminalSize>>>,
}

impl Shared {
    /// Plans and lets the nodes do as planned until nothing changes.
    fn settle(&self) {
        let mut inner = self.inner.lock().unwrap();
        let before = inner.state.revision;
        for _ in 0..50 {
            let Inner { state, live, .. } = &mut *inner;
            for task in state.tasks.values().filter(|task| task.outcome.is_none()) {
                let Some(placed) = &task.placed else { continue };
                let Some(known) = live.nodes.get_mut(&placed.node) else { continue };
                let broken =
                    state.task_spec(task).is_some_and(|spec| spec.container.image.as_str().starts_with("broken"));
                let (now_in, message) = match (task.desired, broken) {
                    (Desired::Run, true) => (TaskState::Rejected, "no such image: broken"),
                    (Desired::Run, false) => (TaskState::Running, ""),
                    _ => (TaskState::Shutdown, ""),
                };
                let ended = now_in == TaskState::Shutdown;
                let report = TaskReport {
                    state: now_in,
                    since: now(),
                    message: message.into(),
                    pid: (now_in == TaskState::Running).then_some(4242),
                    exit_code: ended.then_some(0),
                };
                match known.report.tasks.get(&task.id) {
                    Some(old) if old.state == now_in => {}
                    _ => drop(known.report.tasks.insert(task.id, report)),
                }
            }
            for (id, known) in &mut live.nodes {
                known.report.raft = state.nodes.get(id).and_then(|node| node.raft_id);
                known.report.tasks.retain(|id, _| state.tasks.contains_key(id));
                known.report.revision = state.revision;
            }
            if state.cluster.is_none() {
                return;
            }
            let plan = plan::plan(state, live, now());
            inner.reasons = Reasons::of(&plan.reasons);
            let Some(entry) = plan.entry else { break };
            let index = inner.state.revision + 1;
            assert!(matches!(inner.state.apply(index, &entry), Applied::Done { .. }));
        }
        if inner.state.revision != before {
            self.revision.send_replace(inner.state.revision);
        }
    }
}

impl Daemon {
    fn new(shared: Arc<Shared>, number: u32) -> Self {
        let daemon = Self {
            shared,
            id: NodeId::derive(7, 0, number),
            hostname: format!("pi{}", number + 1),
            address: format!("10.0.0.{}", number + 5),
            member: AtomicBool::new(false),
            events: broadcast::channel(64).0,
            execs: Mutex::new(Vec::new()),
            images: Mutex::new(Vec::new()),
            loaded: Mutex::new(0),
        };
        daemon.images.lock().unwrap().push(image("nginx:latest"));
        daemon
    }

    fn node(&self, role: Role, availability: Availability) -> Node {
        Node {
            id: self.id,
            hostname: self.hostname.clone(),
            role,
            raft_id: None,
            availability,
            labels: BTreeMap::new(),
            description: NodeDescription {
                platform: Some(Platform { os: "linux".into(), arch: "arm64".into(), variant: String::new() }),
                nano_cpus: 4_000_000_000,
                memory_bytes: 4 << 30,
                version: "0.1.0".into(),
                labels: BTreeMap::new(),
                address: self.address.clone(),
                port: 2377,
            },
            created_at: now(),
        }
    }

    /// Becomes a member of the cluster that the nodes share, founding it if there is none.
    fn enter(&self, role: Role, availability: Availability, settings: Settings) -> Result<(), Refusal> {
        let mut inner = self.shared.inner.lock().unwrap();
        let node = self.node(role, availability);
        let description = node.description.clone();
        let entry = if inner.state.cluster.is_none() {
            inner.leader = Some(self.id);
            let ca = Authority::create(ClusterId(7), now()).unwrap();
            let tokens = Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) };
            intent::init_cluster(&inner.state, ClusterId(7), node, ca, tokens, settings, now())?
        } else {
            intent::join_node(&inner.state, node, role, now())?.unwrap()
        };
        let index = inner.state.revision + 1;
        assert!(matches!(inner.state.apply(index, &entry), Applied::Done { .. }));
        let report = Report {
            node: self.id,
            term: 1,
            revision: index,
            description,
            raft: Some(1),
            lost_log: None,
            tasks: BTreeMap::new(),
            held_ports: Vec::new(),
        };
        inner.live.nodes.insert(self.id, NodeLive { ready: true, since: now(), report });
        self.member.store(true, Ordering::Relaxed);
        self.shared.revision.send_replace(index);
        Ok(())
    }

    fn is_member(&self) -> bool {
        self.member.load(Ordering::Relaxed)
    }

    fn check_outside(&self) -> Result<(), Failure> {
        if self.is_member() {
            return Err(Failure::Unavailable("This node is already part of a swarm".into()));
        }
        Ok(())
    }

    fn leads(&self) -> bool {
        self.shared.inner.lock().unwrap().leader == Some(self.id)
    }

    pub(crate) fn settings(&self) -> Settings {
        self.state().cluster.as_ref().unwrap().settings.clone()
    }

    pub(crate) fn emit(&self, action: &str) {
        let attributes = BTreeMap::from([("name".into(), "web.1".into()), ("image".into(), "nginx".into())]);
        let at = now().0 * 1_000_000;
        let event =
            Event { at, kind: "container", action: action.into(), scope: "local", id: "c0ffee".into(), attributes };
        self.events.send(event).unwrap();
    }
}

fn image(name: &str) -> Image {
    Image {
        id: "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb".into(),
        tags: vec![name.into()],
        digests: vec![format!("{}@{DIGEST}", name.split(':').next().unwrap())],
        created: (now().0 - 3 * 86_400_000) * 1_000_000,
        size_bytes: 187_000_000,
        layer_sizes: vec![187_000_000],
        platform: Platform { os: "linux".into(), arch: "arm64".into(), variant: String::new() },
        containers: 0,
        config: serde_json::json!({
            "config": { "Env": ["PATH=/bin"], "Cmd": ["nginx"], "Labels": { "a": "b" } },
            "rootfs": { "type": "layers", "diff_ids": [DIGEST] },
            "history": [{ "created": "2024-01-01T00:00:00Z", "created_by": "COPY . /" }],
        }),
    }
}

#[async_trait]
impl Cluster for Daemon {
    fn state(&self) -> Arc<State> {
        let inner = self.shared.inner.lock().unwrap();
        let role = inner.state.nodes.get(&self.id).map(|node| node.role);
        Arc::new(if role == Some(Role::Manager) { inner.state.clone() } else { State::default() })
    }
    async fn read(&self) -> Result<Arc<State>, Failure> {
        if !self.leads() {
            return Err(Failure::NotLeader("another node leads".into()));
        }
        Ok(self.state())
    }
    fn live(&self) -> Arc<Live> {
        let leads = self.leads();
        let inner = self.shared.inner.lock().unwrap();
        Arc::new(if leads { inner.live.clone() } else { Live::default() })
    }
    async fn propose(&self, entry: Entry) -> Result<Applied, ProposeError> {
        if !self.leads() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let applied = {
            let mut inner = self.shared.inner.lock().unwrap();
            let index = inner.state.revision + 1;
            let applied = inner.state.apply(index, &entry);
            self.shared.revision.send_replace(index);
            applied
        };
        self.shared.settle();
        Ok(applied)
    }
    fn watch(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }
    fn reasons(&self) -> Arc<Reasons> {
        Arc::new(self.shared.inner.lock().unwrap().reasons.clone())
    }
    async fn init(&self, request: InitRequest) -> Result<NodeId, Failure> {
        if request.force_new_cluster {
            let mut inner = self.shared.inner.lock().unwrap();
            let entry = intent::force_new_cluster(&inner.state, self.id, 1, now()).unwrap();
            let index = inner.state.revision + 1;
            inner.state.apply(index, &entry);
            inner.leader = Some(self.id);
            return Ok(self.id);
        }
        self.check_outside()?;
        let settings = request.settings.over(Settings::default());
        self.enter(Role::Manager, request.availability.unwrap_or(Availability::Active), settings)
            .map_err(|refusal| Failure::Invalid(refusal.to_string()))?;
        Ok(self.id)
    }
    async fn join(&self, request: JoinRequest) -> Result<NodeId, Failure> {
        self.check_outside()?;
        let token: Token = request.token.parse().map_err(|error: BadToken| Failure::Invalid(error.to_string()))?;
        let tokens = self.shared.inner.lock().unwrap().state.cluster.as_ref().map(|cluster| cluster.tokens.clone());
        let role = match tokens {
            Some(tokens) if tokens.worker == Secret16(token.secret) => Role::Worker,
            Some(tokens) if tokens.manager == Secret16(token.secret) => Role::Manager,
            _ => return Err(Failure::Denied("the token is refused".into())),
        };
        self.enter(role, request.availability.unwrap_or(Availability::Active), Settings::default())
            .map_err(|refusal| Failure::Denied(refusal.to_string()))?;
        Ok(self.id)
    }
    async fn leave(&self, _force: bool) -> Result<(), Failure> {
        if !self.member.swap(false, Ordering::Relaxed) {
            return Err(Failure::Unavailable("This node is not part of a swarm".into()));
        }
        let mut inner = self.shared.inner.lock().unwrap();
        inner.live.nodes.get_mut(&self.id).unwrap().ready = false;
        inner.leader = inner.leader.filter(|leader| *leader != self.id);
        Ok(())
    }
    fn membership(&self) -> Membership {
        let inner = self.shared.inner.lock().unwrap();
        if !self.is_member() {
            return Membership::default();
        }
        let managers = inner.state.nodes.values().filter(|node| node.role == Role::Manager);
        let managers = managers.map(|node| {
            let reachable = inner.live.nodes.get(&node.id).is_some_and(|live| live.ready);
            let address = format!("{}:2377", node.description.address);
            (node.id, ManagerPeer { address, reachable: Some(reachable) })
        });
        Membership {
            cluster: inner.state.cluster.as_ref().map(|cluster| cluster.id),
            node: Some(self.id),
            role: inner.state.nodes.get(&self.id).map(|node| node.role),
            leader: inner.leader,
            address: self.address.clone(),
            managers: managers.collect(),
            error: None,
            joining: false,
        }
    }
}

#[async_trait]
impl Remote for Daemon {
    fn leader(&self) -> Leader {
        let inner = self.shared.inner.lock().unwrap();
        let role = inner.state.nodes.get(&self.id).map(|node| node.role);
        match inner.leader {
            _ if !self.is_member() || role != Some(Role::Manager) => Leader::NotManager,
            Some(leader) if leader == self.id => Leader::Own,
            Some(leader) => Leader::Other(leader),
            None => Leader::None("nobody was elected".into()),
        }
    }
    async fn dial(&self, node: NodeId) -> Result<Box<dyn Io>, Failure> {
        let inner = self.shared.inner.lock().unwrap();
        if inner.cut.contains(&node) || inner.cut.contains(&self.id) {
            return Err(Failure::Unavailable(format!("node {node} does not answer")));
        }
        let app = inner.apps.get(&node).ok_or_else(|| Failure::NotFound(format!("node {node} not found")))?;
        let from = inner.state.nodes[&self.id].role;
        let (near, far) = tokio::io::duplex(16 << 10);
        if inner.mute.contains(&node) {
            tokio::spawn(async move {
                let _open = far;
                std::future::pending::<()>().await;
            });
            return Ok(Box::new(near));
        }
        tokio::spawn(server::serve_stream(app.clone(), far, from));
        Ok(Box::new(near))
    }
}

#[async_trait]
impl LocalNode for Daemon {
    async fn info(&self) -> Result<MachineInfo, Failure> {
        Ok(MachineInfo {
            hostname: self.hostname.clone(),
            cpus: 4,
            memory_bytes: 4 << 30,
            kernel: "6.12.20".into(),
            os_name: "Debian GNU/Linux 12 (bookworm)".into(),
            os_version: "12".into(),
            platform: Platform { os: "linux".into(), arch: "arm64".into(), variant: String::new() },
            cgroup_version: 2,
            version: "0.1.0".into(),
            commit: "abcdef0".into(),
            data_dir: "/var/lib/edged".into(),
            labels: BTreeMap::new(),
            warnings: Vec::new(),
        })
    }
    async fn doctor(&self) -> Vec<Finding> {
        let finding =
            |what: &str, ok, why: &str, fix: &str| Finding { what: what.into(), ok, why: why.into(), fix: fix.into() };
        vec![
            finding("overlayfs", true, "found", ""),
            finding("cgroup memory controller", false, "not enabled", "add cgroup_enable=memory to cmdline.txt"),
        ]
    }
    async fn interfaces(&self) -> Result<Vec<Interface>, Failure> {
        Ok(vec![Interface {
            name: "eth0".into(),
            driver: "macb".into(),
            attachment: "tcx".into(),
            why: "the driver has no native XDP".into(),
            addresses: vec![format!("{}/24", self.address)],
        }])
    }
    async fn disk_usage(&self) -> Result<DiskUsage, Failure> {
        Ok(DiskUsage { images_bytes: 187_000_000, logs_bytes: 1200, ..DiskUsage::default() })
    }
    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
    async fn containers(&self) -> Result<Vec<Container>, Failure> {
        let inner = self.shared.inner.lock().unwrap();
        let state = &inner.state;
        let tasks = state.tasks.values().filter(|task| task.placed.as_ref().is_some_and(|at| at.node == self.id));
        Ok(tasks
            .map(|task| {
                let spec = state.task_spec(task).unwrap();
                let service = &state.services[&task.service];
                let created = task.created_at.0 * 1_000_000;
                Container {
                    task: task.id,
                    name: state.task_name(task),
                    service: task.service,
                    service_name: service.name.to_string(),
                    image: spec.container.image.to_string(),
                    image_id: DIGEST.into(),
                    command: vec!["nginx".into(), "-g".into(), "daemon off;".into()],
                    state: if task.outcome.is_none() { ContainerState::Running } else { ContainerState::Exited },
                    pid: Some(4242),
                    created,
                    started: Some(created),
                    finished: task.outcome.as_ref().map(|outcome| outcome.at.0 * 1_000_000),
                    exit_code: task.outcome.as_ref().map(|outcome| outcome.exit_code.unwrap_or(0)),
                    oom_killed: false,
                    health: None,
                    addresses: vec![IpAddr::V4(Ipv4Addr::new(172, 18, 0, 2))],
                    ports: service
                        .ports
                        .iter()
                        .map(|port| ContainerPort {
                            protocol: port.protocol,
                            target: port.target,
                            published: Some(port.published),
                        })
                        .collect(),
                    env: vec!["PATH=/bin".into()],
                    workdir: "/".into(),
                    user: String::new(),
                    hostname: "web".into(),
                    tty: spec.container.tty,
                    labels: spec.container.labels.clone(),
                    error: String::new(),
                }
            })
            .collect())
    }
    async fn logs(&self, task: TaskId, query: LogQuery) -> Result<BoxStream<Result<LogLine, Failure>>, Failure> {
        let state = self.shared.inner.lock().unwrap().state.clone();
        let here = |task: &&Stored<Task>| task.placed.as_ref().is_some_and(|at| at.node == self.id);
        let Some(found) = state.tasks.get(&task).filter(here) else {
            return Err(Failure::NotFound("no log".into()));
        };
        let created = found.created_at.0 * 1_000_000;
        let line = |at: u64, stream, text: String| Ok(LogLine { at, stream, bytes: Bytes::from(text) });
        let mut lines = vec![
            line(created, Stdio::Out, format!("hello from {}\n", state.task_name(found))),
            line(created + 1_000_000_000, Stdio::Err, "careful\n".into()),
        ];
        if let Some(tail) = query.tail {
            lines = lines.split_off(lines.len().saturating_sub(tail as usize));
        }
        let lines = stream::iter(lines);
        Ok(if query.follow && found.outcome.is_none() {
            Box::pin(lines.chain(stream::pending()))
        } else {
            Box::pin(lines)
        })
    }
    async fn stats(&self, _task: TaskId) -> Result<Stats, Failure> {
        let at = now().0 * 1_000_000;
        Ok(Stats {
            at,
            cpu_nanos: at / 4,
            machine_cpu_nanos: at * 4,
            online_cpus: 4,
            memory_bytes: 30 << 20,
            memory_inactive_file_bytes: 10 << 20,
            memory_limit_bytes: 100 << 20,
            pids: 3,
            networks: BTreeMap::from([(
                "eth0".into(),
                NetworkStats { rx_bytes: 1200, tx_bytes: 3400, ..Default::default() },
            )]),
            ..Stats::default()
        })
    }
    async fn stop(&self, _task: TaskId, _signal: Option<Signal>, _grace: Option<Millis>) -> Result<(), Failure> {
        Ok(())
    }
    async fn kill(&self, _task: TaskId, _signal: Signal) -> Result<(), Failure> {
        Ok(())
    }
    async fn exec_create(&self, task: TaskId, spec: ExecSpec) -> Result<String, Failure> {
        let mut execs = self.execs.lock().unwrap();
        execs.push(FakeExec { task, spec, exit_code: Arc::default(), size: Arc::default() });
        Ok(format!("exec{}", execs.len() - 1))
    }
    /// `cat` gives back what it reads, `size` tells the terminal's size when it gets a line, anything else writes its
    /// name to both streams; the exit code is 7.
    async fn exec_start(&self, id: &str, size: Option<TerminalSize>) -> Result<ExecIo, Failure> {
        let (spec, exit_code, shared) = {
            let execs = self.execs.lock().unwrap();
            let exec = &execs[index(id)?];
            *exec.size.lock().unwrap() = size;
            (exec.spec.clone(), Arc::clone(&exec.exit_code), Arc::clone(&exec.size))
        };
        let (stdin, mut process) = tokio::io::duplex(4096);
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            match spec.command[0].as_str() {
                "cat" => {
                    while let Ok(length @ 1..) = process.read(&mut buffer).await {
                        let _ = sender.send(Ok((Stdio::Out, Bytes::copy_from_slice(&buffer[..length])))).await;
                    }
                }
                "size" => {
                    let _ = process.read(&mut buffer).await;
                    let size = *shared.lock().unwrap();
                    let _ = sender.send(Ok((Stdio::Out, Bytes::from(format!("{size:?}"))))).await;
                }
                name => {
                    let _ = sender.send(Ok((Stdio::Out, Bytes::from(format!("{name} out\n"))))).await;
                    let _ = sender.send(Ok((Stdio::Err, Bytes::from(format!("{name} err\n"))))).await;
                }
            }
            *exit_code.lock().unwrap() = Some(7);
        });
        let output = stream::unfold(receiver, |mut receiver: mpsc::Receiver<io::Result<(Stdio, Bytes)>>| async {
            receiver.recv().await.map(|item| (item, receiver))
        });
        Ok(ExecIo { stdin: Box::pin(stdin), output: Box::pin(output) })
    }
    async fn exec_resize(&self, id: &str, size: TerminalSize) -> Result<(), Failure> {
        let execs = self.execs.lock().unwrap();
        *execs[index(id)?].size.lock().unwrap() = Some(size);
        Ok(())
    }
    async fn exec_inspect(&self, id: &str) -> Result<ExecState, Failure> {
        let execs = self.execs.lock().unwrap();
        let exec = &execs[index(id)?];
        let exit_code = *exec.exit_code.lock().unwrap();
        Ok(ExecState {
            task: exec.task,
            spec: exec.spec.clone(),
            running: exit_code.is_none(),
            exit_code,
            pid: Some(99),
        })
    }
    async fn images(&self) -> Result<Vec<Image>, Failure> {
        Ok(self.images.lock().unwrap().clone())
    }
    async fn image(&self, name: &str) -> Result<Image, Failure> {
        let images = self.images.lock().unwrap();
        let found = images
            .iter()
            .find(|image| image.tags.iter().any(|tag| tag == name || tag.starts_with(&format!("{name}:"))));
        found.cloned().ok_or_else(|| Failure::NotFound(format!("No such image: {name}")))
    }
    async fn image_pull(&self, request: PullRequest) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        let progress = |id: Option<&str>, status: &str, current, total| {
            Ok(Progress { id: id.map(str::to_owned), status: status.into(), current, total })
        };
        let mut items = VecDeque::from([
            progress(None, &format!("Pulling from {}", request.name), 0, 0),
            progress(Some("abc"), "Downloading", 50, 100),
            progress(Some("abc"), "Pull complete", 0, 0),
        ]);
        if request.name.contains("missing") {
            return Err(Failure::NotFound(format!("manifest for {} not found", request.name)));
        }
        if request.name.contains("broken") {
            items.push_back(Err(Failure::Unavailable("the registry went away".into())));
        } else {
            self.images.lock().unwrap().push(image("redis:7"));
        }
        Ok(Box::pin(stream::iter(items)))
    }
    async fn image_push(
        &self,
        name: &str,
        _: Option<Credentials>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        let status = format!("The push refers to repository [{name}]");
        Ok(Box::pin(stream::iter([Ok(Progress { status, ..Progress::default() })])))
    }
    async fn image_load(
        &self,
        mut archive: BoxStream<io::Result<Bytes>>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        while let Some(bytes) = archive.next().await {
            *self.loaded.lock().unwrap() += bytes.unwrap().len();
        }
        let status = "Loaded image: nginx:latest".to_owned();
        Ok(Box::pin(stream::iter([Ok(Progress { status, ..Progress::default() })])))
    }
    async fn image_save(&self, names: Vec<String>) -> Result<BoxStream<io::Result<Bytes>>, Failure> {
        Ok(Box::pin(stream::iter([Ok(Bytes::from(names.join(" ")))])))
    }
    async fn image_remove(&self, name: &str, _force: bool) -> Result<Vec<ImageRemoved>, Failure> {
        let image = self.image(name).await?;
        self.images.lock().unwrap().retain(|known| known.tags != image.tags);
        Ok(vec![ImageRemoved::Untagged(image.tags[0].clone()), ImageRemoved::Deleted(image.id)])
    }
    async fn image_prune(&self, _all: bool) -> Result<ImagePruned, Failure> {
        Ok(ImagePruned { removed: vec![ImageRemoved::Deleted("sha256:cc".into())], reclaimed_bytes: 1_500_000 })
    }
    async fn image_tag(&self, name: &str, new_name: &str) -> Result<(), Failure> {
        self.image(name).await?;
        self.images.lock().unwrap()[0].tags.push(new_name.into());
        Ok(())
    }
    async fn resolve(&self, name: &str, _: Option<Credentials>) -> Result<Resolved, Failure> {
        if name.starts_with("local/") || name.starts_with("broken") {
            return Err(Failure::Unavailable("no registry answers".into()));
        }
        Ok(Resolved {
            digest: DIGEST.into(),
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            size_bytes: 1000,
            platforms: vec![Platform { os: "linux".into(), arch: "arm64".into(), variant: "v8".into() }],
        })
    }
    async fn login(&self, credentials: Credentials) -> Result<(), Failure> {
        match credentials.password.as_str() {
            "right" => Ok(()),
            _ => Err(Failure::Denied("unauthorized: incorrect username or password".into())),
        }
    }
}

fn index(id: &str) -> Result<usize, Failure> {
    id.strip_prefix("exec")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Failure::NotFound(format!("No such exec instance: {id}")))
}

/// Anything that can be written to and read back.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
