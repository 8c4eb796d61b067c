//! Counting: passed, failed and skipped tests from nextest's JUnit report and from libtest's summary lines.
//!
//! A test that cannot run on a machine prints `SKIPPED: why` and passes; the report keeps what it printed.

use anyhow::{Context, Result};

const SKIPPED: &str = "SKIPPED: ";

/// How many tests passed, which failed, and which said why they cannot run.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failures: Vec<String>,
    pub(super) skips: Vec<(String, String)>,
}

impl Count {
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }
}

/// Counts the test cases of a report as nextest writes it.
pub(super) fn count(report: &str) -> Result<Count> {
    let mut count = Count::default();
    for part in report.split("<testcase ").skip(1) {
        let name = attribute(part, "name").context("a test case without a name in nextest's report")?;
        let suite = attribute(part, "classname").unwrap_or_default();
        let name = format!("{suite} {name}");
        // Attributes may contain `>`, but only after one of these would be text of the element.
        let body = part.split("</testcase>").next().unwrap_or(part);
        if body.contains("<failure") || body.contains("<error") {
            count.failures.push(name);
        } else if let Some(why) = skip_reason(body) {
            count.skips.push((name, why));
        } else {
            count.passed += 1;
        }
    }
    Ok(count)
}

fn skip_reason(body: &str) -> Option<String> {
    let start = body.find(SKIPPED)? + SKIPPED.len();
    let line = body[start..].lines().next()?;
    Some(unescaped(line.split("</system-").next()?))
}

fn attribute(element: &str, name: &str) -> Option<String> {
    let start = format!("{name}=\"");
    // The element's own attributes begin it, or follow a blank.
    let at = if element.starts_with(&start) { 0 } else { element.find(&format!(" {start}"))? + 1 };
    let value = &element[at + start.len()..];
    Some(unescaped(&value[..value.find('"')?]))
}

fn unescaped(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&#39;", "'").replace("&amp;", "&")
}

/// Counts libtest's summaries: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
pub(super) fn count_libtest(output: &str, what: &str) -> Count {
    let mut count = Count::default();
    for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |word: &str| {
            let part = line.split([';', '.']).find(|part| part.ends_with(word))?;
            part.split_whitespace().next()?.parse::<usize>().ok()
        };
        count.passed += number(" passed").unwrap_or(0);
        let failed = number(" failed").unwrap_or(0);
        count.failures.extend((0..failed).map(|_| what.to_owned()));
        let ignored = number(" ignored").unwrap_or(0);
        let skip = (what.to_owned(), "marked to be ignored".to_owned());
        count.skips.extend((0..ignored).map(|_| skip.clone()));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" uuid="x">
    <testsuite name="a::lab_x" tests="3" disabled="0" errors="0" failures="1">
        <testcase name="one" classname="a::lab_x" timestamp="2026" time="0.011">
            <system-out>running 1 test
test one ... ok</system-out>
        </testcase>
        <testcase name="two" classname="a::lab_x" time="0.011">
            <system-out>running 1 test
SKIPPED: no XDP on &lt;this&gt; kernel
test two ... ok</system-out>
        </testcase>
        <testcase name="three" classname="a::lab_x" time="0.011">
            <failure message="panicked" type="test failure">SKIPPED: not this</failure>
        </testcase>
    </testsuite>
</testsuites>"#;

    #[test]
    fn a_report_is_counted_and_skips_keep_their_reason() {
        let want = Count {
            passed: 1,
            failures: vec!["a::lab_x three".to_owned()],
            skips: vec![("a::lab_x two".to_owned(), "no XDP on <this> kernel".to_owned())],
        };
        assert_eq!(count(REPORT).unwrap(), want);
    }

    #[test]
    fn summaries_of_documentation_tests_add_up() {
        let output = "\nrunning 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                      test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let count = count_libtest(output, "an example");
        assert_eq!((count.passed, count.failures.len(), count.skips.len()), (4, 2, 1));
    }
}
