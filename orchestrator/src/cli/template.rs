//! The part of Go's `text/template` that people write after `--format`: fields, `json` and a few functions, pipes between
//! them, text around them. What is not understood is refused by name.

use super::{Error, Result};
use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(String),
    /// Commands joined by pipes.
    Action(Vec<Vec<Word>>),
}

#[derive(Clone, Debug, PartialEq)]
enum Word {
    /// `.A.B`; empty for `.`.
    Field(Vec<String>),
    Literal(String),
    Number(usize),
    Function(String),
}

const FUNCTIONS: [&str; 9] = ["json", "len", "upper", "lower", "title", "join", "index", "println", "truncate"];

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self> {
        // A shell leaves `\t` and `\n` in single quotes as they are.
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find("{{") {
            parts.push(Part::Text(rest[..start].into()));
            let action = &rest[start + 2..];
            let end = action.find("}}").ok_or_else(|| Error::usage("invalid template: {{ without }}"))?;
            let inner = action[..end].trim().trim_start_matches("- ").trim_end_matches(" -");
            parts.push(Part::Action(parse_action(inner)?));
            rest = &action[end + 2..];
        }
        parts.push(Part::Text(rest.into()));
        Ok(Self(parts))
    }

    pub(super) fn render(&self, data: &Value) -> Result<String> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Action(commands) => {
                    let mut value: Option<Value> = None;
                    for command in commands {
                        value = Some(evaluate(command, value, data)?);
                    }
                    out.push_str(&show(&value.unwrap_or(Value::Null)));
                }
            }
        }
        Ok(out)
    }
}

fn parse_action(text: &str) -> Result<Vec<Vec<Word>>> {
    let keyword = text.split_whitespace().next().unwrap_or("");
    if ["range", "if", "else", "end", "with", "define", "template", "block", "range."].contains(&keyword) {
        return Err(Error::usage(format!(
            "template action {{{{{keyword}}}}} is not supported yet; use fields and {}, or --json",
            FUNCTIONS.join(", ")
        )));
    }
    let mut commands = vec![Vec::new()];
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('|') {
            commands.push(Vec::new());
            rest = after.trim_start();
            continue;
        }
        let (word, after) = parse_word(rest)?;
        if let Some(command) = commands.last_mut() {
            command.push(word);
        }
        rest = after.trim_start();
    }
    Ok(commands)
}

