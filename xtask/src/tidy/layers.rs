//! The dependency rules of the library: arrows point down, drivers do not know each other, and each large library is
//! known to one module.
//!
//! ```text
//! bin -> {api, cli, leader, agent} -> {store, transport, pki, runtime, image, network, dataplane} -> core
//! ```

use super::{
    Finding,
    source::{Source, is_word},
};
use std::path::Path;

const LIBRARY: &str = "orchestrator/src";

/// Modules above the drivers and the store.
const UPPER: &[&str] = &["api", "cli", "leader", "agent"];
/// Modules that act on the node's kernel.
const DRIVERS: &[&str] = &["runtime", "image", "network", "dataplane"];

/// A module must not use others.
struct Arrow {
    from: &'static [&'static str],
    not_to: &'static [&'static str],
    why: &'static str,
}

const ARROWS: &[Arrow] = &[
    Arrow {
        from: DRIVERS,
        not_to: DRIVERS,
        why: "drivers do not know each other: the agent composes them in the order of its ops",
    },
    Arrow {
        from: DRIVERS,
        not_to: &["store", "transport", "pki"],
        why: "a driver takes desired things and knows nothing of the cluster",
    },
    Arrow {
        from: &[
            "store",
            "transport",
            "pki",
            "runtime",
            "image",
            "network",
            "dataplane",
            "config",
            "clock",
            "telemetry",
        ],
        not_to: UPPER,
        why: "arrows point down",
    },
    Arrow {
        from: &["leader"],
        not_to: DRIVERS,
        why: "the leader never touches a driver: it and the agent meet only in `core::wire`",
    },
    Arrow {
        from: &["leader"],
        not_to: &["agent", "api", "cli"],
        why: "arrows point down and leader and agent meet only in `core::wire`",
    },
    Arrow {
        from: &["agent"],
        not_to: &["leader", "store", "api", "cli"],
        why: "the agent never writes State; it and the leader meet only in `core::wire`",
    },
    Arrow {
        from: &["cli"],
        not_to: &["leader", "agent", "store", "runtime", "image", "network", "dataplane"],
        why: "the command line is a client: what it does goes through the API",
    },
];

/// A library and the only module that may know it.
const LIBRARIES: &[(&[&str], &str)] = &[
    (&["openraft"], "store"),
    (&["quinn"], "transport"),
    (&["aya"], "dataplane"),
    (&["rtnetlink", "netlink_packet_route", "netlink_sys", "netlink_packet_core"], "network"),
    (&["libcontainer", "libcgroups"], "runtime"),
];
const ONE_MODULE: &str = "one module knows it, so that replacing it is one module's work";

pub(super) fn check(file: &Path, source: &Source<'_>) -> Vec<Finding> {
    let Some(module) = module(file) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let mut add = |line, what, why| findings.push(Finding { file: file.to_owned(), line, what, why });
    for (line, used) in used_modules(&source.code) {
        let broken =
            ARROWS.iter().find(|arrow| used != module && arrow.from.contains(&module) && arrow.not_to.contains(&used));
        if let Some(arrow) = broken {
            add(line, format!("`{module}` uses `{used}`"), arrow.why);
        }
    }
    for (number, line, _) in source.lines() {
        for (names, owner) in LIBRARIES.iter().filter(|(_, owner)| *owner != module) {
            for name in names.iter().filter(|name| names_crate(line, name)) {
                add(number, format!("`{module}` uses the library `{name}`, which is `{owner}`'s"), ONE_MODULE);
            }
        }
    }
    findings
}

/// The module of the library that a file belongs to; none for other packages' files.
fn module(file: &Path) -> Option<&str> {
    let inside = file.strip_prefix(LIBRARY).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// The modules of the library that code names by `crate::…`, or in a program by `orchestrator::…`, with their lines.
fn used_modules(code: &str) -> Vec<(usize, &str)> {
    let mut used = Vec::new();
    for root in ["crate::", "orchestrator::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].chars().next_back().is_some_and(is_word) {
                continue;
            }
            let rest = &code[at + root.len()..];
            for (offset, name) in first_names(rest) {
                let line = code[..at + root.len() + offset].matches('\n').count() + 1;
                used.push((line, name));
            }
        }
    }
    used
}

/// The first name of each path in `a::b`, or in `{a::{b, c}, d}`, with its place.
fn first_names(path: &str) -> Vec<(usize, &str)> {
    if !path.starts_with('{') {
        return name_at(path, 0).into_iter().collect();
    }
    let (mut depth, mut names, mut expected) = (0, Vec::new(), true);
    for (index, character) in path.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expected = true,
            _ if depth == 1 && expected && is_word(character) => {
                names.extend(name_at(path, index));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn name_at(text: &str, at: usize) -> Option<(usize, &str)> {
    let rest = &text[at..];
    let end = rest.find(|character| !is_word(character)).unwrap_or(rest.len());
    (end > 0).then(|| (at, &rest[..end]))
}

/// Whether a line of code names a crate: as the head of a path or in a `use`.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        let head = !before.ends_with("::") || before.ends_with("use ::");
        let whole = before.chars().next_back().is_none_or(|character| !is_word(character) && character != '.');
        head && whole && (after.starts_with("::") || before.trim_end().ends_with("use"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        let findings = check(Path::new(file), &Source::read(text));
        findings.into_iter().map(|finding| format!("{} {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn a_driver_that_uses_another_is_found_however_it_is_imported() {
        assert_eq!(found("orchestrator/src/runtime.rs", "use crate::network::Link;"), ["1 `runtime` uses `network`"]);
        assert_eq!(
            found("orchestrator/src/image/store.rs", "use crate::{\n    config::{runtime, a},\n    dataplane::b,\n};"),
            ["3 `image` uses `dataplane`"]
        );
        assert_eq!(
            found("orchestrator/src/image/store.rs", "fn a() { crate::agent::b() }"),
            ["1 `image` uses `agent`"]
        );
    }

    #[test]
    fn a_module_may_use_itself_and_what_lies_below() {
        assert_eq!(found("orchestrator/src/image/store.rs", "use crate::{image::digest, config};"), [""; 0]);
        assert_eq!(found("orchestrator/src/agent/ops.rs", "use crate::{runtime, network, image, dataplane};"), [""; 0]);
        assert_eq!(found("orchestrator/src/bin/edged.rs", "use orchestrator::{agent, leader, store, api};"), [""; 0]);
    }

    #[test]
    fn leader_and_agent_do_not_meet() {
        assert_eq!(found("orchestrator/src/leader.rs", "use crate::agent::A;"), ["1 `leader` uses `agent`"]);
        assert_eq!(found("orchestrator/src/agent.rs", "use crate::store::A;"), ["1 `agent` uses `store`"]);
    }

    #[test]
    fn a_library_is_found_outside_its_module() {
        let what = "1 `agent` uses the library `aya`, which is `dataplane`'s";
        assert_eq!(found("orchestrator/src/agent.rs", "use aya::Ebpf;"), [what]);
        assert_eq!(found("orchestrator/src/agent.rs", "fn a() { aya::b() }"), [what]);
        assert_eq!(found("orchestrator/src/dataplane/load.rs", "use aya::Ebpf;"), [""; 0]);
        assert_eq!(found("orchestrator/src/agent.rs", "//! What aya::x is.\nlet aya_count = papaya::b;"), [""; 0]);
    }

    #[test]
    fn other_packages_have_no_layers() {
        assert_eq!(found("orchestrator-ebpf/src/main.rs", "use aya::Ebpf;"), [""; 0]);
    }
}
