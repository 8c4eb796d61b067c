//! What the agent remembers of tasks between two looks: steps under way, failed steps, stop signals sent. All of it may be
//! lost; a restarted agent then repeats a step or a signal, which is harmless.

use crate::clock;
use orchestrator_core::{
    model::{RestartPolicy, TaskId, UnixMillis},
    node::{self, Failure, Observed, Stopping},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::task::AbortHandle;

/// Notes by task.
#[derive(Debug, Default)]
pub(super) struct Memory {
    notes: Mutex<BTreeMap<TaskId, Note>>,
}

#[derive(Debug, Default)]
struct Note {
    begun: UnixMillis,
    activity: String,
    busy: bool,
    stopping: Option<Stopping>,
    failure: Option<Failure>,
    restarts: Vec<UnixMillis>,
    /// Gives up the steps under way.
    abort: Option<AbortHandle>,
    /// The steps only download now, so they may be given up.
    fetching: bool,
}

impl Memory {
    /// Steps of the task begin.
    pub(super) fn begin(&self, task: TaskId) {
        let mut notes = self.lock();
        let note = notes.entry(task).or_insert_with(|| Note { begun: clock::now(), ..Note::default() });
        note.busy = true;
        note.activity.clear();
    }

    /// The task ended and is started again: how it ended counts no more.
    pub(super) fn restart(&self, task: TaskId, policy: &RestartPolicy) {
        let mut notes = self.lock();
        let note = notes.entry(task).or_insert_with(|| Note { begun: clock::now(), ..Note::default() });
        (note.failure, note.stopping) = (None, None);
        node::note_restart(&mut note.restarts, policy, clock::now());
    }

    /// The steps of the task are under way and can be given up by `abort`.
    pub(super) fn started(&self, task: TaskId, abort: AbortHandle) {
        if let Some(note) = self.lock().get_mut(&task)
            && note.busy
        {
            note.abort = Some(abort);
        }
    }

    /// Whether the steps of the task only download something now.
    pub(super) fn fetching(&self, task: TaskId, fetching: bool) {
        if let Some(note) = self.lock().get_mut(&task) {
            note.fetching = fetching;
        }
    }

    /// Tells people what the steps are doing.
    pub(super) fn activity(&self, task: TaskId, text: String) {
        if let Some(note) = self.lock().get_mut(&task) {
            note.activity = text;
        }
    }

    /// The steps are over; `failure` says that one of them failed for good.
    pub(super) fn end(&self, task: TaskId, failure: Option<String>) {
        if let Some(note) = self.lock().get_mut(&task) {
            (note.busy, note.fetching, note.abort) = (false, false, None);
            if let Some(message) = failure {
                note.failure = Some(Failure { at: clock::now(), message });
            }
        }
    }

    /// A stop signal or SIGKILL was sent.
    pub(super) fn stopping(&self, task: TaskId, killed: bool) {
        if let Some(note) = self.lock().get_mut(&task) {
            let since = note.stopping.map_or_else(clock::now, |before| before.since);
            note.stopping = Some(Stopping { since, killed });
        }
    }

    /// Gives up downloads of tasks that are not wanted any more.
    pub(super) fn abort_fetches(&self, unwanted: impl Fn(TaskId) -> bool) {
        for (task, note) in self.lock().iter_mut() {
            if unwanted(*task)
                && note.fetching
                && let Some(abort) = note.abort.take()
            {
                abort.abort();
                (note.busy, note.fetching) = (false, false);
            }
        }
    }

    /// Tasks whose steps are under way.
    pub(super) fn busy(&self) -> BTreeSet<TaskId> {
        self.lock().iter().filter(|(_, note)| note.busy).map(|(task, _)| *task).collect()
    }

    /// Lays the notes over what was read from the kernel, and drops those of tasks that are gone.
    ///
    /// `before` are the tasks that were busy when the look began: what was read of them may be from the middle of a step.
    pub(super) fn add_to(&self, observed: &mut Observed, assigned: &BTreeSet<TaskId>, before: &BTreeSet<TaskId>) {
        let mut notes = self.lock();
        notes.retain(|task, note| note.busy || assigned.contains(task) || observed.tasks.contains_key(task));
        for (task, note) in notes.iter() {
            let seen = observed.tasks.entry(*task).or_default();
            seen.busy = note.busy || before.contains(task);
            seen.activity.clone_from(&note.activity);
            seen.begun = Some(note.begun);
            seen.stopping = note.stopping;
            seen.failure.clone_from(&note.failure);
            seen.restarts.clone_from(&note.restarts);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
