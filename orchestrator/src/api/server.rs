//! The server: a unix socket for users, streams from other nodes, HTTP/1.1 with limits, and an orderly end. In: an [`App`].
//! Called by the daemon.

use super::{App, docker, edge, error::ApiError, proxy};
use axum::{
    Router,
    body::Body,
    http::Request,
    response::{IntoResponse, Response},
    routing::any,
};
use hyper::{
    StatusCode, Uri,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use orchestrator_core::model::Role;
use std::{
    convert::Infallible,
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
};
use tokio_util::task::TaskTracker;

/// A client has this long to send its request's head; hyper's own default, which slow clients on a board never come near.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests get this long to finish when the server stops; streams are told to end at once.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Connections served at a time: each `docker` command takes one or two; the bound keeps a runaway client from taking all
/// file descriptors.
const CONNECTIONS_MAX: usize = 512;

/// Groups whose members may use the socket, the first that exists.
const GROUPS: [&str; 2] = ["edged", "docker"];

/// Highest version of Docker's API that the answers follow.
pub const API_VERSION: &str = "1.47";
/// Lowest version that is accepted.
pub const MIN_API_VERSION: &str = "1.24";
/// Minor versions of the API that are accepted as a prefix. Clients newer than [`API_VERSION`] step down by themselves; those
/// that do not get what the version they were made for would give, as far as the fields exist.
const ACCEPTED_MINORS: std::ops::RangeInclusive<u32> = 24..=59;

/// Binds the socket: mode 0660, group `edged` or `docker` if there is one. A left-over socket that nobody listens on is
/// replaced.
///
/// # Errors
/// Somebody listens already ([`io::ErrorKind::AddrInUse`]), something else lies at the path, or the folder cannot be
/// written to.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let text = format!("{} exists and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => {
                let text = format!("another daemon listens on {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(_) => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
        }
    }
    let listener = UnixListener::bind(path)?;
    // Until the mode is set, the socket has the umask's: never wider than 0755, and connecting needs the write bit.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Some(group) = GROUPS.iter().find_map(|name| group_id(name)) {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    Ok(listener)
}

/// The number of a group, from group(5).
fn group_id(name: &str) -> Option<u32> {
    let file = std::fs::read_to_string("/etc/group").ok()?;
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Serves users until `app.shutdown` is cancelled, then lets requests finish.
pub async fn serve(listener: UnixListener, app: App) {
    let tracker = TaskTracker::new();
    let shutdown = app.shutdown.clone();
    tracker.spawn(docker::events::collect(app.clone()));
    let answers = Answers::new(app, Origin::User);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would only spin.
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if tracker.len() > CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "refused an API connection: too many are open");
            continue;
        }
        tracker.spawn(serve_connection(stream, answers.clone()));
    }
    tracker.close();
    if tokio::time::timeout(SHUTDOWN_GRACE, tracker.wait()).await.is_err() {
        tracing::warn!(open = tracker.len(), "API requests did not end in time");
    }
}

/// Answers what another node of the cluster asks over a stream that it dialled, until the stream ends. `from` is the role in
/// its certificate: only managers may ask. Nothing is passed on to a third node.
pub async fn serve_stream(app: App, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, from: Role) {
    serve_connection(stream, Answers::new(app, Origin::Node(from))).await;
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, answers: Answers) {
    let shutdown = answers.app.shutdown.clone();
    let service = service_fn(move |request| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an API connection broke off");
    }
}

/// Who asks.
#[derive(Clone, Copy)]
enum Origin {
    /// A user of this machine.
    User,
    /// Another node of the cluster, which has this role.
    Node(Role),
}

/// What answers requests. Cheap to clone.
#[derive(Clone)]
struct Answers {
    app: App,
    router: TowerToHyperService<Router>,
    origin: Origin,
}

impl Answers {
    fn new(app: App, origin: Origin) -> Self {
        Self { router: TowerToHyperService::new(router(app.clone())), app, origin }
    }

    /// Takes the version prefix off and has the request answered by the node whose it is.
    async fn answer(&self, request: Request<Incoming>) -> Response {
        let mut request = request.map(Body::new);
        match strip_version(request.uri()) {
            Ok(Some(uri)) => *request.uri_mut() = uri,
            Ok(None) => {}
            Err(error) => return error.into_response(),
        }
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let local = |request| async {
            let Ok(response) = self.router.call(request).await;
            response
        };
        let response = match self.origin {
            Origin::User => proxy::near(&self.app, local, request).await,
            Origin::Node(Role::Manager) => proxy::far(&self.app, local, request).await,
            Origin::Node(Role::Worker) => {
                ApiError::new(StatusCode::FORBIDDEN, "workers may ask nothing of other nodes").into_response()
            }
        };
        tracing::debug!(%method, path, status = response.status().as_u16(), "API request");
        response
    }
}

/// The URI without `/v1.NN`; `None` if it has no such prefix.
fn strip_version(uri: &Uri) -> Result<Option<Uri>, ApiError> {
    let text = uri.path_and_query().map_or("/", |path| path.as_str());
    let Some(versioned) = text.strip_prefix("/v") else { return Ok(None) };
    let end = versioned.find(['/', '?']).unwrap_or(versioned.len());
    let (version, rest) = versioned.split_at(end);
    let Some((Ok(major), Ok(minor))) = version.split_once('.').map(|(a, b)| (a.parse::<u32>(), b.parse::<u32>()))
    else {
        return Ok(None);
    };
    if major != 1 || minor < *ACCEPTED_MINORS.start() {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your \
             client to a newer version"
        )));
    }
    if minor > *ACCEPTED_MINORS.end() {
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    rest.parse().map(Some).map_err(|_| ApiError::invalid(format!("not a path: {rest}")))
}

fn router(app: App) -> Router {
    Router::new()
        .merge(docker::routes())
        .nest("/edge/v1", edge::routes())
        .fallback(any(|request: Request<Body>| async move {
            ApiError::not_found(format!("page not found: {} {}", request.method(), request.uri().path()))
        }))
        .method_not_allowed_fallback(|request: Request<Body>| async move {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not possible on {}", request.method(), request.uri().path()),
            )
        })
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_prefixes_are_taken_off() {
        let strip = |text: &str| strip_version(&text.parse().unwrap()).map(|uri| uri.map(|uri| uri.to_string()));
        assert_eq!(strip("/v1.24/info?x=1").unwrap(), Some("/info?x=1".into()));
        assert_eq!(strip("/v1.56/services/v1").unwrap(), Some("/services/v1".into()));
        assert_eq!(strip("/version").unwrap(), None);
        assert_eq!(strip("/volumes").unwrap(), None);
        assert!(strip("/v1.23/info").unwrap_err().message.contains("too old"));
        assert!(strip("/v1.99/info").unwrap_err().message.contains("too new"));
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/docker.sock");
        drop(bind(&path).unwrap());
        let live = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(bind(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
