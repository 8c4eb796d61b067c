//! Who answered the client's requests, and whom they saw.
//!
//! Comes in: a URL of the service `whoami`. Goes out: a table, and whether it is as promised: every replica answers, and
//! each sees the client's own address.

use crate::{
    lab::{
        self,
        topology::{Folder, Place},
    },
    process,
};
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// The answers by replica.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spread {
    replicas: BTreeMap<String, Replica>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Replica {
    answers: usize,
    /// The client addresses it saw.
    clients: BTreeSet<String>,
}

/// Sends requests from the client, each on a connection of its own.
///
/// # Errors
/// When one of them fails.
pub(super) fn measure(folder: &Folder, url: &str, requests: usize) -> Result<Spread> {
    println!("client$ curl {url}");
    let mut spread = Spread::default();
    for number in 1..=requests {
        let words = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url];
        let answer = process::output(&mut lab::command_in(folder, Place::Client, &words)?)
            .with_context(|| format!("request {number} of {requests}"))?;
        if number == 1 {
            print!("{answer}");
        }
        spread.add(&answer)?;
    }
    Ok(spread)
}

impl Spread {
    fn add(&mut self, answer: &str) -> Result<()> {
        let field = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("the answer has no line `{name}`: {answer}"))
        };
        let client = field("client:")?.split(' ').next().unwrap_or_default();
        let replica = self.replicas.entry(field("hostname:")?.to_owned()).or_default();
        replica.answers += 1;
        replica.clients.insert(client.to_owned());
        Ok(())
    }

    /// Whether every replica answered, and saw the client by its own address.
    pub(super) fn check(&self, replicas: usize, client: &str) -> Result<()> {
        if self.replicas.len() != replicas {
            bail!("{} replicas answered, not {replicas}", self.replicas.len());
        }
        for (name, replica) in &self.replicas {
            if replica.clients.iter().any(|seen| seen != client) {
                bail!("{name} saw {:?} instead of the client's address {client}", replica.clients);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<24} {:>8}   CLIENT IT SAW", "REPLICA", "ANSWERS")?;
        for (name, replica) in &self.replicas {
            let clients: Vec<&str> = replica.clients.iter().map(String::as_str).collect();
            writeln!(f, "{name:<24} {:>8}   {}", replica.answers, clients.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(answers: &[(&str, &str)]) -> Spread {
        let mut spread = Spread::default();
        for (hostname, client) in answers {
            spread.add(&format!("hostname: {hostname}\ntask: -\nnode: -\nclient: {client} port 7\n")).unwrap();
        }
        spread
    }

    #[test]
    fn the_promise_is_that_all_replicas_answer_and_see_the_client() {
        let good = spread(&[("a", "10.0.0.9"), ("b", "10.0.0.9"), ("a", "10.0.0.9")]);
        good.check(2, "10.0.0.9").unwrap();
        assert_eq!(good.check(3, "10.0.0.9").unwrap_err().to_string(), "2 replicas answered, not 3");
        let hidden = spread(&[("a", "10.0.0.9"), ("a", "172.17.0.1")]);
        assert!(hidden.check(1, "10.0.0.9").unwrap_err().to_string().contains("172.17.0.1"));
    }

    #[test]
    fn an_answer_of_something_else_is_an_error() {
        assert!(Spread::default().add("<html>").is_err());
    }
}
