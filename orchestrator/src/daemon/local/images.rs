//! Images of this node for the API: the image store's words in the API's.

use super::failure;
use crate::{
    agent::task_name,
    api::node::{
        BoxStream, Credentials, Event, Failure, Image, ImagePruned, ImageRemoved, Progress, PullRequest, Resolved,
    },
    clock,
    daemon::Daemon,
    image::{self, Error, Images, Phase, Policy, Reference, Removed},
};
use bytes::Bytes;
use futures_util::StreamExt;
use orchestrator_core::{
    assignment::AssignedTask,
    model::{Platform, TaskId},
};
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Progress events that wait for a slow client; further ones are dropped, as the next one says more.
const PROGRESS: usize = 256;

/// Pieces of an archive that wait for a slow client, and their size in bytes: half a megabyte together.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 64 << 10;

impl Daemon {
    pub(super) fn list_images(&self) -> Vec<Image> {
        self.drivers.images.list().iter().map(|image| to_api(&self.drivers.images, image)).collect()
    }

    pub(super) fn one_image(&self, name: &str) -> Result<Image, Failure> {
        let image = self.drivers.images.get(name).map_err(of_image)?;
        Ok(to_api(&self.drivers.images, &image))
    }

    pub(super) fn pull(&self, request: PullRequest) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        let reference = reference(&request.name)?;
        let platform = request.platform.map(|platform| image::Platform {
            os: platform.os,
            architecture: platform.arch,
            variant: Some(platform.variant).filter(|variant| !variant.is_empty()),
        });
        let (images, events) = (self.drivers.images.clone(), self.events.clone());
        let credentials = self.credentials(&reference, request.credentials.as_ref());
        Ok(with_progress(move |progress, say| async move {
            let before = images.get(&reference.to_string()).ok().map(|image| image.id);
            let pulled = images
                .pull(&reference, credentials.as_ref(), platform.as_ref(), Policy::Always, &progress)
                .await
                .map_err(of_image)?;
            say(format!("Digest: {}", pulled.manifest_digest));
            let newer = before != Some(pulled.id);
            let name = reference.familiar();
            say(if newer {
                format!("Status: Downloaded newer image for {name}")
            } else {
                format!("Status: Image is up to date for {name}")
            });
            tell(&events, "pull", &name, &pulled.id.to_string());
            Ok(())
        }))
    }

    pub(super) fn push(
        &self,
        name: &str,
        given: Option<Credentials>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        let reference = reference(name)?;
        let (images, events) = (self.drivers.images.clone(), self.events.clone());
        let credentials = self.credentials(&reference, given.as_ref());
        Ok(with_progress(move |progress, say| async move {
            let pushed = images.push(&reference, credentials.as_ref(), &progress).await.map_err(of_image)?;
            say(format!("{}: digest: {}", reference.familiar(), pushed.manifest_digest));
            tell(&events, "push", &reference.familiar(), &pushed.id.to_string());
            Ok(())
        }))
    }

    pub(super) fn load(
        &self,
        archive: BoxStream<io::Result<Bytes>>,
    ) -> Result<BoxStream<Result<Progress, Failure>>, Failure> {
        let (images, events) = (self.drivers.images.clone(), self.events.clone());
        Ok(with_progress(move |progress, say| async move {
            let reader = SyncIoBridge::new(StreamReader::new(archive));
            for loaded in images.load(reader, &progress).await.map_err(of_image)? {
                let name = loaded.names.first().map(Reference::familiar);
                match &name {
                    Some(name) => say(format!("Loaded image: {name}")),
                    None => say(format!("Loaded image ID: {}", loaded.image.id)),
                }
                tell(&events, "load", name.as_deref().unwrap_or_default(), &loaded.image.id.to_string());
            }
            Ok(())
        }))
    }

    /// An archive of images, made while it is read. Dropping the stream stops it.
    pub(super) fn save(&self, names: &[String]) -> Result<BoxStream<io::Result<Bytes>>, Failure> {
        let archive = self.drivers.images.save(names).map_err(of_image)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || {
            let pieces = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(sender.clone()));
            if let Err(error) = archive.write(pieces) {
                // Told unless it is the reader who has gone.
                let _gone = sender.blocking_send(Err(error));
            }
        });
        Ok(received(receiver))
    }

    /// Asks a registry whether it takes the credentials. They are not kept: clients send them along with each request.
    pub(super) async fn log_in(&self, given: &Credentials) -> Result<(), Failure> {
        let address = given.serveraddress.as_str();
        let address = address.split_once("://").map_or(address, |(_scheme, rest)| rest);
        let host = address.split('/').next().filter(|host| !host.is_empty()).unwrap_or("docker.io");
        // Any name will do: whether the repository is there is not asked.
        let reference = reference(&format!("{host}/edged/login"))?;
        let Some(credentials) = of_request(given) else {
            return Err(Failure::Invalid("a user name and a password, or a token, are needed to log in".into()));
        };
        match self.drivers.images.log_in(&reference, &credentials).await {
            Err(Error::Unauthorized { .. }) => {
                Err(Failure::Denied(format!("{host} refuses this user name and password: check them and try again")))
            }
            result => result.map_err(of_image),
        }
    }

    pub(super) async fn remove_image(&self, name: &str, force: bool) -> Result<Vec<ImageRemoved>, Failure> {
        let removed = self.drivers.images.remove(name, force).await.map_err(|error| match error {
            Error::InUse { image, users } => {
                let assignment = self.base.agent_view.borrow().assignment.clone();
                let tasks = assignment.as_ref().map(|assignment| &assignment.tasks);
                let names = |key| user_name(tasks, key);
                of_image(Error::InUse { image, users: users.into_iter().map(names).collect() })
            }
            error => of_image(error),
        })?;
        tell(&self.events, "delete", name, name);
        Ok(list_removed(removed))
    }

    pub(super) async fn prune_images(&self, all: bool) -> Result<ImagePruned, Failure> {
        let removed = self.drivers.images.prune(all).await.map_err(of_image)?;
        Ok(ImagePruned { reclaimed_bytes: removed.reclaimed, removed: list_removed(removed) })
    }

    pub(super) async fn tag_image(&self, name: &str, new_name: &str) -> Result<(), Failure> {
        let tagged = self.drivers.images.tag(name, &reference(new_name)?).await.map_err(of_image)?;
        tell(&self.events, "tag", new_name, &tagged.id.to_string());
        Ok(())
    }

    pub(super) async fn resolve_image(&self, name: &str, given: Option<Credentials>) -> Result<Resolved, Failure> {
        let reference = reference(name)?;
        let credentials = self.credentials(&reference, given.as_ref());
        let resolved = self.drivers.images.resolve(&reference, credentials.as_ref()).await.map_err(of_image)?;
        Ok(Resolved {
            digest: resolved.digest.to_string(),
            media_type: resolved.media_type,
            size_bytes: resolved.size,
            platforms: resolved.platforms.into_iter().map(platform).collect(),
        })
    }
}

