//! Where output goes and how lists look: tables that fit the terminal, templates, JSON, ids only.

use super::{Error, Result, template::Template};
use serde_json::{Map, Value};
use std::io::{self, IsTerminal, Write};

/// Standard output and standard error, or what stands for them in tests.
pub struct Out {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    /// Characters per line, if standard output is a terminal.
    pub width: Option<usize>,
    /// Whether standard error is a terminal that shows colours and bars.
    pub colour: bool,
}

impl Out {
    /// The process's own.
    #[must_use]
    pub fn standard() -> Self {
        let width = io::stdout()
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(io::stdout()).map_or(80, |size| usize::from(size.ws_col)))
            .map(|width| if width == 0 { 80 } else { width });
        Self {
            stdout: Box::new(io::BufWriter::new(io::stdout())),
            stderr: Box::new(io::stderr()),
            width,
            colour: io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Any two writers; no terminal.
    #[must_use]
    pub fn to(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        Self { stdout, stderr, width: None, colour: false }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdout.write_all(bytes)
    }

    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Writes a line.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.write(text)?;
        self.write("\n")
    }

    /// Writes bytes to standard error.
    pub(super) fn error_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stderr.write_all(bytes)?;
        self.stderr.flush()
    }

    /// Writes a line to standard error. That nobody reads it is no reason to stop.
    pub(super) fn error(&mut self, text: &str) {
        let _ = writeln!(self.stderr, "{text}");
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

/// Flags that every list has.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct ListFlags {
    /// Only objects that fit, KEY=VALUE; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(super) filter: Vec<String>,
    /// Print each object by a template ("{{.ID}} {{.Name}}"), "table TEMPLATE" or "json"
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) format: Option<String>,
    /// Print the objects as the API gives them
    #[arg(long, conflicts_with = "format")]
    pub(super) json: bool,
    /// Only ids
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not shorten anything
    #[arg(long)]
    pub(super) no_trunc: bool,
}

/// A column: the name that templates know it by, and its header.
pub(super) type Column = (&'static str, &'static str);

/// One object of a list, by the names that templates know.
pub(super) type Row = Map<String, Value>;

/// Makes a row.
pub(super) fn row<const N: usize>(fields: [(&str, String); N]) -> Row {
    fields.into_iter().map(|(key, value)| (key.to_owned(), Value::String(value))).collect()
}

/// Prints a list as the flags want it. `objects` are the API's, for `--json`; the first column is the id.
pub(super) fn list(out: &mut Out, flags: &ListFlags, columns: &[Column], rows: &[Row], objects: &Value) -> Result {
    if flags.json {
        return print_json(out, objects);
    }
    if flags.quiet {
        for row in rows {
            out.line(cell(row, columns[0].0))?;
        }
        return Ok(());
    }
    let Some(format) = &flags.format else { return table(out, columns, rows, flags.no_trunc) };
    if format == "json" {
        for row in rows {
            out.line(&Value::Object(row.clone()).to_string())?;
        }
        return Ok(());
    }
    if format == "table" {
        return table(out, columns, rows, flags.no_trunc);
    }
    let (format, headed) = match format.strip_prefix("table ") {
        Some(rest) => (rest, true),
        None => (format.as_str(), false),
    };
    let template = Template::parse(format)?;
    if !headed {
        for row in rows {
            out.line(&template.render(&Value::Object(row.clone()))?)?;
        }
        return Ok(());
    }
    let header: Row = columns.iter().map(|(name, header)| ((*name).into(), Value::from(*header))).collect();
    let mut lines = Vec::new();
    for row in std::iter::once(&header).chain(rows) {
        let line = template.render(&Value::Object(row.clone()))?;
        lines.push(line.split('\t').map(str::to_owned).collect());
    }
    print_cells(out, lines, true)
}

fn cell<'a>(row: &'a Row, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or("")
}

/// Prints rows under headers.
pub(super) fn table(out: &mut Out, columns: &[Column], rows: &[Row], no_trunc: bool) -> Result {
    let header = columns.iter().map(|(_, header)| (*header).to_owned()).collect();
    let body = rows.iter().map(|row| columns.iter().map(|(name, _)| cell(row, name).to_owned()).collect());
    print_cells(out, std::iter::once(header).chain(body).collect(), no_trunc)
}

/// Spaces between two columns, as Docker's tables have.
const GAP: usize = 3;
/// A column is not made narrower than this to fit a terminal.
const NARROWEST: usize = 8;

fn print_cells(out: &mut Out, lines: Vec<Vec<String>>, no_trunc: bool) -> Result {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|text| width(text)).max().unwrap_or(0))
        .collect();
    if let (Some(terminal), false) = (out.width, no_trunc) {
        fit(&mut widths, terminal);
    }
    for line in lines {
        let mut text = String::new();
        for (at, cell) in line.iter().enumerate() {
            let cell = shorten(cell, widths[at]);
            let fill = if at + 1 == columns { 0 } else { widths[at] + GAP - width(&cell) };
            text.push_str(&cell);
            text.push_str(&" ".repeat(fill));
        }
        out.line(text.trim_end())?;
    }
    Ok(())
}

/// Takes from the widest columns until the line fits, but leaves each its narrowest.
fn fit(widths: &mut [usize], terminal: usize) {
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    while total(widths) > terminal {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => return,
        }
    }
}

/// Cuts a text to a number of characters; an ellipsis shows that something is missing.
pub(super) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The start of an id that Docker shows.
pub(super) fn short_id(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

/// Prints a value as indented JSON.
pub(super) fn print_json(out: &mut Out, value: &Value) -> Result {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::new(error.to_string()))?;
    Ok(out.line(&text)?)
}

/// Prints objects for `inspect`: indented JSON, or a template for each.
pub(super) fn inspect(out: &mut Out, format: Option<&str>, objects: Vec<Value>) -> Result {
    match format {
        None => print_json(out, &Value::Array(objects)),
        Some("json") => objects.iter().try_for_each(|object| Ok(out.line(&object.to_string())?)),
        Some(format) => {
            let template = Template::parse(format)?;
            objects.iter().try_for_each(|object| Ok(out.line(&template.render(object)?)?))
        }
    }
}

/// A number of bytes in powers of ten, as Docker shows sizes: `1.2kB`, `187MB`.
pub(super) fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A number of bytes in powers of two, as Docker shows memory: `1.5MiB`.
pub(super) fn memory(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = if value >= 100.0 || unit == 0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let number = format!("{value:.digits$}");
    let number = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_give_way_where_they_are_widest() {
        let mut widths = [12, 60, 20];
        fit(&mut widths, 80);
        assert_eq!(widths, [12, 42, 20]);
        let mut narrow = [8, 8, 8];
        fit(&mut narrow, 10);
        assert_eq!(narrow, [8, 8, 8]);
        assert_eq!(shorten("abcdef", 4), "abc…");
    }

    #[test]
    fn sizes_are_rounded_as_docker_does() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1_200, "1.2kB"), (187_000_000, "187MB"), (12_340_000, "12.3MB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(memory(1_572_864), "1.5MiB");
    }
}
