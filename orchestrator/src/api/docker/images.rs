//! `/images` and `/distribution`: the images of this node and what registries say of them.

use super::{convert::go_arch, frames};
use crate::api::{
    App,
    error::{ApiError, chain},
    node::{BoxStream, Failure, Image, ImageRemoved, Progress, PullRequest},
    request::{Params, credentials},
    time,
};
use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestrator_core::model::Platform;
use serde_json::{Value, json};
use std::{collections::BTreeMap, io};

fn labels(image: &Image) -> BTreeMap<String, String> {
    serde_json::from_value(image.config["config"]["Labels"].clone()).unwrap_or_default()
}

/// A line of `docker images`.
pub(super) fn summary(image: &Image) -> Value {
    json!({
        "Id": image.id,
        "ParentId": "",
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
        "Created": image.created / 1_000_000_000,
        "Size": image.size_bytes,
        "SharedSize": -1,
        "Labels": labels(image),
        "Containers": image.containers,
    })
}

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&["reference", "dangling", "label"])?;
    let mut images = app.node.images().await?;
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    let kept = images.iter().filter(|image| {
        filters.any("reference", |pattern| image.tags.iter().any(|tag| reference_matches(pattern, tag)))
            && filters.any("dangling", |wanted| (wanted == "true" || wanted == "1") == image.tags.is_empty())
            && filters.labels("label", &labels(image))
    });
    Ok(Json(kept.map(summary).collect()))
}

/// `*` stands for any characters but `/`, `?` for one; a pattern without tag fits all tags.
fn reference_matches(pattern: &str, tag: &str) -> bool {
    let name = tag.rsplit_once(':').map_or(tag, |(name, _)| name);
    glob(pattern.as_bytes(), tag.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            glob(rest, text) || text.split_first().is_some_and(|(c, text)| *c != b'/' && glob(pattern, text))
        }
        (Some((b'?', rest)), Some((c, text))) => *c != b'/' && glob(rest, text),
        (Some((p, rest)), Some((c, text))) => p == c && glob(rest, text),
        _ => false,
    }
}

/// Joins a name with a tag or digest.
fn full_name(name: &str, tag: Option<&str>) -> String {
    match tag {
        None => name.into(),
        Some(digest) if digest.contains(':') => format!("{name}@{digest}"),
        Some(tag) => format!("{name}:{tag}"),
    }
}

fn platform(text: &str) -> Result<Platform, ApiError> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(arch), variant, None) if !os.is_empty() && !arch.is_empty() => {
            Ok(Platform { os: os.into(), arch: go_arch(arch), variant: variant.unwrap_or("").into() })
        }
        _ => Err(ApiError::invalid(format!("invalid platform: {text:?} must be OS/ARCH or OS/ARCH/VARIANT"))),
    }
}

pub(super) async fn pull(State(app): State<App>, params: Params, headers: HeaderMap) -> Result<Response, ApiError> {
    if params.text("fromSrc").is_some() {
        return Err(ApiError::unsupported("importing a file system as an image is not supported yet; use image load"));
    }
    let name =
        params.text("fromImage").ok_or_else(|| ApiError::invalid("invalid fromImage: an image name is required"))?;
    let request = PullRequest {
        name: full_name(name, params.text("tag")),
        platform: params.text("platform").map(platform).transpose()?,
        credentials: credentials(&headers)?,
    };
    let progress = app.node.image_pull(request).await?;
    transfer(&app, progress, |p| progress_json(&p)).await
}

/// Streams progress. A transfer that fails at its first step is answered with the status code of its error.
async fn transfer(
    app: &App,
    mut progress: BoxStream<Result<Progress, Failure>>,
    show: impl Fn(Progress) -> Value + Send + 'static,
) -> Result<Response, ApiError> {
    let first = match progress.next().await {
        Some(Err(failure)) => return Err(failure.into()),
        first => first,
    };
    let lines = stream::iter(first).chain(progress).map(move |item| match item {
        Ok(progress) => show(progress),
        Err(failure) => {
            let text = chain(&failure);
            json!({ "errorDetail": { "message": text }, "error": text })
        }
    });
    Ok(frames::json_lines(app, lines))
}

