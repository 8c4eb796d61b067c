//! What users type to name a thing, found in the state: a full id, a name, or the start of an id, in this order. Called by
//! the APIs; the texts of the errors are Docker's.

use crate::{
    model::{Desired, NodeId, ServiceId, Slot, Task, TaskId},
    state::State,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

/// Nothing, or more than one thing, goes by that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing does.
    #[error("{kind} {text} not found")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// What the user typed.
        text: String,
    },
    /// A name or the start of an id fits several.
    #[error("{kind} {text} is ambiguous ({matches} matches found)")]
    Ambiguous {
        /// What was looked for.
        kind: Kind,
        /// What the user typed.
        text: String,
        /// How many fit.
        matches: usize,
    },
}

/// The kinds of things that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A service.
    Service,
    /// A node.
    Node,
    /// A task.
    Task,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "service",
            Kind::Node => "node",
            Kind::Task => "task",
        })
    }
}

/// The service with this id, name or start of an id. A service that the user removed is not found any more.
///
/// # Errors
/// None or several.
pub fn find_service(state: &State, text: &str) -> Result<ServiceId, FindError> {
    let present = || state.services.iter().filter(|(_, service)| !service.removed);
    let named = present().filter(|(_, service)| service.name.as_str() == text).map(|(id, _)| *id).collect();
    choose(Kind::Service, text, present().map(|(id, _)| *id), named)
}

/// The node with this id, host name or start of an id.
///
/// # Errors
/// None or several: host names need not be unique.
pub fn find_node(state: &State, text: &str) -> Result<NodeId, FindError> {
    let named = state.nodes.iter().filter(|(_, node)| node.hostname == text).map(|(id, _)| *id).collect();
    choose(Kind::Node, text, state.nodes.keys().copied(), named)
}

/// The task with this id, name (`web.1.ID`, or `web.1` for the newest task of that slot) or start of an id.
///
/// # Errors
/// None or several.
pub fn find_task(state: &State, text: &str) -> Result<TaskId, FindError> {
    let (place, id) = match text.rsplit_once('.') {
        Some((place, id)) if id.parse::<TaskId>().is_ok() && place.contains('.') => (place, Some(id)),
        _ => (text, None),
    };
    let named = match place.rsplit_once('.') {
        Some((name, slot)) => in_slot(state, name, slot, id),
        None => Vec::new(),
    };
    choose(Kind::Task, text, state.tasks.keys().copied(), named)
}

impl State {
    /// The name of a task for people: `web.1`, or `web.NODE` for a global service. `docker` prints it with the id appended.
    #[must_use]
    pub fn task_name(&self, task: &Task) -> String {
        let service =
            self.services.get(&task.service).map_or_else(|| task.service.to_string(), |found| found.name.to_string());
        match task.slot {
            Slot::Replica(number) => format!("{service}.{number}"),
            Slot::Node(node) => format!("{service}.{node}"),
        }
    }
}

fn in_slot(state: &State, service: &str, slot: &str, id: Option<&str>) -> Vec<TaskId> {
    let Ok(service) = find_service(state, service) else { return Vec::new() };
    let slot = match (slot.parse::<u32>(), find_node(state, slot)) {
        (Ok(number), _) => Slot::Replica(number),
        (_, Ok(node)) => Slot::Node(node),
        _ => return Vec::new(),
    };
    let here = state.tasks.iter().filter(|(_, task)| task.service == service && task.slot == slot);
    match id {
        Some(id) => here.filter(|(task, _)| task.to_string() == id).map(|(id, _)| *id).collect(),
        None => here
            .max_by_key(|(id, task)| (task.desired == Desired::Run, task.outcome.is_none(), task.created, **id))
            .map(|(id, _)| *id)
            .into_iter()
            .collect(),
    }
}

/// A full id wins over a name, a name over the start of an id.
fn choose<I>(kind: Kind, text: &str, ids: impl Iterator<Item = I>, named: Vec<I>) -> Result<I, FindError>
where
    I: Copy + ToString,
{
    let mut starts = Vec::new();
    for id in ids {
        let full = id.to_string();
        if full == text {
            return Ok(id);
        }
        if !text.is_empty() && full.starts_with(text) {
            starts.push(id);
        }
    }
    let found = if named.is_empty() { starts } else { named };
    match found.as_slice() {
        [] => Err(FindError::NotFound { kind, text: text.into() }),
        [one] => Ok(*one),
        many => Err(FindError::Ambiguous { kind, text: text.into(), matches: many.len() }),
    }
}
