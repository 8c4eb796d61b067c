//! Numbers: published ports that the cluster chooses, addresses on a node's local network, and the cluster-wide numbers by
//! which the dataplane finds a backend. A number that was given back is handed out again as late as possible: connections
//! and caches elsewhere may still mean its last owner.

use super::{Subject, Why, work::Work};
use crate::{
    assignment::published_ports,
    forwarding::LAST_BACKEND,
    model::{PortSpec, Protocol, Task, TaskId},
};
use alloc::{collections::BTreeSet, vec::Vec};
use core::ops::RangeInclusive;

/// Ports that the cluster chooses from: Docker's choice (SwarmKit `portallocator`), below Linux' default range of ephemeral
/// ports.
const CHOSEN_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Host parts on the node-local network, a /16: 0 is the network, 1 the gateway, 65535 broadcast, 65534 is left free.
const ADDRESSES: RangeInclusive<u16> = 2..=65533;

/// Numbers of backends; 0 means none.
const BACKENDS: RangeInclusive<u16> = 1..=LAST_BACKEND;

/// Fills in the published ports that the cluster chooses; once chosen, they stay.
pub(super) fn choose_ports(work: &mut Work<'_>) {
    let mut taken: Option<BTreeSet<(Protocol, u16)>> = None;
    for id in work.service_ids() {
        let Some((service, version)) = work.wanted(id) else { continue };
        if service.removed {
            continue;
        }
        let mut ports = published_ports(&service, &version.spec);
        if ports.iter().any(|port| port.published == 0) {
            let taken = taken.get_or_insert_with(|| taken_ports(work));
            for port in ports.iter_mut().filter(|port| port.published == 0) {
                let free = CHOSEN_PORTS.into_iter().find(|number| !taken.contains(&(port.protocol, *number)));
                if let Some(number) = free {
                    port.published = number;
                    taken.insert((port.protocol, number));
                }
            }
        }
        if ports.iter().any(|port| port.published == 0) {
            work.explain(Subject::Service(id), Why::NoPort);
        }
        if ports != service.ports {
            work.change_service(id, |service| service.ports = ports);
        }
    }
}

/// Published by services, or held by processes of a node.
fn taken_ports(work: &Work<'_>) -> BTreeSet<(Protocol, u16)> {
    let services = work.state.services.values().filter(|service| !service.removed).flat_map(|service| {
        let spec = work.state.current_spec(service).map(|version| version.value.spec.endpoint.ports.clone());
        service.ports.iter().copied().chain(spec.unwrap_or_default()).collect::<Vec<PortSpec>>()
    });
    let held = work.live.nodes.values().flat_map(|node| &node.report.held_ports);
    services.map(|port| (port.protocol, port.published)).chain(held.map(|held| (held.protocol, held.port))).collect()
}

/// The numbers of a task's backends when the published ports of its service change: a port that still leads to the same
/// target keeps its number, others get 0 until a number is chosen.
pub(super) fn carry_over(backends: &[u16], old: &[PortSpec], new: &[PortSpec]) -> Vec<u16> {
    let mut known: Vec<(&PortSpec, u16)> = old.iter().zip(backends.iter().copied()).collect();
    let carry = |port: &PortSpec| {
        let same = known.iter().position(|(old, _)| (old.protocol, old.target) == (port.protocol, port.target));
        same.map_or(0, |at| known.remove(at).1)
    };
    new.iter().map(carry).collect()
}

/// Numbers of one kind and who has them.
#[derive(Debug)]
pub(super) struct Numbers {
    range: RangeInclusive<u16>,
    /// Of tasks that have not ended.
    used: BTreeSet<u16>,
    /// Of tasks that have, and are still known.
    remembered: BTreeSet<u16>,
    /// Where the search for the next one begins: after the number that was given out last.
    next: Option<u16>,
    newest: u64,
}

impl Numbers {
    pub(super) fn of_addresses() -> Self {
        Self::new(ADDRESSES)
    }

    pub(super) fn of_backends() -> Self {
        Self::new(BACKENDS)
    }

    fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, used: BTreeSet::new(), remembered: BTreeSet::new(), next: None, newest: 0 }
    }

    /// Takes note of a number that a task has.
    pub(super) fn note(&mut self, number: u16, task: &Task, created: u64) {
        let set = if task.outcome.is_none() { &mut self.used } else { &mut self.remembered };
        set.insert(number);
        let follower = number.checked_add(1).filter(|next| self.range.contains(next)).unwrap_or(*self.range.start());
        if (created, Some(follower)) > (self.newest, self.next) {
            (self.newest, self.next) = (created, Some(follower));
        }
    }

    /// Whether [`Self::take`] finds one.
    pub(super) fn is_exhausted(&self) -> bool {
        self.used.len() > usize::from(*self.range.end() - *self.range.start())
    }

    /// A number that no task has, if possible not even one that ended. `task` decides where to begin if nothing is known.
    pub(super) fn take(&mut self, task: TaskId) -> Option<u16> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let size = u128::from(last - first) + 1;
        let start = self.next.unwrap_or(first + (task.0 % size) as u16);
        let from = |start: u16| (start..=last).chain(first..start);
        let fresh = from(start).find(|number| !self.used.contains(number) && !self.remembered.contains(number));
        let number = fresh.or_else(|| from(start).find(|number| !self.used.contains(number)))?;
        self.used.insert(number);
        self.next = Some(if number == last { first } else { number + 1 });
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Desired, End, Outcome, ServiceId, Slot, UnixMillis};

    fn task(ended: bool) -> Task {
        let outcome = Outcome { end: End::Failed, at: UnixMillis(0), exit_code: None, message: "".into() };
        Task {
            id: TaskId(1),
            service: ServiceId(1),
            slot: Slot::Replica(1),
            version: 1,
            created_at: UnixMillis(0),
            placed: None,
            desired: Desired::Run,
            outcome: ended.then_some(outcome),
        }
    }

    #[test]
    fn numbers_go_up_from_the_newest_task_and_wrap_around() {
        let mut numbers = Numbers::new(1..=5);
        numbers.note(4, &task(false), 8);
        numbers.note(2, &task(false), 3);
        let taken: Vec<_> = (0..4).map(|_| numbers.take(TaskId(0))).collect();
        assert_eq!(taken, [Some(5), Some(1), Some(3), None]);
    }

    #[test]
    fn numbers_of_ended_tasks_are_used_again_only_when_there_are_no_others() {
        let mut numbers = Numbers::new(1..=4);
        numbers.note(1, &task(false), 1);
        numbers.note(2, &task(true), 2);
        let taken: Vec<_> = (0..3).map(|_| numbers.take(TaskId(0))).collect();
        assert_eq!(taken, [Some(3), Some(4), Some(2)]);
        assert!(numbers.is_exhausted());
    }

    #[test]
    fn with_nothing_known_the_task_decides_where_to_begin() {
        let first = |id| Numbers::of_addresses().take(TaskId(id));
        assert_eq!((first(0), first(7), first(65_532)), (Some(2), Some(9), Some(2)));
        assert_eq!(first(65_531), Some(65533));
    }

    #[test]
    fn backends_keep_their_numbers_when_ports_come_go_and_change_order() {
        let port = |target, published| PortSpec {
            protocol: Protocol::Tcp,
            target,
            published,
            mode: crate::model::PublishMode::Ingress,
        };
        let old = [port(80, 8080), port(443, 8443), port(90, 9090)];
        let new = [port(443, 443), port(81, 81), port(80, 8080)];
        assert_eq!(carry_over(&[5, 6, 7], &old, &new), [6, 0, 5]);
    }
}
