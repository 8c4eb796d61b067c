//! A cluster in text: lines say what happens, and what the planner answers is printed as lines, so that an example shows
//! whole inputs and whole outputs.
//!
//! ```text
//! node a [cpus=4] [memory=1024] [label=zone:x] [arch=arm64] [held=tcp:8080:nginx]   a node that is up
//! service web [replicas=3] [publish=8080:80] …                                       edgectl service create; see `change`
//! update web [image=x] …  · rollback web · remove web
//! down a · up a · drain a · pause a · activate a · forget a (never reported) · leave a
//! web.1 running · web.1 failed 1 · web.1 gone       what the node of the slot's newest placed task reports from now on
//! all running                                        the same for all tasks that are not reported yet
//! time 5                                             seconds pass
//! plan                                               prints what the planner changes, then applies it
//! ```

mod parts;

pub(crate) use parts::{authority, default_parts};

use orchestrator_core::{
    intent,
    model::*,
    plan::{Subject, plan},
    state::{Action, Applied, Entry, Key, Object, State},
};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Seconds since the epoch at which examples begin.
const START: u64 = 1_000_000;

pub(crate) struct Cluster {
    pub(crate) state: State,
    pub(crate) live: Live,
    pub(crate) now: UnixMillis,
    node_names: BTreeMap<NodeId, String>,
    /// `web.1/b` is the second task of slot 1.
    task_names: BTreeMap<TaskId, String>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let now = UnixMillis(START * 1000);
        let live = Live { down_after: UnixMillis(now.0 + 5000), ..Live::default() };
        Self { state: State::default(), live, now, node_names: BTreeMap::new(), task_names: BTreeMap::new() }
    }

    /// Goes through `script` and returns what was printed.
    pub(crate) fn run(&mut self, script: &str) -> String {
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[0] == "plan" {
                if !out.is_empty() {
                    out.push_str("--\n");
                }
                out.push_str(&self.plan());
            } else if let Some(refusal) = self.command(&words) {
                writeln!(out, "refused: {refusal}").unwrap();
            }
        }
        out
    }

    fn command(&mut self, words: &[&str]) -> Option<intent::Refusal> {
        let (state, now) = (self.state.clone(), self.now);
        let entry = match (words[0], &words[1..]) {
            ("node", [name, args @ ..]) => return self.node(name, args),
            ("service", [name, args @ ..]) => {
                let parts = change(default_parts(name), args);
                ServiceSpec::new(parts)
                    .map_err(Into::into)
                    .and_then(|spec| intent::create_service(&state, spec, now))
                    .map(|(_, entry)| entry)
            }
            ("update", [name, args @ ..]) => {
                let service = self.service(name);
                let spec = state.current_spec(&service).unwrap().spec.clone();
                let parts = change(ServiceSpec::clone(&spec).into_parts(), args);
                let index = state.services[&service.id].revision;
                ServiceSpec::new(parts)
                    .map_err(Into::into)
                    .and_then(|spec| intent::update_service(&state, service.id, index, spec, now))
            }
            ("rollback", [name]) => {
                let service = self.service(name);
                intent::rollback_service(&state, service.id, state.services[&service.id].revision, now)
            }
            ("remove", [name]) => intent::remove_service(&state, self.service(name).id, now),
            ("drain", [name]) => self.availability(name, Availability::Drain),
            ("pause", [name]) => self.availability(name, Availability::Pause),
            ("activate", [name]) => self.availability(name, Availability::Active),
            ("leave", [name]) => {
                let id = self.node_id(name);
                self.live.nodes.remove(&id);
                Ok(Entry { at: now, reads: vec![], changes: vec![state.delete_change(Key::Node(id))] })
            }
            (live, [name]) if ["down", "up"].contains(&live) => {
                let id = self.node_id(name);
                let node = self.live.nodes.get_mut(&id).unwrap();
                (node.ready, node.since) = (live == "up", now);
                return None;
            }
            ("forget", [name]) => {
                let id = self.node_id(name);
                self.live.nodes.remove(&id);
                return None;
            }
            ("time", [seconds]) => {
                self.now = self.now + Millis::from_secs(seconds.parse().unwrap());
                return None;
            }
            ("all", report) => {
                let fresh = |id: &&TaskId| {
                    let task = &self.state.tasks[id];
                    let placed = task.placed.as_ref().filter(|_| task.outcome.is_none());
                    placed.is_some_and(|placed| !self.live.nodes[&placed.node].report.tasks.contains_key(id))
                };
                for id in self.state.tasks.keys().filter(fresh).copied().collect::<Vec<_>>() {
                    self.report(id, report);
                }
                return None;
            }
            (task, report) => {
                let id = self.task(task);
                self.report(id, report);
                return None;
            }
        };
        match entry {
            Ok(entry) => self.apply(&entry),
            Err(refusal) => return Some(refusal),
        }
        None
    }

    pub(crate) fn apply(&mut self, entry: &Entry) {
        let index = self.state.revision + 1;
        assert_eq!(self.state.apply(index, entry), Applied::Done { revision: index });
        assert_eq!(self.state.check(), vec![]);
    }

    fn node(&mut self, name: &str, args: &[&str]) -> Option<intent::Refusal> {
        // Ids in the order of names make "the first node" mean the same in text and in the planner.
        let id = NodeId(u128::from(name.as_bytes()[0]));
        let mut description = NodeDescription {
            platform: Some(Platform { os: "linux".into(), arch: "arm64".into(), variant: String::new() }),
            nano_cpus: 4_000_000_000,
            memory_bytes: 1 << 30,
            ..NodeDescription::default()
        };
        let mut labels = BTreeMap::new();
        let mut held_ports = vec![];
        for (key, value) in args.iter().map(|arg| arg.split_once('=').unwrap()) {
            match key {
                "cpus" => description.nano_cpus = value.parse::<u64>().unwrap() * 1_000_000_000,
                "memory" => description.memory_bytes = value.parse::<u64>().unwrap() << 20,
                "arch" => description.platform.as_mut().unwrap().arch = value.into(),
                "label" => drop(
                    labels.insert(value.split_once(':').unwrap().0.into(), value.split_once(':').unwrap().1.into()),
                ),
                "held" => {
                    let parts: Vec<&str> = value.split(':').collect();
                    let protocol = if parts[0] == "udp" { Protocol::Udp } else { Protocol::Tcp };
                    held_ports.push(HeldPort { protocol, port: parts[1].parse().unwrap(), holder: parts[2].into() });
                }
                other => panic!("node has no {other}"),
            }
        }
        let node = Node {
            id,
            hostname: name.into(),
            role: Role::Manager,
            raft_id: None,
            availability: Availability::Active,
            labels,
            description: description.clone(),
            created_at: self.now,
        };
        let entry = if self.state.cluster.is_none() {
            let (ca, tokens) = authority();
            intent::init_cluster(&self.state, ClusterId(7), node, ca, tokens, Settings::default(), self.now)
        } else {
            intent::join_node(&self.state, node, Role::Manager, self.now).map(|entry| entry.unwrap())
        };
        match entry {
            Ok(entry) => self.apply(&entry),
            Err(refusal) => return Some(refusal),
        }
        self.node_names.insert(id, name.into());
        let raft = self.state.nodes[&id].raft_id;
        let report = Report {
            node: id,
            term: 1,
            revision: 0,
            description,
            raft,
            lost_log: None,
            tasks: BTreeMap::new(),
            held_ports,
        };
        self.live.nodes.insert(id, NodeLive { ready: true, since: self.now, report });
        None
    }

    fn availability(&self, name: &str, availability: Availability) -> Result<Entry, intent::Refusal> {
        let id = self.node_id(name);
        let node = &self.state.nodes[&id];
        let wish = intent::NodeWish { role: node.role, availability, labels: node.labels.clone() };
        intent::update_node(&self.state, &self.live, id, node.revision, wish, self.now)
    }

    fn report(&mut self, id: TaskId, words: &[&str]) {
        let node = self.state.tasks[&id].placed.as_ref().unwrap().node;
        let report = &mut self.live.nodes.get_mut(&node).unwrap().report;
        report.revision = self.state.revision;
        let state = match words[0] {
            "gone" => {
                report.tasks.remove(&id);
                return;
            }
            "running" => TaskState::Running,
            "starting" => TaskState::Starting,
            "complete" => TaskState::Complete,
            "shutdown" => TaskState::Shutdown,
            "failed" => TaskState::Failed,
            "rejected" => TaskState::Rejected,
            other => panic!("no such report: {other}"),
        };
        let exit_code = words.get(1).map(|code| code.parse().unwrap());
        let message = if state.is_terminal() { words[0].into() } else { String::new() };
        report.tasks.insert(id, TaskReport { state, since: self.now, message, pid: None, exit_code });
    }

    fn plan(&mut self) -> String {
        let plan = plan(&self.state, &self.live, self.now);
        let mut out = String::new();
        let before = self.state.clone();
        if let Some(entry) = &plan.entry {
            self.apply(entry);
            self.name_new_tasks();
            for change in &entry.changes {
                self.print_change(&mut out, &before, &change.action);
            }
        }
        let again = orchestrator_core::plan::plan(&self.state, &self.live, self.now);
        assert_eq!(again.entry, None, "planning again changes something");
        for (subject, why) in &again.reasons {
            match subject {
                Subject::Service(id) => writeln!(out, "? {}: {why}", self.state.services[id].name).unwrap(),
                Subject::Task(id) => writeln!(out, "? {}: {why}", self.task_names[id]).unwrap(),
            }
        }
        if let Some(at) = again.wake_at {
            writeln!(out, "wake in {} s", at.since(self.now).0 as f64 / 1000.0).unwrap();
        }
        for (id, name) in &self.task_names {
            out = out.replace(&id.to_string(), name);
        }
        let mut lines: Vec<&str> = out.lines().collect();
        lines.sort_by_key(|line| (line.starts_with("wake"), line.starts_with('?'), line[2..].to_owned()));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn name_new_tasks(&mut self) {
        let mut new: Vec<_> =
            self.state.tasks.values().filter(|task| !self.task_names.contains_key(&task.id)).collect();
        new.sort_by_key(|task| (task.created, task.id));
        for task in new {
            let slot = self.slot_name(task);
            let before = self.task_names.values().filter(|name| name.starts_with(&format!("{slot}/"))).count();
            self.task_names.insert(task.id, format!("{slot}/{}", (b'a' + before as u8) as char));
        }
    }

    fn slot_name(&self, task: &Task) -> String {
        match task.slot {
            Slot::Replica(_) => self.state.task_name(task),
            Slot::Node(node) => format!("{}.{}", self.state.services[&task.service].name, self.node_names[&node]),
        }
    }

    fn print_change(&self, out: &mut String, before: &State, action: &Action) {
        match action {
            Action::Put(Object::Turn(_)) => {}
            Action::Put(Object::Task(task)) => {
                let name = &self.task_names[&task.id];
                let old = before.tasks.get(&task.id);
                let mut words = vec![];
                if old.is_none_or(|old| old.version != task.version) {
                    words.push(format!("v{}", task.version));
                }
                if old.is_none_or(|old| old.placed != task.placed) {
                    words.push(match &task.placed {
                        None => "waits".into(),
                        Some(placed) => {
                            let node = &self.node_names[&placed.node];
                            let ports = placed.backends.len();
                            if ports == 0 { format!("on {node}") } else { format!("on {node} with {ports} ports") }
                        }
                    });
                }
                if old.map_or(Desired::Run, |old| old.desired) != task.desired {
                    words.push(format!("{:?}", task.desired).to_lowercase());
                }
                if let Some(outcome) = task.outcome.as_ref().filter(|_| old.is_none_or(|old| old.outcome.is_none())) {
                    words.push(format!("{:?}", outcome.end).to_lowercase());
                }
                writeln!(out, "{} {name}: {}", if old.is_none() { '+' } else { '~' }, words.join(", ")).unwrap();
            }
            Action::Put(Object::Service(service)) => {
                let old = &before.services[&service.id];
                let mut words = vec![];
                if old.ports != service.ports {
                    let ports = service.ports.iter().map(|port| format!("{}:{}", port.published, port.target));
                    words.push(format!("ports {}", ports.collect::<Vec<_>>().join(" ")));
                }
                if old.current != service.current {
                    words.push(format!("wants v{}", service.current));
                }
                if let Some(update) = service.update.as_ref().filter(|_| old.update != service.update) {
                    words.push(format!("{:?}", update.state));
                }
                writeln!(out, "~ {}: {}", service.name, words.join(", ")).unwrap();
            }
            Action::Put(Object::Spec(version)) => {
                writeln!(out, "+ {} v{}", version.spec.name, version.number).unwrap();
            }
            Action::Put(other) => panic!("the planner writes {other:?}"),
            Action::Delete(Key::Task(id)) => writeln!(out, "- {}", self.task_names[id]).unwrap(),
            Action::Delete(Key::Spec(id, number)) => {
                writeln!(out, "- {} v{number}", before.services[id].name).unwrap();
            }
            Action::Delete(Key::Service(id)) => writeln!(out, "- {}", before.services[id].name).unwrap(),
            Action::Delete(other) => panic!("the planner deletes {other:?}"),
        }
    }

    fn service(&self, name: &str) -> Service {
        let id = orchestrator_core::find::find_service(&self.state, name).unwrap();
        Service::clone(&self.state.services[&id])
    }

    pub(crate) fn node_id(&self, name: &str) -> NodeId {
        *self.node_names.iter().find(|(_, known)| *known == name).unwrap().0
    }

    /// `web.1/b`, or `web.1` for the newest task of the slot that has a node.
    pub(crate) fn task(&self, name: &str) -> TaskId {
        let named = self.task_names.iter().filter(|(id, known)| {
            self.state.tasks.contains_key(id) && (*known == name || known.starts_with(&format!("{name}/")))
        });
        let placed = named.filter(|(id, _)| self.state.tasks[id].placed.is_some());
        *placed.max_by_key(|(_, known)| *known).unwrap_or_else(|| panic!("no task {name}")).0
    }
}

