//! Rules on single files and on the top level: each names what it found and why it matters.

use super::{Finding, source::Source, source::is_word};
use anyhow::{Context, Result};
use std::{collections::BTreeSet, fs, path::Path};

/// What the top level consists of, beside dotfiles and cargo's output.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "images",
    "orchestrator",
    "orchestrator-ebpf",
    "tests",
    "xtask",
];

/// Folders of a developer's machine: in a file they mean nothing to anybody else.
// Written in two halves, so that this file does not find itself.
const PRIVATE: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];

/// The one place of the tests' harness that waits: every other wait goes through its predicates.
const MAY_SLEEP: &str = "tests/src/wait.rs";

/// The top level is as agreed.
pub(super) fn top_level(root: &Path) -> Result<Vec<Finding>> {
    let entries = fs::read_dir(root).with_context(|| format!("list {}", root.display()))?;
    let names: BTreeSet<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    let agreed: BTreeSet<String> = TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect();
    let finding = |name: &String, what: &str| Finding {
        file: name.into(),
        line: 0,
        what: what.to_owned(),
        why: "the top level is agreed: code lies in orchestrator, orchestrator-ebpf, xtask, images or tests, settings in dotfiles",
    };
    let unknown = names.difference(&agreed).map(|name| finding(name, "not agreed at the top level"));
    let missing = agreed.difference(&names).map(|name| finding(name, "missing at the top level"));
    Ok(unknown.chain(missing).collect())
}

/// Rules for every text file.
pub(super) fn any_file(file: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in PRIVATE.iter().filter(|word| names_path(line, word)) {
            findings.push(Finding {
                file: file.to_owned(),
                line: index + 1,
                what: format!("names `{word}`"),
                why: "a path of one machine means nothing on another",
            });
        }
    }
    findings
}

/// Whether a line has a path that begins so; in the middle of a longer path it is a folder like any other.
fn names_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|character| !is_word(character) && !matches!(character, '}' | '.' | '>' | '/' | '*' | '~'))
    })
}

/// Rules for every Rust file; `is_test` where all of it is one.
pub(super) fn rust_file(file: &Path, source: &Source<'_>, is_test: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add =
        |line, what: &str, why| findings.push(Finding { file: file.to_owned(), line, what: what.to_owned(), why });
    // Either its own words or, where a module is explained at length, a page of the documentation.
    if !["//!", "#![doc = include_str!("].iter().any(|header| source.text.starts_with(header)) {
        add(
            1,
            "does not begin with `//!`",
            "a file opens with what it is, what comes in, what goes out and who calls it",
        );
    }
    if file == Path::new("orchestrator/core/src/lib.rs") {
        for attribute in ["no_std", "forbid(unsafe_code)"] {
            if !source.code.contains(attribute) {
                add(1, &format!("lacks `{attribute}`"), "the core decides and has no effects; the compiler proves it");
            }
        }
    }
    for (number, line, test) in source.lines() {
        let test = test || is_test;
        if !test && line.contains(".unwrap()") {
            add(number, "`.unwrap()`", "product code handles an error or says why there is none, by `expect(\"why\")`");
        }
        // Sometimes that time passes is what is tested; the line above then says so.
        let explained = number > 1
            && source.text.lines().nth(number - 2).is_some_and(|above| above.trim_start().starts_with("// "));
        if test && calls(line, "sleep") && !explained && file != Path::new(MAY_SLEEP) {
            add(
                number,
                "`sleep`",
                "tests wait for a predicate with a deadline; where time itself is tested, a comment above says why",
            );
        }
        if line.contains("#[ignore") {
            add(
                number,
                "`#[ignore]`",
                "a test that cannot run on a machine says why at run time and is counted as skipped",
            );
        }
    }
    findings
}

/// Files that hold nothing but tests: the tests package, and `tests.rs` or `tests/` beside a module.
pub(super) fn is_test_file(file: &Path) -> bool {
    file.components()
        .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs" | "benches" | "test_support.rs")))
}

/// Whether a line calls a function of this name.
fn calls(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_none_or(|character| !is_word(character));
        before && line[at + name.len()..].starts_with('(')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        let findings = rust_file(Path::new(file), &Source::read(text), is_test_file(Path::new(file)));
        findings.into_iter().map(|finding| format!("{} {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn a_file_without_a_header_is_found() {
        assert_eq!(found("xtask/src/a.rs", "use std::fs;\n"), ["1 does not begin with `//!`"]);
        assert_eq!(found("xtask/src/a.rs", "//! What it is.\n"), [""; 0]);
    }

    #[test]
    fn an_unwrap_is_found_in_the_product_and_not_in_tests() {
        let text = "//! A.\nfn a() { b().unwrap() }\n#[cfg(test)]\nmod tests { fn c() { d().unwrap() } }\n";
        assert_eq!(found("orchestrator/src/a.rs", text), ["2 `.unwrap()`"]);
        assert_eq!(found("tests/tests/a.rs", text), [""; 0]);
        assert_eq!(found("orchestrator/src/a.rs", "//! A.\n// x.unwrap()\nlet a = \".unwrap()\";\n"), [""; 0]);
    }

    #[test]
    fn a_sleep_is_found_in_tests_and_not_in_the_product() {
        let text = "//! A.\nfn a() { sleep(B) }\nfn c() { no_sleep(B) }\n";
        assert_eq!(found("tests/tests/a.rs", text), ["2 `sleep`"]);
        assert_eq!(found("tests/src/wait.rs", text), [""; 0]);
        assert_eq!(found("tests/tests/a.rs", "//! A.\n// Longer than any lease.\nsleep(LEASE);\n"), [""; 0]);
        assert_eq!(found("orchestrator/src/a.rs", text), [""; 0]);
    }

    #[test]
    fn an_ignored_test_is_found_anywhere() {
        assert_eq!(found("tests/tests/a.rs", "//! A.\n#[ignore]\n"), ["2 `#[ignore]`"]);
    }

    #[test]
    fn the_core_must_forbid_unsafe_code() {
        assert_eq!(found("orchestrator/core/src/lib.rs", "//! A.\n#![no_std]\n"), ["1 lacks `forbid(unsafe_code)`"]);
    }

    #[test]
    fn a_private_path_is_found_and_a_folder_of_that_name_in_a_path_is_not() {
        let path = PRIVATE[0];
        let lines = format!("cd {path}x\nlet a = \"{path}y\";\nformat!(\"{{upper}}{path}\");\nsrc{path}\n");
        let findings = any_file(Path::new("README.md"), &lines);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn an_unknown_and_a_missing_name_at_the_top_level_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for name in TOP_LEVEL.iter().filter(|name| **name != "README.md").chain(&["notes.txt", ".gitignore"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let findings = top_level(folder.path()).unwrap();
        let found: Vec<String> =
            findings.iter().map(|finding| format!("{} {}", finding.file.display(), finding.what)).collect();
        assert_eq!(found, ["notes.txt not agreed at the top level", "README.md missing at the top level"]);
    }
}