fn progress_json(progress: &Progress) -> Value {
    let mut value = json!({ "status": progress.status });
    let Some(map) = value.as_object_mut() else { return value };
    if let Some(id) = &progress.id {
        map.insert("id".into(), id.as_str().into());
        let detail = match progress.total {
            0 => json!({}),
            total => json!({ "current": progress.current, "total": total }),
        };
        map.insert("progressDetail".into(), detail);
    }
    value
}

pub(super) async fn load(State(app): State<App>, params: Params, body: Body) -> Result<Response, ApiError> {
    let quiet = params.flag("quiet");
    let archive = body.into_data_stream().map_err(io::Error::other);
    let progress = app.node.image_load(Box::pin(archive)).await?;
    let progress = progress.try_filter(move |p| std::future::ready(!quiet || p.id.is_none()));
    transfer(&app, Box::pin(progress), |progress| match progress.id {
        None => json!({ "stream": format!("{}\n", progress.status) }),
        Some(_) => progress_json(&progress),
    })
    .await
}

pub(super) async fn save(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = query.unwrap_or_default();
    let names: Vec<String> =
        query.split('&').filter_map(|pair| pair.strip_prefix("names=")).map(crate::api::request::decode).collect();
    if names.is_empty() {
        return Err(ApiError::invalid("invalid names: at least one image is required"));
    }
    archive(&app, names).await
}

async fn archive(app: &App, names: Vec<String>) -> Result<Response, ApiError> {
    Ok(frames::body(app, "application/x-tar", app.node.image_save(names).await?))
}

