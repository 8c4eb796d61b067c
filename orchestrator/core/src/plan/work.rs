//! The working copy that all passes share: a cheap clone of the state, an index of slots, and a record of what was touched,
//! from which the entry is made in the end.

use super::{Plan, Subject, Why};
use crate::{
    model::{
        Desired, Live, Millis, NodeId, PublishMode, Service, ServiceId, Slot, SpecVersion, Task, TaskId, TaskReport,
        TaskState, Turn, UnixMillis,
    },
    state::{Action, Change, Entry, Guard, Key, Object, State, Stored},
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};

/// Tasks of one slot, the oldest first.
pub(super) type SlotTasks = Vec<TaskId>;
/// The slots of one service. Shared, so that a pass can go through them while it changes the working copy.
pub(super) type Slots = Arc<BTreeMap<Slot, SlotTasks>>;

pub(super) struct Work<'a> {
    /// As it was; the guards of the entry come from here.
    pub(super) base: &'a State,
    pub(super) live: &'a Live,
    pub(super) now: UnixMillis,
    /// As it shall be.
    pub(super) state: State,
    /// Every task, by service and slot.
    pub(super) slots: BTreeMap<ServiceId, Slots>,
    /// Slots of a service without tasks.
    no_slots: Slots,
    written: BTreeSet<Key>,
    read: BTreeSet<Key>,
    /// Tasks made by this plan: the ordinal of the next id.
    made: u32,
    reasons: BTreeMap<Subject, Why>,
    wake_at: Option<UnixMillis>,
}

/// What is known of a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Its session is alive.
    Up,
    /// It has not reported to this leader, and may still do so.
    Unknown,
    /// It is unreachable since this moment.
    Down(UnixMillis),
    /// It is no member any more.
    Gone,
}

impl<'a> Work<'a> {
    pub(super) fn new(base: &'a State, live: &'a Live, now: UnixMillis) -> Self {
        let mut slots: BTreeMap<ServiceId, BTreeMap<Slot, SlotTasks>> = BTreeMap::new();
        for (id, task) in &base.tasks {
            slots.entry(task.service).or_default().entry(task.slot).or_default().push(*id);
        }
        for tasks in slots.values_mut().flat_map(BTreeMap::values_mut).filter(|tasks| tasks.len() > 1) {
            tasks.sort_by_cached_key(|id| (base.tasks.get(id).map(|task| task.created), *id));
        }
        Self {
            base,
            live,
            now,
            state: base.clone(),
            slots: slots.into_iter().map(|(service, slots)| (service, Arc::new(slots))).collect(),
            no_slots: Slots::default(),
            written: BTreeSet::new(),
            read: BTreeSet::new(),
            made: 0,
            reasons: BTreeMap::new(),
            wake_at: None,
        }
    }

    /// Services in order, each with its id, so that passes may change the copy while they go through them.
    pub(super) fn service_ids(&self) -> Vec<ServiceId> {
        self.state.services.keys().copied().collect()
    }

    /// The service and the version of its spec that is wanted.
    pub(super) fn wanted(&self, id: ServiceId) -> Option<(Arc<Service>, Arc<SpecVersion>)> {
        let service = self.state.services.get(&id)?;
        let version = self.state.current_spec(service)?;
        Some((service.value.clone(), version.value.clone()))
    }

    /// The slots of a service, as they are at this moment.
    pub(super) fn slots_of(&self, id: ServiceId) -> Slots {
        self.slots.get(&id).unwrap_or(&self.no_slots).clone()
    }

    pub(super) fn task(&self, id: TaskId) -> &Stored<Task> {
        self.state.tasks.get(&id).expect("the slot index names tasks of the working copy")
    }

    /// The task that stands for its slot: the newest that shall run, ended or not.
    pub(super) fn head(&self, tasks: &[TaskId]) -> Option<TaskId> {
        tasks.iter().rev().copied().find(|id| self.task(*id).desired == Desired::Run)
    }

    /// Changes a task; the service it belongs to is guarded.
    pub(super) fn change_task(&mut self, id: TaskId, change: impl FnOnce(&mut Task)) {
        let Some(stored) = self.state.tasks.get_mut(&id) else { return };
        change(Arc::make_mut(&mut stored.value));
        self.read.insert(Key::Service(stored.value.service));
        self.written.insert(Key::Task(id));
    }