fn parse_word(text: &str) -> Result<(Word, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let end = quoted.find('"').ok_or_else(|| Error::usage("invalid template: a \" is missing"))?;
        return Ok((Word::Literal(quoted[..end].into()), &quoted[end + 1..]));
    }
    let end = text.find([' ', '|', '\t']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let parsed = if let Some(path) = word.strip_prefix('.') {
        Word::Field(path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    } else if let Ok(number) = word.parse() {
        Word::Number(number)
    } else if FUNCTIONS.contains(&word) {
        Word::Function(word.into())
    } else {
        return Err(Error::usage(format!(
            "template function {word:?} is not supported; use fields and {}",
            FUNCTIONS.join(", ")
        )));
    };
    Ok((parsed, rest))
}

fn field(data: &Value, path: &[String]) -> Result<Value> {
    let mut value = data;
    for name in path {
        let object = value.as_object();
        let found = object.and_then(|map| {
            map.get(name).or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
        });
        match (found, object) {
            (Some(found), _) => value = found,
            // The API leaves empty fields out, so that a field that is missing may well exist.
            (None, Some(_)) if path.len() > 1 || data.get("Spec").is_some() => return Ok(Value::Null),
            (None, Some(map)) => {
                let known: Vec<&str> = map.keys().map(String::as_str).collect();
                return Err(Error::usage(format!(
                    "template field .{name} does not exist; there are: {}",
                    known.join(", ")
                )));
            }
            (None, None) => return Ok(Value::Null),
        }
    }
    Ok(value.clone())
}

fn evaluate(command: &[Word], piped: Option<Value>, data: &Value) -> Result<Value> {
    let Some((first, rest)) = command.split_first() else {
        return Err(Error::usage("invalid template: an action is empty"));
    };
    let mut arguments = Vec::new();
    for word in rest {
        arguments.push(match word {
            Word::Field(path) => field(data, path)?,
            Word::Literal(text) => Value::from(text.as_str()),
            Word::Number(number) => Value::from(*number),
            Word::Function(name) => {
                return Err(Error::usage(format!("invalid template: {name} cannot be an argument")));
            }
        });
    }
    arguments.extend(piped);
    let name = match first {
        Word::Field(path) => return field(data, path),
        Word::Literal(text) => return Ok(Value::from(text.as_str())),
        Word::Number(number) => return Ok(Value::from(*number)),
        Word::Function(name) => name.as_str(),
    };
    let missing = || Error::usage(format!("invalid template: {name} has too few arguments"));
    let argument = |at: usize| arguments.get(at).ok_or_else(missing);
    Ok(match name {
        "json" => Value::from(argument(0)?.to_string()),
        "len" => Value::from(match argument(0)? {
            Value::Array(values) => values.len(),
            Value::Object(map) => map.len(),
            other => show(other).chars().count(),
        }),
        "upper" => Value::from(show(argument(0)?).to_uppercase()),
        "lower" => Value::from(show(argument(0)?).to_lowercase()),
        "title" => {
            let text = show(argument(0)?);
            let mut chars = text.chars();
            Value::from(chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect()))
        }
        "join" => {
            let parts: Vec<String> =
                argument(0)?.as_array().map_or(Vec::new(), |values| values.iter().map(show).collect());
            Value::from(parts.join(&show(argument(1)?)))
        }
        "index" => match (argument(0)?, argument(1)?) {
            (Value::Array(values), Value::Number(at)) => {
                let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| values.get(at)).cloned().unwrap_or(Value::Null)
            }
            (Value::Object(map), Value::String(key)) => map.get(key).cloned().unwrap_or(Value::Null),
            _ => return Err(Error::usage("invalid template: index needs a list and a number, or a map and a key")),
        },
        "truncate" => {
            let length = argument(1)?.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(missing)?;
            Value::from(show(argument(0)?).chars().take(length).collect::<String>())
        }
        _ => Value::from(format!("{}\n", arguments.iter().map(show).collect::<Vec<_>>().join(" "))),
    })
}

/// A value as Go prints it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => format!("[{}]", values.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", show(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_print_fields_and_functions() {
        let data = json!({ "ID": "abc", "N": 3, "L": ["a", "b"], "S": { "T": { "U": true } }, "M": { "k": "v" } });
        let cases = [
            ("{{.ID}}", "abc"),
            ("{{ .ID }}:{{.N}}", "abc:3"),
            ("{{.S.T.U}}", "true"),
            ("{{json .S}}", r#"{"T":{"U":true}}"#),
            ("{{.ID | upper}}", "ABC"),
            ("{{len .L}} {{join .L \",\"}}", "2 a,b"),
            ("{{index .L 1}}{{index .M \"k\"}}", "bv"),
            (".ID\\t{{.id}}", ".ID\tabc"),
            ("{{.S.X}}", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(Template::parse(text).unwrap().render(&data).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let data = json!({ "ID": "abc" });
        let fails = |text: &str| match Template::parse(text).and_then(|template| template.render(&data)) {
            Err(error) => error.message,
            Ok(text) => panic!("rendered {text:?}"),
        };
        assert!(fails("{{range .L}}").contains("{{range}} is not supported"));
        assert!(fails("{{printf .ID}}").contains("\"printf\" is not supported"));
        assert!(fails("{{.Nmae}}").contains(".Nmae does not exist; there are: ID"));
        assert!(fails("{{.ID").contains("without }}"));
    }
}
