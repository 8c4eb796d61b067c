//! `edgectl image`: list, fetch, load, send and remove images of this node.

use super::{
    Error, Result,
    client::{Client, filters},
    container::since,
    output::{self, Column, ListFlags, Out, row, short_id},
};
use crate::api::{request::encode, time};
use futures_util::{Stream, StreamExt};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{collections::BTreeMap, io::IsTerminal};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List images
    #[command(visible_alias = "list")]
    Ls(List),
    /// Fetch an image from a registry
    Pull(Pull),
    /// Send an image to its registry
    Push(Push),
    /// Read an archive of "docker save" or an OCI archive
    Load(Load),
    /// Write images as an archive
    Save(Save),
    /// Give an image another name
    Tag(Tag),
    /// Show low-level information on images
    Inspect(Inspect),
    /// Show how an image was built
    History(Name),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove images that nothing uses
    Prune(Prune),
}

#[derive(clap::Args)]
pub(super) struct List {
    /// Only this name, with or without tag; * stands for anything
    reference: Option<String>,
    #[command(flatten)]
    list: ListFlags,
    /// Show digests
    #[arg(long)]
    digests: bool,
}

#[derive(clap::Args)]
pub(super) struct Pull {
    /// Platform other than the node's: OS/ARCH[/VARIANT]
    #[arg(long)]
    platform: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Name with tag or digest
    image: String,
}

#[derive(clap::Args)]
pub(super) struct Push {
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Name with tag
    image: String,
}

#[derive(clap::Args)]
pub(super) struct Load {
    /// The archive; standard input if not given
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(clap::Args)]
pub(super) struct Save {
    /// The archive; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Images by name or id
    #[arg(required = true)]
    images: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Tag {
    /// The image by name or id
    image: String,
    /// The new name
    name: String,
}

#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Images by name or id
    #[arg(required = true)]
    images: Vec<String>,
    /// Print by a template
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Name {
    /// The image by name or id
    image: String,
}

#[derive(clap::Args)]
pub(super) struct Rm {
    /// Also when a container that ended uses it
    #[arg(short, long)]
    force: bool,
    /// Images by name or id
    #[arg(required = true)]
    images: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct Prune {
    /// All that nothing uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(command: Command, client: &Client, out: &mut Out) -> Result {
    match command {
        Command::Ls(command) => list(command, client, out).await,
        Command::Pull(command) => pull(command, client, out).await,
        Command::Push(command) => push(command, client, out).await,
        Command::Load(command) => load(command, client, out).await,
        Command::Save(command) => save(command, client, out).await,
        Command::Tag(Tag { image, name }) => {
            let (repository, tag) = split_tag(&name);
            let path = format!("/images/{image}/tag?repo={}&tag={}", encode(repository), encode(tag));
            client.post_only(&path, &json!({})).await.map_err(|error| error.context(format!("tag image {image}")))
        }
        Command::Inspect(inspect) => {
            let mut objects = Vec::new();
            for image in &inspect.images {
                objects.push(client.get::<Value>(&format!("/images/{image}/json")).await?);
            }
            output::inspect(out, inspect.format.as_deref(), objects)
        }
        Command::History(Name { image }) => history(client, out, &image).await,
        Command::Rm(command) => remove(command, client, out).await,
        Command::Prune(command) => prune(command, client, out).await,
    }
}

/// Splits `registry:5000/app:1` into name and tag; the tag is empty if there is none.
fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, ""),
    }
}

const COLUMNS: [Column; 5] =
    [("ID", "IMAGE ID"), ("Repository", "REPOSITORY"), ("Tag", "TAG"), ("CreatedSince", "CREATED"), ("Size", "SIZE")];
const COLUMNS_DIGESTS: [Column; 6] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
];