    pub(super) fn change_service(&mut self, id: ServiceId, change: impl FnOnce(&mut Service)) {
        let Some(stored) = self.state.services.get_mut(&id) else { return };
        change(Arc::make_mut(&mut stored.value));
        self.written.insert(Key::Service(id));
    }

    /// Wants the spec of an older version again, as a new version.
    pub(super) fn return_to(&mut self, service: &Service, number: u32) {
        let Some(old) = self.state.specs.get(&(service.id, number)) else { return };
        let version = SpecVersion { service: service.id, number: service.current + 1, spec: old.spec.clone() };
        let key = (service.id, version.number);
        let next = self.base.revision + 1;
        self.state.specs.insert(key, Stored { created: next, revision: next, value: Arc::new(version) });
        self.written.insert(Key::Spec(key.0, key.1));
        self.change_service(service.id, |service| {
            service.current = key.1;
            service.previous = None;
        });
    }

    /// Makes a task for a slot, of the version that is wanted. It is placed by a later pass.
    pub(super) fn create_task(&mut self, service: &Service, slot: Slot) -> TaskId {
        let id = TaskId::derive(self.base.seed(), self.base.revision, self.made);
        self.made += 1;
        let task = Task {
            id,
            service: service.id,
            slot,
            version: service.current,
            created_at: self.now,
            placed: None,
            desired: Desired::Run,
            outcome: None,
        };
        let next = self.base.revision + 1;
        self.state.tasks.insert(id, Stored { created: next, revision: next, value: Arc::new(task) });
        Arc::make_mut(self.slots.entry(service.id).or_default()).entry(slot).or_default().push(id);
        self.read.insert(Key::Service(service.id));
        self.written.insert(Key::Task(id));
        id
    }

    /// Asks a task to end and to leave its trace. One that was never placed has none and vanishes.
    pub(super) fn end_task(&mut self, id: TaskId) {
        let desired = if self.task(id).placed.is_some() { Desired::Shutdown } else { Desired::Remove };
        self.want(id, desired);
    }

    /// Asks for an end that is at least this thorough.
    pub(super) fn want(&mut self, id: TaskId, desired: Desired) {
        if self.task(id).desired < desired {
            self.change_task(id, |task| task.desired = desired);
        }
    }

    pub(super) fn delete(&mut self, key: Key) {
        match key {
            Key::Task(id) => {
                let Some(task) = self.state.tasks.remove(&id) else { return };
                if let Some(slots) = self.slots.get_mut(&task.service).map(Arc::make_mut)
                    && let Some(tasks) = slots.get_mut(&task.slot)
                {
                    tasks.retain(|other| *other != id);
                    if tasks.is_empty() {
                        slots.remove(&task.slot);
                    }
                }
            }
            Key::Service(id) => drop(self.state.services.remove(&id)),
            Key::Spec(id, number) => drop(self.state.specs.remove(&(id, number))),
            Key::Cluster | Key::Node(_) | Key::Turn => unreachable!("the planner does not remove members"),
        }
        self.written.insert(key);
    }

    /// The decision holds only as long as this object is as it was.
    pub(super) fn rely_on(&mut self, key: Key) {
        self.read.insert(key);
    }

    pub(super) fn explain(&mut self, subject: Subject, why: Why) {
        self.reasons.insert(subject, why);
    }

    /// Whether `delay` has passed since `start`; if not, the plan is made again when it has. Times come from the clocks of
    /// several nodes: a start that lies further ahead than the delay is long says nothing, and does not hold things up.
    pub(super) fn passed(&mut self, start: UnixMillis, delay: Millis) -> bool {
        self.due(start, delay).is_none()
    }

    /// Like [`Self::passed`], telling the moment that is waited for.
    pub(super) fn due(&mut self, start: UnixMillis, delay: Millis) -> Option<UnixMillis> {
        let due = start + delay;
        if due <= self.now || start > self.now + delay {
            return None;
        }
        self.wake(due);
        Some(due)
    }

    fn wake(&mut self, at: UnixMillis) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn life(&mut self, node: NodeId) -> Life {
        if !self.state.nodes.contains_key(&node) {
            return Life::Gone;
        }
        match self.live.nodes.get(&node) {
            Some(known) if known.ready => Life::Up,
            Some(known) => Life::Down(known.since),
            None if self.now >= self.live.down_after => Life::Down(self.live.down_after),
            None => {
                self.wake(self.live.down_after);
                Life::Unknown
            }
        }
    }