impl Daemon {
    /// The credentials that came with the request, or else the node's own.
    fn credentials(&self, reference: &Reference, given: Option<&Credentials>) -> Option<image::Credentials> {
        given.and_then(of_request).or_else(|| self.drivers.credentials(reference).cloned())
    }
}

/// The name that users know the task with this key by; the key itself for what is left of a task that is gone.
fn user_name(tasks: Option<&BTreeMap<TaskId, AssignedTask>>, key: String) -> String {
    let name = |task: TaskId| Some(task_name(tasks?.get(&task)?, task));
    key.parse().ok().and_then(name).unwrap_or(key)
}

/// What came with a request, if there is enough of it.
fn of_request(given: &Credentials) -> Option<image::Credentials> {
    if !given.registrytoken.is_empty() {
        return Some(image::Credentials::Bearer(given.registrytoken.clone()));
    }
    let (username, password) = (given.username.clone(), given.password.clone());
    (!username.is_empty()).then_some(image::Credentials::Basic { username, password })
}

/// Sends what is written to it, in pieces as they come. Ends with an error when nobody receives any more.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(piece)).map_err(|_gone| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a channel yields, as a stream.
fn received<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> BoxStream<T> {
    let next = |mut receiver: mpsc::Receiver<T>| async move { receiver.recv().await.map(|item| (item, receiver)) };
    futures_util::stream::unfold(receiver, next).boxed()
}