pub(super) async fn list(command: List, client: &Client, out: &mut Out) -> Result {
    let mut list = command.list;
    list.filter.extend(command.reference.map(|reference| format!("reference={reference}")));
    let path = format!("/images/json?{}", filters(&list.filter)?);
    let objects: Value = client.get(&path).await.map_err(|error| error.context("list images"))?;
    let mut rows = Vec::new();
    for image in objects.as_array().map_or(&[][..], Vec::as_slice) {
        let id = image["Id"].as_str().unwrap_or("");
        let digest = image["RepoDigests"][0].as_str().and_then(|text| text.split_once('@')).map_or("<none>", |d| d.1);
        let mut tags: Vec<&str> =
            image["RepoTags"].as_array().map_or(Vec::new(), |tags| tags.iter().filter_map(Value::as_str).collect());
        if tags.is_empty() || list.quiet {
            tags = vec![tags.first().copied().unwrap_or("<none>:<none>")];
        }
        for tag in tags {
            let (repository, tag) = split_tag(tag);
            rows.push(row([
                ("ID", if list.no_trunc { id.into() } else { short_id(id) }),
                ("Repository", repository.into()),
                ("Tag", tag.into()),
                ("Digest", digest.into()),
                ("CreatedSince", format!("{} ago", time::human(since(image["Created"].as_u64().unwrap_or(0))))),
                ("Size", output::size(image["Size"].as_u64().unwrap_or(0))),
            ]));
        }
    }
    output::list(out, &list, if command.digests { &COLUMNS_DIGESTS } else { &COLUMNS }, &rows, &objects)
}

pub(super) async fn pull(command: Pull, client: &Client, out: &mut Out) -> Result {
    let mut path = format!("/images/create?fromImage={}", encode(&command.image));
    if let Some(platform) = &command.platform {
        path.push_str(&format!("&platform={}", encode(platform)));
    }
    let context = |error: Error| error.context(format!("pull {}", command.image));
    let lines = client.transfer(&path, &[]).await.map_err(context)?;
    show(lines, out, command.quiet).await.map_err(context)?;
    if command.quiet { Ok(out.line(&command.image)?) } else { Ok(()) }
}

async fn push(command: Push, client: &Client, out: &mut Out) -> Result {
    let (name, tag) = split_tag(&command.image);
    let path = format!("/images/{name}/push?tag={}", encode(tag));
    let context = |error: Error| error.context(format!("push {}", command.image));
    let lines = client.transfer(&path, &[]).await.map_err(context)?;
    show(lines, out, command.quiet).await.map_err(context)
}

async fn load(command: Load, client: &Client, out: &mut Out) -> Result {
    let path = format!("/images/load?quiet={}", u8::from(command.quiet));
    let context = |error: Error| error.context("load the archive");
    match &command.input {
        Some(file) => {
            let opened = tokio::fs::File::open(file).await;
            let file = opened.map_err(|error| context(Error::new(format!("cannot open {file}: {error}"))))?;
            show(client.upload(&path, file).await.map_err(context)?, out, command.quiet).await.map_err(context)
        }
        None if std::io::stdin().is_terminal() => Err(Error::usage(
            "there is no archive: use --input FILE or redirect standard input (edgectl image load < FILE)",
        )),
        None => {
            let lines = client.upload(&path, tokio::io::stdin()).await.map_err(context)?;
            show(lines, out, command.quiet).await.map_err(context)
        }
    }
}

async fn save(command: Save, client: &Client, out: &mut Out) -> Result {
    if command.output.is_none() && out.width.is_some() {
        return Err(Error::usage(
            "an archive does not belong on a terminal: use --output FILE or redirect standard output",
        ));
    }
    let names: Vec<String> = command.images.iter().map(|name| format!("names={}", encode(name))).collect();
    let mut stream = client.stream(&format!("/images/get?{}", names.join("&"))).await?;
    let mut file = match &command.output {
        Some(path) => {
            let made = std::fs::File::create(path);
            Some(made.map_err(|error| Error::new(format!("cannot write {path}: {error}")))?)
        }
        None => None,
    };
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| Error::new(format!("the archive broke off: {error}")))?;
        match &mut file {
            Some(file) => std::io::Write::write_all(file, &bytes)?,
            None => out.bytes(&bytes)?,
        }
    }
    Ok(())
}