/// Changes a spec as flags of `edgectl service` would.
fn change(mut parts: ServiceParts, args: &[&str]) -> ServiceParts {
    for arg in args {
        let (key, value) = arg.split_once('=').unwrap_or((arg, ""));
        let number = || value.parse::<u32>().unwrap();
        let seconds = || Millis::from_secs(value.parse().unwrap());
        match key {
            "replicas" => parts.mode = Mode::Replicated { replicas: number() },
            "global" => parts.mode = Mode::Global,
            "image" => parts.task.container.image = ImageName::new(value).unwrap(),
            "label" => drop(parts.labels.insert(value.into(), String::new())),
            "force" => parts.task.force_update += 1,
            "publish" | "host" => {
                let (published, target) = value.split_once(':').unwrap();
                let mode = if key == "host" { PublishMode::Host } else { PublishMode::Ingress };
                let (published, target) = (published.parse().unwrap(), target.parse().unwrap());
                parts.endpoint.ports.push(PortSpec { protocol: Protocol::Tcp, target, published, mode });
            }
            "no_ports" => parts.endpoint.ports.clear(),
            "constraint" => parts.task.placement.constraints.push(Constraint::parse(value).unwrap()),
            "spread" => parts.task.placement.spread.push(value.into()),
            "max_per_node" => parts.task.placement.max_per_node = number(),
            "arch" => {
                parts.task.placement.platforms =
                    vec![Platform { os: "linux".into(), arch: value.into(), variant: String::new() }];
            }
            "reserve_memory" => parts.task.resources.reserve_memory_bytes = u64::from(number()) << 20,
            "reserve_cpus" => parts.task.resources.reserve_nano_cpus = u64::from(number()) * 1_000_000_000,
            "restart" => {
                parts.task.restart.condition = match value {
                    "none" => RestartCondition::None,
                    "on-failure" => RestartCondition::OnFailure,
                    _ => RestartCondition::Any,
                }
            }
            "restart_delay" => parts.task.restart.delay = seconds(),
            "restart_attempts" => parts.task.restart.max_attempts = number(),
            "restart_window" => parts.task.restart.window = seconds(),
            "on_disconnect" => {
                parts.on_disconnect = Some(if value == "keep" { OnDisconnect::Keep } else { OnDisconnect::Stop });
            }
            "disconnect_grace" => parts.disconnect_grace = Some(seconds()),
            "parallelism" => parts.update.parallelism = number(),
            "delay" => parts.update.delay = seconds(),
            "monitor" => parts.update.monitor = seconds(),
            "max_failure_ppm" => parts.update.max_failure_ppm = number(),
            "start-first" => parts.update.order = UpdateOrder::StartFirst,
            "on_failure" => {
                parts.update.on_failure = match value {
                    "continue" => FailureAction::Continue,
                    "rollback" => FailureAction::Rollback,
                    _ => FailureAction::Pause,
                }
            }
            other => panic!("service has no {other}"),
        }
    }
    parts
}
