//! Nodes that move, restart, come and go.

use super::*;
use futures_util::future::join_all;
use std::net::UdpSocket;
use tokio::task::JoinHandle;

/// An address at which nothing ever answers.
fn void() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// A link to one node that can be cut or led to another. Takes one client.
struct Relay {
    addr: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = front.local_addr().unwrap();
        let target = Arc::new(Mutex::new(Some(target)));
        let aim = Arc::clone(&target);
        let task = tokio::spawn(async move {
            let mut client = None;
            let (mut there, mut here) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((size, from)) = front.recv_from(&mut there) => {
                        client = Some(from);
                        let aim = *aim.lock().unwrap();
                        if let Some(aim) = aim {
                            back.send_to(&there[..size], aim).await.unwrap();
                        }
                    }
                    Ok((size, from)) = back.recv_from(&mut here) => {
                        let open = *aim.lock().unwrap() == Some(from);
                        if let Some(client) = client.filter(|_| open) {
                            front.send_to(&here[..size], client).await.unwrap();
                        }
                    }
                }
            }
        });
        Self { addr, target, task }
    }

    fn aim(&self, target: Option<SocketAddr>) {
        *self.target.lock().unwrap() = target;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_first_address_that_answers_wins() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let (_open, silent) = void();
    b.endpoint.book().learn(a.id(), silent, Source::Assigned);
    assert_eq!(b.endpoint.book().candidates(a.id()), [silent, a.addr()]);
    let started = Instant::now();
    b.ask(&a, b"x").await.unwrap();
    assert!(started.elapsed() < limits::ATTEMPT_TIME, "waited for the silent address");
    assert_eq!(b.endpoint.book().candidates(a.id()), [a.addr(), silent]);
}

#[tokio::test]
async fn an_address_of_someone_else_is_passed_over_at_once() {
    let world = World::new();
    let (a, b, c) = (world.manager(), world.manager(), world.manager());
    b.knows(&a);
    b.endpoint.book().learn(a.id(), c.addr(), Source::Found);
    b.ask(&a, b"x").await.unwrap();
    assert!(c.echo.served().is_empty());
}

#[tokio::test]
async fn callers_share_one_dial() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let answers = join_all((0..20u8).map(|i| {
        let (a, b) = (&a, &b);
        async move { b.ask(a, &[i]).await.unwrap() }
    }));
    assert_eq!(answers.await, (0..20u8).map(|i| vec![i]).collect::<Vec<_>>());
    assert_eq!(a.endpoint.shared().guests.count(), 1);
}

#[tokio::test]
async fn a_failed_dial_is_not_repeated_until_there_is_reason_to() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    let (_open, silent) = void();
    b.endpoint.book().learn(a.id(), silent, Source::Assigned);
    let first = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap_err();
    assert_eq!(
        first.to_string(),
        format!("no connection to node {} for edge-raft/1: {silent}: no answer within 3 s", a.id())
    );
    // The wait grows to seconds by failing again and again.
    let (shortest, longest) = limits::BACKOFF;
    assert!(b.endpoint.retry_in(a.id(), Alpn::Raft) <= shortest);
    b.endpoint.retry_due(a.id(), Alpn::Raft).await;
    b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap_err();
    let again = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap_err();
    assert!(
        matches!(again, ConnectError::Waiting { node, retry_in, .. } if node == a.id() && retry_in <= longest),
        "{again}"
    );
    assert!(text(again).contains(&silent.to_string()));
    // News end it at once.
    b.knows(&a);
    b.endpoint.retry_due(a.id(), Alpn::Raft).await;
    b.ask(&a, b"x").await.unwrap();
}

#[tokio::test]
async fn what_is_learned_during_a_dial_is_tried_right_after_it() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    let (_open, silent) = void();
    b.endpoint.book().learn(a.id(), silent, Source::Assigned);
    let learn = async {
        until("the dial is under way", || b.endpoint.shared().quinn.open_connections() > 0).await;
        b.knows(&a);
    };
    let (failed, ()) = tokio::join!(b.endpoint.connect(a.id(), Alpn::Raft), learn);
    assert!(matches!(failed, Err(ConnectError::Failed { .. })));
    b.ask(&a, b"x").await.unwrap();
}

#[tokio::test]
async fn a_node_that_comes_by_itself_is_dialled_at_once() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    let error = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoAddress(_)));
    a.knows(&b);
    a.ask(&b, b"x").await.unwrap();
    b.ask(&a, b"y").await.unwrap();
}