async fn history(client: &Client, out: &mut Out, image: &str) -> Result {
    let steps: Vec<Value> = client.get(&format!("/images/{image}/history")).await?;
    let columns = [("CreatedBy", "CREATED BY"), ("CreatedSince", "CREATED"), ("Size", "SIZE"), ("Comment", "COMMENT")];
    let rows: Vec<_> = steps
        .iter()
        .map(|step| {
            row([
                ("CreatedBy", step["CreatedBy"].as_str().unwrap_or("").into()),
                ("CreatedSince", format!("{} ago", time::human(since(step["Created"].as_u64().unwrap_or(0))))),
                ("Size", output::size(step["Size"].as_u64().unwrap_or(0))),
                ("Comment", step["Comment"].as_str().unwrap_or("").into()),
            ])
        })
        .collect();
    output::table(out, &columns, &rows, false)
}

async fn remove(command: Rm, client: &Client, out: &mut Out) -> Result {
    for image in &command.images {
        let path = format!("/images/{image}?force={}", u8::from(command.force));
        let removed: Vec<Value> =
            client.delete(&path).await.map_err(|error| error.context(format!("remove image {image}")))?;
        print_removed(out, &removed)?;
    }
    Ok(())
}

fn print_removed(out: &mut Out, removed: &[Value]) -> Result {
    for item in removed {
        for kind in ["Untagged", "Deleted"] {
            if let Some(name) = item[kind].as_str() {
                out.line(&format!("{kind}: {name}"))?;
            }
        }
    }
    Ok(())
}

async fn prune(command: Prune, client: &Client, out: &mut Out) -> Result {
    if !command.force && std::io::stdin().is_terminal() {
        let what =
            if command.all { "all images that nothing uses" } else { "all images without a name that nothing uses" };
        out.write(&format!("This removes {what}. Continue? [y/N] "))?;
        out.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
    }
    let filter = encode(&format!("{{\"dangling\":{{\"{}\":true}}}}", !command.all));
    let pruned: Value = client.post(&format!("/images/prune?filters={filter}"), &json!({})).await?;
    print_removed(out, pruned["ImagesDeleted"].as_array().map_or(&[][..], Vec::as_slice))?;
    Ok(out.line(&format!("Total reclaimed space: {}", output::size(pruned["SpaceReclaimed"].as_u64().unwrap_or(0))))?)
}

/// Shows a transfer: a bar for each layer on a terminal, a line for each change of state elsewhere.
async fn show(mut lines: impl Stream<Item = Result<Value>> + Unpin, out: &mut Out, quiet: bool) -> Result {
    let bars = (out.width.is_some() && out.colour && !quiet).then(MultiProgress::new);
    let mut layers: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    let mut result = Ok(());
    while let Some(line) = lines.next().await {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                result = Err(error);
                break;
            }
        };
        if let Some(text) = line["stream"].as_str() {
            out.write(text)?;
            continue;
        }
        let status = line["status"].as_str().unwrap_or("").to_owned();
        let id = line["id"].as_str().unwrap_or("").to_owned();
        if quiet {
            continue;
        }
        let Some(bars) = bars.as_ref().filter(|_| !id.is_empty()) else {
            if last.get(&id) != Some(&status) {
                out.line(&if id.is_empty() { status.clone() } else { format!("{id}: {status}") })?;
                out.flush()?;
                last.insert(id, status);
            }
            continue;
        };
        let bar = layers.entry(id.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix}: {msg:18} [{bar:30}] {bytes}/{total_bytes}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
            bars.add(ProgressBar::new(0).with_style(style).with_prefix(id))
        });
        if let (Some(current), Some(total)) =
            (line["progressDetail"]["current"].as_u64(), line["progressDetail"]["total"].as_u64())
        {
            bar.set_length(total);
            bar.set_position(current);
        }
        bar.set_message(status);
    }
    layers.values().for_each(ProgressBar::abandon);
    result
}
