//! The number of slots: as many as asked for, or one on each node that fits; none for a service that was removed.

use super::{
    constraint::{broken_constraint, fits_platform},
    work::{Life, SlotTasks, Work},
};
use crate::model::{Availability, Desired, Mode, NodeId, Service, ServiceId, ServiceSpec, Slot, TaskId};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::cmp::Reverse;

/// Gives each service the slots it should have.
pub(super) fn fit(work: &mut Work<'_>) {
    for id in work.service_ids() {
        let Some((service, version)) = work.wanted(id) else { continue };
        if service.removed {
            for tasks in work.slots_of(id).values() {
                remove(work, tasks);
            }
            continue;
        }
        match version.spec.mode {
            Mode::Replicated { replicas } => replicated(work, &service, replicas as usize),
            Mode::Global => global(work, &service, &version.spec),
        }
    }
}

fn replicated(work: &mut Work<'_>, service: &Service, replicas: usize) {
    let slots = work.slots_of(service.id);
    let wanted: Vec<(Slot, &SlotTasks)> =
        slots.iter().filter(|(_, tasks)| work.head(tasks).is_some()).map(|(slot, tasks)| (*slot, tasks)).collect();
    if wanted.len() < replicas {
        let taken: BTreeSet<Slot> = wanted.iter().map(|(slot, _)| *slot).collect();
        let free = (1..).map(Slot::Replica).filter(|slot| !taken.contains(slot));
        for slot in free.take(replicas - wanted.len()) {
            work.create_task(service, slot);
        }
    } else if wanted.len() > replicas {
        for tasks in dispensable(work, wanted.len() - replicas, wanted) {
            remove(work, tasks);
        }
    }
}

/// The slots that are missed least: those that do not run, then those on nodes with the most tasks of the service, the newest
/// first.
fn dispensable<'s>(work: &Work<'_>, count: usize, slots: Vec<(Slot, &'s SlotTasks)>) -> Vec<&'s SlotTasks> {
    struct Candidate<'s> {
        running: bool,
        /// How many older slots of the service run on its node.
        rank_on_node: usize,
        created: u64,
        slot: Slot,
        tasks: &'s SlotTasks,
    }
    let mut candidates: Vec<(Option<NodeId>, Candidate<'s>)> = Vec::with_capacity(slots.len());
    for (slot, tasks) in slots {
        let open = |id: &&TaskId| work.task(**id).desired == Desired::Run && work.task(**id).outcome.is_none();
        let up = tasks.iter().rev().filter(open).find(|id| work.may_serve(**id)).copied();
        let node = up.and_then(|id| work.task(id).placed.as_ref()).map(|placed| placed.node);
        let created = up.or(work.head(tasks)).map_or(0, |id| work.task(id).created);
        candidates.push((node, Candidate { running: up.is_some(), rank_on_node: 0, created, slot, tasks }));
    }
    candidates.sort_by_key(|(_, candidate)| (candidate.created, candidate.slot));
    let mut on_node: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (node, candidate) in &mut candidates {
        if let Some(node) = node {
            let count = on_node.entry(*node).or_default();
            candidate.rank_on_node = *count;
            *count += 1;
        }
    }
    let mut candidates: Vec<Candidate<'s>> = candidates.into_iter().map(|(_, candidate)| candidate).collect();
    candidates.sort_by_key(|c| (c.running, Reverse((c.rank_on_node, c.created, c.slot))));
    candidates.into_iter().take(count).map(|candidate| candidate.tasks).collect()
}

/// A slot that is not wanted any more leaves nothing behind, as with Docker: its history goes too.
fn remove(work: &mut Work<'_>, tasks: &[TaskId]) {
    for id in tasks {
        work.want(*id, Desired::Remove);
    }
}

fn global(work: &mut Work<'_>, service: &Service, spec: &ServiceSpec) {
    let slots = work.slots_of(service.id);
    for (slot, tasks) in slots.iter() {
        let Slot::Node(node) = slot else { continue };
        match work.state.nodes.get(node) {
            None => remove(work, tasks),
            Some(node) if broken_constraint(&spec.task.placement, node).is_some() => remove(work, tasks),
            Some(node) if node.availability == Availability::Drain => end_open(work, tasks),
            Some(_) => {}
        }
    }
    let nodes: Vec<NodeId> = work
        .state
        .nodes
        .values()
        .filter(|node| node.availability == Availability::Active)
        .filter(|node| broken_constraint(&spec.task.placement, node).is_none())
        .filter(|node| fits_platform(&spec.task.placement, node))
        .map(|node| node.id)
        .collect();
    for node in nodes {
        let slot = Slot::Node(node);
        let filled = slots.get(&slot).is_some_and(|tasks| work.head(tasks).is_some());
        if !filled && work.life(node) == Life::Up {
            work.create_task(service, slot);
        }
    }
}

fn end_open(work: &mut Work<'_>, tasks: &[TaskId]) {
    for id in tasks {
        work.end_task(*id);
    }
}

/// Ids of services that the user removed and that have no task left.
pub(super) fn emptied(work: &Work<'_>) -> Vec<ServiceId> {
    let empty = |id: &ServiceId| work.slots.get(id).is_none_or(|slots| slots.is_empty());
    let removed = work.state.services.iter().filter(|(_, service)| service.removed);
    removed.map(|(id, _)| *id).filter(empty).collect()
}
