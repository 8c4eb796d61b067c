//! A Rust file as the rules see it: its text, and its code without comments and literals, line for line.
//!
//! This is a scanner of tokens' borders, not a parser: enough to tell code from prose and tests from the product.

use std::path::{Path, PathBuf};

/// A Rust file.
pub(super) struct Source<'a> {
    /// As it is.
    pub(super) text: &'a str,
    /// The same with blanks in place of comments and of what literals contain; line breaks are where they were.
    pub(super) code: String,
    /// For every line from 0: whether it belongs to a `#[cfg(test)]` item.
    test_lines: Vec<bool>,
}

impl<'a> Source<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        let code = blanked(text);
        let test_lines = test_lines(&code);
        Self { text, code, test_lines }
    }

    /// The lines of code with their numbers from 1 and whether they are a test's.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        let lines = self.code.lines().enumerate();
        lines.map(|(index, line)| (index + 1, line, self.test_lines.get(index).copied().unwrap_or(false)))
    }
}

impl Source<'_> {
    /// The modules in files of their own that this file declares under `#[cfg(test)]`, as paths without `.rs`.
    pub(super) fn test_modules(&self, file: &Path) -> Vec<PathBuf> {
        let own_folder = matches!(file.file_stem().and_then(|stem| stem.to_str()), Some("mod" | "lib" | "main"));
        let folder = if own_folder { file.with_file_name("") } else { file.with_extension("") };
        let declarations = self.lines().filter(|(_, _, test)| *test).filter_map(|(_, line, _)| {
            let declared = line.trim().strip_suffix(';')?.rsplit_once("mod ")?.1;
            declared.chars().all(is_word).then(|| folder.join(declared))
        });
        declarations.collect()
    }
}

/// Replaces comments and the contents of literals by blanks.
fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (skip, quotes) = match first {
            '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), 0),
            '/' if rest.starts_with("/*") => (block_comment(rest), 0),
            '"' => (string(rest), 1),
            'r' | 'b' | 'c' if !continues_word(&out) => (prefixed_string(rest), 0),
            '\'' => (character(rest), 0),
            _ => (0, 0),
        };
        if skip == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        for (index, character) in rest[..skip].char_indices() {
            let keep = character == '\n' || index < quotes;
            out.push(if keep { character } else { ' ' });
        }
        rest = &rest[skip..];
    }
    out
}

fn continues_word(before: &str) -> bool {
    before.chars().next_back().is_some_and(is_word)
}

pub(super) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a string literal that begins with its quote.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (index, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of `r"…"`, `r#"…"#`, `b"…"`, `br"…"`, `c"…"`, `b'…'`; 0 where it is none of them.
fn prefixed_string(text: &str) -> usize {
    let letters = text.find(|character| !matches!(character, 'r' | 'b' | 'c')).unwrap_or(text.len());
    let raw = text[..letters].contains('r');
    let hashes = text[letters..].find(|character| character != '#').unwrap_or(0);
    let start = letters + hashes;
    match text[start..].chars().next() {
        Some('"') if raw => {
            let end = format!("\"{}", "#".repeat(hashes));
            text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len())
        }
        Some('"') if hashes == 0 => start + string(&text[start..]),
        Some('\'') if hashes == 0 && &text[..letters] == "b" => start + character(&text[start..]),
        _ => 0,
    }
}

/// The length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        // The longest is '\u{10ffff}'.
        Some((_, '\\')) => text[3..].find('\'').map_or(0, |at| at + 4),
        Some(_) => match characters.next() {
            Some((index, '\'')) => index + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// Marks the lines of items under `#[cfg(test)]`.
fn test_lines(code: &str) -> Vec<bool> {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    let mut marks = vec![false; code.lines().count()];
    let line_of = |at: usize| code[..at].matches('\n').count();
    for (start, _) in code.match_indices(ATTRIBUTE) {
        let end = start + item(&code[start..]);
        let last = line_of(end).min(marks.len().saturating_sub(1));
        marks[line_of(start)..=last].fill(true);
    }
    marks
}

/// The length of an item with its attributes: to its `;`, or to the bracket that closes its body.
fn item(code: &str) -> usize {
    let mut depth = 0_usize;
    for (index, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth <= 1 => return index,
            '}' => depth -= 1,
            ';' if depth == 0 => return index,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_lines_stay() {
        let text = "a(); // x.unwrap()\n/* b /* c */\n d */ e(\"x\\\"y\", 'z', '\\n', b\"q\", r#\"r\"s\"#);";
        let code = blanked(text);
        assert_eq!(code.lines().count(), 3);
        assert_eq!(code.split_whitespace().collect::<String>(), "a();e(\",,,,);");
        assert_eq!(code.len(), text.len());
    }

    #[test]
    fn lifetimes_and_words_that_end_like_a_prefix_are_code() {
        let text = "fn f<'a>(attr: &'a str) -> &'a str { var }";
        assert_eq!(blanked(text), text);
    }

    #[test]
    fn modules_that_only_tests_have_are_found_by_their_declaration() {
        let source = Source::read("#[cfg(test)]\nmod fake;\nmod real;\n#[cfg(test)]\nmod tests { mod inner; }\n");
        assert_eq!(source.test_modules(Path::new("src/image/mod.rs")), [PathBuf::from("src/image/fake")]);
        assert_eq!(source.test_modules(Path::new("src/image.rs")), [PathBuf::from("src/image/fake")]);
    }

    #[test]
    fn only_the_lines_of_test_items_are_tests() {
        let source = Source::read(
            "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nuse d;\nfn e() {}",
        );
        let tests: Vec<usize> = source.lines().filter(|(_, _, test)| *test).map(|(line, ..)| line).collect();
        assert_eq!(tests, [2, 3, 4, 5, 7, 8]);
    }
}
