//! `cargo xtask tidy`: the rules that no compiler checks.
//!
//! Comes in: the repository's files. Goes out: one line per finding: where, what, why. Called by people and by `test`.

mod layers;
mod rules;
mod source;

use crate::paths;
use anyhow::{Context, Result};
use source::Source;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A breach of a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// The file, seen from the root of the repository.
    file: PathBuf,
    /// From 1; 0 means the whole file.
    line: usize,
    what: String,
    why: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file.display(), self.line.max(1), self.what, self.why)
    }
}

pub(crate) fn run() -> Result<ExitCode> {
    let findings = check(paths::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

/// Checks a repository.
fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = rules::top_level(root)?;
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut texts = Vec::new();
    for file in files {
        let path = root.join(&file);
        // What is not text has no rules.
        if let Ok(text) = String::from_utf8(fs::read(&path).with_context(|| format!("read {}", path.display()))?) {
            texts.push((file, text));
        }
    }
    findings.extend(texts.iter().flat_map(|(file, text)| rules::any_file(file, text)));
    let is_rust = |file: &Path| file.extension().is_some_and(|extension| extension == "rs");
    let sources = texts.iter().filter(|(file, _)| is_rust(file)).map(|(file, text)| (file, Source::read(text)));
    let sources: Vec<(&PathBuf, Source<'_>)> = sources.collect();
    let tests: Vec<PathBuf> = sources.iter().flat_map(|(file, source)| source.test_modules(file)).collect();
    for (file, source) in &sources {
        let test = rules::is_test_file(file) || tests.iter().any(|test| file.with_extension("").starts_with(test));
        findings.extend(rules::rust_file(file, source, test));
        findings.extend(layers::check(file, source));
    }
    findings.sort();
    Ok(findings)
}

/// Lists the files below a folder, without what cargo and git keep there.
fn collect(root: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            if name == "target" || name == ".git" {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path().strip_prefix(root).expect("a walk stays below its root").to_owned());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_file_line_what_and_why() {
        let file = PathBuf::from("orchestrator/src/config.rs");
        let finding = Finding { file, line: 7, what: "`.unwrap()`".to_owned(), why: "a reason" };
        assert_eq!(finding.to_string(), "orchestrator/src/config.rs:7: `.unwrap()`: a reason");
    }
}