    /// Whether this plan leaves the task as it was.
    pub(super) fn is_unchanged(&self, id: TaskId) -> bool {
        !self.written.contains(&Key::Task(id))
    }

    /// What its node says of a task that has not ended.
    pub(super) fn report(&self, task: &Task) -> Option<&'a TaskReport> {
        let node = task.placed.as_ref()?.node;
        let known = self.live.nodes.get(&node).filter(|known| known.ready)?;
        known.report.tasks.get(&task.id)
    }

    /// Since when a task is up, by its node's clock; `None` if it is not.
    pub(super) fn running_since(&self, id: TaskId) -> Option<UnixMillis> {
        let task = self.task(id);
        let report = self.report(task).filter(|report| task.outcome.is_none() && report.state == TaskState::Running);
        report.map(|report| report.since)
    }

    /// Whether a task is up, as far as is known: a node that has not reported to this leader yet gets the benefit of the doubt.
    pub(super) fn may_serve(&self, id: TaskId) -> bool {
        let task = self.task(id);
        let Some(placed) = task.placed.as_ref().filter(|_| task.outcome.is_none()) else { return false };
        let unheard = !self.live.nodes.contains_key(&placed.node) && self.now < self.live.down_after;
        unheard || self.running_since(id).is_some()
    }

    /// Whether a task of this version is what the service wants now. Only what a container is made of counts: its spec, and
    /// the ports that are bound on its node.
    pub(super) fn is_current(&self, service: &Service, version: u32) -> bool {
        if version == service.current {
            return true;
        }
        let find = |number| self.state.specs.get(&(service.id, number));
        let (Some(old), Some(new)) = (find(version), find(service.current)) else { return false };
        let host_ports = |stored: &Stored<SpecVersion>| {
            let ports = stored.spec.endpoint.ports.iter().filter(|port| port.mode == PublishMode::Host);
            ports.copied().collect::<Vec<_>>()
        };
        old.spec.task == new.spec.task && host_ports(old) == host_ports(new)
    }

    /// The entry: what differs from the state that the plan was made from.
    ///
    /// Plans are serialised by [`Turn`], which each of them writes: what they rely on as a whole, for example that an address
    /// is free, no guard on single objects could tell.
    pub(super) fn finish(self) -> Plan {
        let Work { base, now, state, written, read, reasons, wake_at, .. } = self;
        let mut changes: Vec<Change> = written.iter().filter_map(|key| difference(base, &state, *key)).collect();
        let entry = (!changes.is_empty()).then(|| {
            changes.insert(0, base.put_change(Object::Turn(Turn)));
            let writes: BTreeSet<Key> = changes.iter().map(|change| change.action.key()).collect();
            let guard = |key: &Key| Guard { key: *key, expect: base.revision_of(*key) };
            Entry { at: now, reads: read.difference(&writes).map(guard).collect(), changes }
        });
        Plan { entry, reasons, wake_at }
    }
}

fn difference(base: &State, state: &State, key: Key) -> Option<Change> {
    fn put<T: Clone + PartialEq>(
        old: Option<&Stored<T>>,
        new: Option<&Stored<T>>,
        wrap: fn(T) -> Object,
    ) -> Option<Object> {
        let new = new?;
        (old.map(|old| &*old.value) != Some(&*new.value)).then(|| wrap(T::clone(&new.value)))
    }
    let object = match key {
        Key::Cluster => put(base.cluster.as_ref(), state.cluster.as_ref(), Object::Cluster),
        Key::Node(id) => put(base.nodes.get(&id), state.nodes.get(&id), Object::Node),
        Key::Service(id) => put(base.services.get(&id), state.services.get(&id), Object::Service),
        Key::Spec(id, number) => put(base.specs.get(&(id, number)), state.specs.get(&(id, number)), Object::Spec),
        Key::Task(id) => put(base.tasks.get(&id), state.tasks.get(&id), Object::Task),
        Key::Turn => None,
    };
    if let Some(object) = object {
        return Some(base.put_change(object));
    }
    let gone = match key {
        Key::Cluster | Key::Node(_) | Key::Turn => false,
        Key::Service(id) => !state.services.contains_key(&id),
        Key::Spec(id, number) => !state.specs.contains_key(&(id, number)),
        Key::Task(id) => !state.tasks.contains_key(&id),
    };
    (gone && base.revision_of(key) != 0).then(|| Change { expect: base.revision_of(key), action: Action::Delete(key) })
}