pub(super) async fn get(State(app): State<App>, Path(rest): Path<String>) -> Result<Response, ApiError> {
    if let Some(name) = rest.strip_suffix("/json") {
        return Ok(Json(details(&app.node.image(name).await?)).into_response());
    }
    if let Some(name) = rest.strip_suffix("/history") {
        return Ok(Json(history(&app.node.image(name).await?)).into_response());
    }
    if let Some(name) = rest.strip_suffix("/get") {
        return archive(&app, vec![name.into()]).await;
    }
    match rest.as_str() {
        "search" => Err(ApiError::unsupported("searching registries is not supported yet")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

fn details(image: &Image) -> Value {
    let config = &image.config["config"];
    json!({
        "Id": image.id,
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
        "Parent": "",
        "Comment": "",
        "Created": time::rfc3339(image.created),
        "Author": image.config["author"].as_str().unwrap_or(""),
        "Architecture": image.platform.arch,
        "Variant": image.platform.variant,
        "Os": image.platform.os,
        "Size": image.size_bytes,
        "Config": if config.is_null() { json!({}) } else { config.clone() },
        "RootFS": { "Type": "layers", "Layers": image.config["rootfs"]["diff_ids"] },
        "GraphDriver": { "Name": "overlay2", "Data": {} },
        "Metadata": { "LastTagTime": time::ZERO },
    })
}

/// The steps of an image's making, newest first, each with the size of the layer that it left. An image that does not tell
/// how it was made still shows its layers.
fn history(image: &Image) -> Value {
    let mut steps = image.config["history"].as_array().cloned().unwrap_or_default();
    let leaves_layer = |step: &Value| step["empty_layer"] != true;
    let told = steps.iter().filter(|step| leaves_layer(step)).count();
    steps.extend(vec![Value::Null; image.layer_sizes.len().saturating_sub(told)]);
    let mut sizes = image.layer_sizes.iter();
    let mut lines = Vec::new();
    for step in &steps {
        let size = if leaves_layer(step) { sizes.next().copied().unwrap_or(0) } else { 0 };
        lines.push(json!({
            "Id": "<missing>",
            "Created": step["created"].as_str().and_then(time::parse).unwrap_or(image.created) / 1_000_000_000,
            "CreatedBy": step["created_by"].as_str().unwrap_or(""),
            "Tags": Value::Null,
            "Size": size,
            "Comment": step["comment"].as_str().unwrap_or(""),
        }));
    }
    lines.reverse();
    if let Some(newest) = lines.first_mut() {
        newest["Id"] = json!(image.id);
        newest["Tags"] = json!(image.tags);
    }
    lines.into()
}

pub(super) async fn post(
    State(app): State<App>,
    Path(rest): Path<String>,
    params: Params,
    headers: HeaderMap,
    _request: Request,
) -> Result<Response, ApiError> {
    if let Some(name) = rest.strip_suffix("/tag") {
        let repo = params.text("repo").ok_or_else(|| ApiError::invalid("invalid repo: a name is required"))?;
        app.node.image_tag(name, &full_name(repo, params.text("tag"))).await?;
        return Ok(StatusCode::CREATED.into_response());
    }
    if let Some(name) = rest.strip_suffix("/push") {
        let name = full_name(name, params.text("tag"));
        let progress = app.node.image_push(&name, credentials(&headers)?).await?;
        return transfer(&app, progress, |p| progress_json(&p)).await;
    }
    Err(ApiError::not_found("page not found"))
}

fn removed(removed: &[ImageRemoved]) -> Vec<Value> {
    let one = |item: &ImageRemoved| match item {
        ImageRemoved::Untagged(name) => json!({ "Untagged": name }),
        ImageRemoved::Deleted(id) => json!({ "Deleted": id }),
    };
    removed.iter().map(one).collect()
}

pub(super) async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    Ok(Json(removed(&app.node.image_remove(&name, params.flag("force")).await?)))
}

pub(super) async fn prune(State(app): State<App>, params: Params) -> Result<Json<Value>, ApiError> {
    let filters = params.filters(&["dangling"])?;
    let all = filters.get("dangling").iter().any(|value| value == "false" || value == "0");
    let pruned = app.node.image_prune(all).await?;
    Ok(Json(json!({ "ImagesDeleted": removed(&pruned.removed), "SpaceReclaimed": pruned.reclaimed_bytes })))
}

pub(super) async fn distribution(
    State(app): State<App>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let name = rest.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let resolved = app.node.resolve(name, credentials(&headers)?).await?;
    let platforms: Vec<Value> = resolved
        .platforms
        .iter()
        .map(|p| {
            let mut value = json!({ "architecture": p.arch, "os": p.os });
            if let (false, Some(map)) = (p.variant.is_empty(), value.as_object_mut()) {
                map.insert("variant".into(), p.variant.as_str().into());
            }
            value
        })
        .collect();
    Ok(Json(json!({
        "Descriptor": {
            "mediaType": resolved.media_type,
            "digest": resolved.digest,
            "size": resolved.size_bytes,
        },
        "Platforms": platforms,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_with_and_without_tag() {
        assert!(reference_matches("nginx", "nginx:1.25"));
        assert!(reference_matches("ngi*:1.*", "nginx:1.25"));
        assert!(!reference_matches("*", "team/app:1"));
        assert!(reference_matches("team/*", "team/app:1"));
        assert_eq!(full_name("a", Some("sha256:00")), "a@sha256:00");
        assert_eq!(full_name("a", Some("1")), "a:1");
    }

    #[test]
    fn each_step_of_the_history_shows_the_layer_it_left() {
        let step = |by: &str, empty: bool| json!({ "created_by": by, "empty_layer": empty });
        let image = |steps: Vec<Value>| Image {
            id: "sha256:00".into(),
            tags: vec!["app:1".into()],
            digests: Vec::new(),
            created: 7_000_000_000,
            size_bytes: 33,
            layer_sizes: vec![30, 2, 1],
            platform: Platform { os: "linux".into(), arch: "arm64".into(), variant: String::new() },
            containers: 0,
            config: json!({ "history": steps }),
        };
        let shown = |steps: Vec<Value>| -> Vec<(String, u64)> {
            let lines = history(&image(steps));
            let line = |line: &Value| (line["CreatedBy"].as_str().unwrap().into(), line["Size"].as_u64().unwrap());
            lines.as_array().unwrap().iter().map(line).collect()
        };
        let steps = vec![
            step("ADD rootfs", false),
            step("ENV A=b", true),
            step("COPY app", false),
            step("RUN make", false),
            step("CMD app", true),
        ];
        let expected = [("CMD app", 0), ("RUN make", 1), ("COPY app", 2), ("ENV A=b", 0), ("ADD rootfs", 30)];
        assert_eq!(shown(steps), expected.map(|(by, size)| (by.to_owned(), size)));
        assert_eq!(shown(Vec::new()), [1, 2, 30].map(|size| (String::new(), size)));
        assert_eq!(history(&image(Vec::new()))[0]["Tags"], json!(["app:1"]));
        assert_eq!(history(&image(Vec::new()))[0]["Created"], 7);
    }
}