/// Runs `work` beside the returned stream, which tells its progress and, if it fails, why. Dropping the stream stops it.
fn with_progress<F, W>(work: F) -> BoxStream<Result<Progress, Failure>>
where
    F: FnOnce(image::Progress, Box<dyn Fn(String) + Send>) -> W + Send + 'static,
    W: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(PROGRESS);
    let (layers, words, last) = (sender.clone(), sender.clone(), sender);
    let progress: image::Progress = Arc::new(move |event: image::Event| {
        // A full queue loses a step and not the outcome: `last` waits for room.
        let _full = layers.try_send(Ok(step(&event)));
    });
    let say = Box::new(move |status| {
        let _full = words.try_send(Ok(Progress { id: None, status, current: 0, total: 0 }));
    });
    let task = tokio::spawn(async move {
        if let Err(failure) = work(progress, say).await {
            let _gone = last.send(Err(failure)).await;
        }
    });
    let guard = AbortOnDrop(task.abort_handle());
    let stream = futures_util::stream::unfold((receiver, guard), |(mut receiver, guard)| async move {
        receiver.recv().await.map(|item| (item, (receiver, guard)))
    });
    stream.boxed()
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Docker's words for the steps of a layer.
fn step(event: &image::Event) -> Progress {
    let status = match event.phase {
        Phase::Downloading => "Downloading",
        Phase::Unpacking => "Extracting",
        Phase::Done => "Pull complete",
        Phase::Exists => "Already exists",
        Phase::Uploading => "Pushing",
    };
    let id = event.layer.hex().get(..12).map(str::to_owned);
    Progress { id, status: status.into(), current: event.current, total: event.total }
}

fn reference(name: &str) -> Result<Reference, Failure> {
    name.parse::<Reference>().map_err(|error| Failure::Invalid(error.to_string()))
}

fn platform(from: image::Platform) -> Platform {
    Platform { os: from.os, arch: from.architecture, variant: from.variant.unwrap_or_default() }
}

fn to_api(images: &Images, image: &image::Image) -> Image {
    let created = image.config.created.as_deref().and_then(crate::api::time::parse).unwrap_or(0);
    Image {
        id: image.id.to_string(),
        tags: image.tags.iter().map(Reference::familiar).collect(),
        digests: image.digests.iter().map(Reference::familiar).collect(),
        created,
        size_bytes: image.size,
        layer_sizes: image.layer_sizes.clone(),
        platform: platform(image.config.platform()),
        containers: u32::try_from(images.users(image.id).len()).unwrap_or(u32::MAX),
        config: serde_json::to_value(&image.config).unwrap_or_default(),
    }
}

fn list_removed(removed: Removed) -> Vec<ImageRemoved> {
    let untagged = removed.untagged.into_iter().map(ImageRemoved::Untagged);
    untagged.chain(removed.deleted.iter().map(|id| ImageRemoved::Deleted(id.to_string()))).collect()
}

fn tell(events: &tokio::sync::broadcast::Sender<Event>, action: &str, name: &str, id: &str) {
    let event = Event {
        at: clock::now().0 * 1_000_000,
        kind: "image",
        action: action.into(),
        scope: "local",
        id: if name.is_empty() { id.into() } else { name.into() },
        attributes: BTreeMap::from([("name".to_owned(), name.to_owned())]),
    };
    // Nobody listening is the usual case.
    let _nobody = events.send(event);
}

/// What the caller of the API can do about an image error.
fn of_image(error: Error) -> Failure {
    let text = failure::text(&error);
    match error {
        Error::NoSuchImage { .. } | Error::NotFound { .. } | Error::NoMatchingPlatform { .. } => {
            Failure::NotFound(text)
        }
        Error::InUse { .. } | Error::SeveralNames { .. } => Failure::Conflict(text),
        Error::InvalidReference(_) | Error::AmbiguousId { .. } | Error::InvalidArchive { .. } => Failure::Invalid(text),
        Error::Unauthorized { .. } => Failure::Denied(text),
        Error::Unreachable { .. } => Failure::Unavailable(text),
        other => Failure::Internal { what: "handling the image".into(), cause: Box::new(other) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestrator_core::model::{
        ContainerSpec, Desired, ImageName, Placement, Resources, RestartPolicy, ServiceId, Slot, TaskSpec,
    };

    #[test]
    fn an_image_in_use_is_told_with_the_names_of_its_tasks() {
        let spec = TaskSpec {
            container: ContainerSpec::new(ImageName::new("app").unwrap()),
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            force_update: 0,
        };
        let task = AssignedTask {
            service: ServiceId(1),
            service_name: "web".into(),
            slot: Slot::Replica(2),
            spec,
            desired: Desired::Run,
            index: 1,
            on_disconnect: None,
        };
        let tasks = BTreeMap::from([(TaskId(7), task)]);
        let name = |tasks, task: u128| user_name(tasks, TaskId(task).to_string());
        assert_eq!(name(Some(&tasks), 7), format!("web.2.{}", TaskId(7)));
        // A trace of a task that is gone, and a node that was never told of any.
        assert_eq!(name(Some(&tasks), 8), TaskId(8).to_string());
        assert_eq!(name(None, 7), TaskId(7).to_string());
    }
}