#[tokio::test]
async fn the_dialler_may_change_its_address() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    b.ask(&a, b"x").await.unwrap();
    let before = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.2:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    b.endpoint.shared().quinn.rebind(socket).unwrap();
    b.ask(&a, b"still here").await.unwrap();
    assert!(b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap().is(&before));
    assert_eq!(a.ask(&b, b"there you are").await.unwrap(), b"there you are");
    assert_eq!(a.endpoint.book().candidates(b.id())[0], b.addr());
}

#[tokio::test]
async fn a_restarted_node_says_that_its_connections_are_gone() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    let relay = Relay::to(a.addr()).await;
    b.endpoint.book().learn(a.id(), relay.addr, Source::Assigned);
    b.ask(&a, b"x").await.unwrap();
    let connection = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    let again = world.stranger().with(a.credentials.clone().unwrap());
    relay.aim(Some(again.addr()));
    let started = Instant::now();
    assert!(b.ask(&a, b"lost").await.is_err());
    assert_eq!(connection.closed().await, "the peer has restarted");
    assert!(started.elapsed() < Alpn::Raft.idle_time() / 2, "found out by silence");
    b.endpoint.retry_due(a.id(), Alpn::Raft).await;
    // A connection that ends this young counts as a failed dial.
    while let Err(CallError::Connect(ConnectError::Waiting { .. })) = b.ask(&a, b"y").await {
        b.endpoint.retry_due(a.id(), Alpn::Raft).await;
    }
    assert_eq!(again.echo.served().len(), 1);
}

#[tokio::test]
async fn a_node_that_moved_is_found_by_the_book() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    let relay = Relay::to(a.addr()).await;
    b.endpoint.book().learn(a.id(), relay.addr, Source::Assigned);
    b.ask(&a, b"x").await.unwrap();
    relay.aim(None);
    let moved = world.stranger().with(a.credentials.clone().unwrap());
    b.endpoint.book().learn(a.id(), moved.addr(), Source::Found);
    let error = b.ask(&a, b"lost").await.unwrap_err();
    assert!(matches!(&error, CallError::Lost { .. }), "{error}");
    b.ask(&a, b"y").await.unwrap();
    assert_eq!(moved.echo.served().len(), 1);
}

#[tokio::test]
async fn a_dropped_peer_is_out_at_once_and_stays_out() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    b.ask(&a, b"x").await.unwrap();
    a.ask(&b, b"x").await.unwrap();
    let there = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    let back = a.endpoint.connect(b.id(), Alpn::Raft).await.unwrap();
    a.rules.refuse(b.id(), "removed");
    a.endpoint.drop_peer(b.id());
    assert_eq!(there.closed().await, format!("node {} is not a member of this cluster", b.id()));
    back.closed().await;
    until("b is forgotten", || a.endpoint.shared().guests.count() == 0).await;
    assert!(a.endpoint.book().candidates(b.id()).is_empty());
    b.endpoint.retry_due(a.id(), Alpn::Raft).await;
    let error = loop {
        match b.endpoint.connect(a.id(), Alpn::Raft).await {
            Err(error) if error.refusal().is_some() => break error,
            Err(ConnectError::Waiting { .. }) => b.endpoint.retry_due(a.id(), Alpn::Raft).await,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.refusal(), Some("removed"));
}

#[tokio::test]
async fn a_renewed_certificate_serves_new_connections_and_leaves_the_old_ones() {
    let world = World::new();
    let (mut a, mut b) = (world.manager(), world.manager());
    b.knows(&a);
    b.ask(&a, b"x").await.unwrap();
    let before = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    world.now.fetch_add(2 * DAY.0, Ordering::Relaxed);
    for node in [&mut a, &mut b] {
        let renewed = world.certify(node.credentials.as_ref().unwrap().key().clone(), Role::Worker);
        node.endpoint.set_credentials(Some(renewed));
    }
    b.ask(&a, b"y").await.unwrap();
    assert!(b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap().is(&before));
    let new = b.endpoint.connect(a.id(), Alpn::Node).await.unwrap();
    assert_eq!(new.peer().role, Role::Worker);
}

#[tokio::test]
async fn who_leaves_has_no_connections() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    b.ask(&a, b"x").await.unwrap();
    let connection = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    a.endpoint.set_credentials(None);
    assert_eq!(connection.closed().await, "this node has left the cluster");
    assert!(matches!(a.ask(&b, b"x").await, Err(CallError::Connect(ConnectError::NotMember))));
}

#[tokio::test]
async fn a_closed_endpoint_says_why() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    b.ask(&a, b"x").await.unwrap();
    let connection = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    a.endpoint.close("node a is restarting").await;
    assert_eq!(connection.closed().await, "node a is restarting");
    let error = text(b.ask(&a, b"x").await.unwrap_err());
    assert!(error.contains("restarting") || error.contains("no answer"), "{error}");
}
