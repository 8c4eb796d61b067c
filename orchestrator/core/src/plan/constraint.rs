//! Which nodes a task may run on by what they are: constraints, and the platforms of the image.

use crate::model::{Constraint, Node, Placement, Platform, Role, address_matches};
use alloc::{collections::BTreeMap, string::String};

/// The first constraint that does not hold on a node.
pub(super) fn broken_constraint<'p>(placement: &'p Placement, node: &Node) -> Option<&'p Constraint> {
    placement.constraints.iter().find(|constraint| !holds(constraint, node))
}

/// Values are compared as SwarmKit does (`manager/constraint/constraint.go`): without regard to case, and what a node lacks
/// equals nothing.
fn holds(constraint: &Constraint, node: &Node) -> bool {
    let Constraint { key, equal, value } = constraint;
    let is = |found: &str| found.eq_ignore_ascii_case(value);
    let label = |labels: &BTreeMap<String, String>, key: &str| labels.get(key).is_some_and(|found| is(found));
    let platform = |part: fn(&Platform) -> &str| node.description.platform.as_ref().is_some_and(|own| is(part(own)));
    let same = match key.as_str() {
        "node.id" => is(&alloc::string::ToString::to_string(&node.id)),
        "node.hostname" => is(&node.hostname),
        "node.ip" => address_matches(value, &node.description.address),
        "node.role" => is(if node.role == Role::Manager { "manager" } else { "worker" }),
        "node.platform.os" => platform(|own| &own.os),
        "node.platform.arch" => platform(|own| &own.arch),
        key => match (key.strip_prefix("node.labels."), key.strip_prefix("engine.labels.")) {
            (Some(key), _) => label(&node.labels, key),
            (_, Some(key)) => label(&node.description.labels, key),
            _ => false,
        },
    };
    same == *equal
}

/// Whether the image has a variant for a node; unknown on either side is no hindrance.
pub(super) fn fits_platform(placement: &Placement, node: &Node) -> bool {
    let Some(own) = &node.description.platform else { return true };
    let fits = |image: &Platform| {
        image.os == own.os
            && image.arch == own.arch
            && (image.variant.is_empty() || own.variant.is_empty() || image.variant <= own.variant)
    };
    placement.platforms.is_empty() || placement.platforms.iter().any(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Availability, NodeDescription, NodeId, UnixMillis};
    use std::format;

    fn node() -> Node {
        let labels = |key: &str, value: &str| BTreeMap::from([(String::from(key), String::from(value))]);
        Node {
            id: NodeId(36),
            hostname: "pi-1".into(),
            role: Role::Worker,
            raft_id: None,
            availability: Availability::Active,
            labels: labels("zone", "barn"),
            description: NodeDescription {
                platform: Some(Platform { os: "linux".into(), arch: "arm64".into(), variant: "v8".into() }),
                labels: labels("camera", "yes"),
                address: "10.99.0.7".into(),
                ..NodeDescription::default()
            },
            created_at: UnixMillis(0),
        }
    }

    #[test]
    fn each_kind_of_constraint_holds_for_equal_values_and_breaks_for_others() {
        let id = format!("{}", NodeId(36));
        for (key, value, other) in [
            ("node.id", id.as_str(), "0000000000000000000000001"),
            ("node.hostname", "PI-1", "pi"),
            ("node.ip", "10.99.0.7", "10.99.0.70"),
            ("node.ip", "10.99.0.0/24", "10.98.0.0/24"),
            ("node.ip", "0.0.0.0/0", "10.99.0.7/0x"),
            ("node.ip", "10.99.0.6/31", "fd99::7"),
            ("node.role", "worker", "manager"),
            ("node.platform.os", "linux", "windows"),
            ("node.platform.arch", "arm64", "amd64"),
            ("node.labels.zone", "barn", "field"),
            ("engine.labels.camera", "yes", "no"),
        ] {
            let outcome =
                |equal, value: &str| holds(&Constraint { key: key.into(), equal, value: value.into() }, &node());
            assert_eq!([outcome(true, value), outcome(false, value)], [true, false], "{key}=={value}");
            assert_eq!([outcome(true, other), outcome(false, other)], [false, true], "{key}!={other}");
        }
    }

    #[test]
    fn what_a_node_lacks_equals_nothing() {
        let bare = Node { labels: BTreeMap::new(), description: NodeDescription::default(), ..node() };
        for text in ["node.labels.zone==barn", "engine.labels.camera==yes", "node.platform.os==linux", "node.ip==::/0"]
        {
            let constraint = Constraint::parse(text).unwrap();
            assert!(!holds(&constraint, &bare), "{text}");
            assert!(holds(&Constraint { equal: false, ..constraint }, &bare), "{text}");
        }
    }
}
