//! Who gets through to whom.

use super::*;

#[tokio::test]
async fn a_call_is_answered_and_the_peer_is_known() {
    let world = World::new();
    let (a, b) = (world.manager(), world.node(Role::Worker));
    b.knows(&a);
    assert_eq!(b.ask(&a, b"hello").await.unwrap(), b"hello");
    let peer = Peer { node: b.id(), role: Role::Worker };
    assert_eq!(a.echo.served(), [(Alpn::Raft, Some(peer), b.addr())]);
    let connection = b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap();
    assert_eq!(connection.peer(), Peer { node: a.id(), role: Role::Manager });
    // The other direction was learned from the first.
    assert_eq!(a.ask(&b, b"and back").await.unwrap(), b"and back");
}

#[tokio::test]
async fn the_wildcard_listens_to_both_families() {
    let world = World::new();
    let credentials = world.credentials(Role::Manager);
    let a = world.listen("[::]:0".parse().unwrap()).with(credentials);
    let port = a.addr().port();
    for (listen, addr) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
        let b = world.listen(listen.parse().unwrap()).with(world.credentials(Role::Worker));
        let addr = SocketAddr::new(addr.parse().unwrap(), port);
        b.endpoint.book().learn(a.id(), addr, Source::Assigned);
        b.ask(&a, b"hello").await.unwrap();
        assert_eq!(b.endpoint.connect(a.id(), Alpn::Raft).await.unwrap().remote(), addr);
        let from = SocketAddr::new(addr.ip(), b.addr().port());
        assert_eq!(a.endpoint.book().candidates(b.id()), [from]);
    }
}

#[tokio::test]
async fn large_answers_come_whole() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    let question = vec![7; 5 << 20];
    assert!(b.ask(&a, &question).await.unwrap() == question);
}

#[tokio::test]
async fn the_node_that_was_dialled_must_answer() {
    let world = World::new();
    let (a, b, c) = (world.manager(), world.manager(), world.manager());
    b.endpoint.book().learn(c.id(), a.addr(), Source::Found);
    let error = text(b.ask(&c, b"x").await.unwrap_err());
    assert!(error.contains("not trusted") && error.contains(&a.id().to_string()), "{error}");
    assert!(a.echo.served().is_empty());
}

#[tokio::test]
async fn a_foreign_cluster_is_not_trusted() {
    let (world, other) = (World::new(), World::new());
    let (a, b) = (world.manager(), other.manager());
    b.knows(&a);
    let error = text(b.ask(&a, b"x").await.unwrap_err());
    assert!(error.contains("not trusted"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_the_reason() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    world.now.fetch_add(2 * DAY.0, Ordering::Relaxed);
    a.endpoint.set_credentials(Some(world.certify(a.credentials.as_ref().unwrap().key().clone(), Role::Manager)));
    let error = text(b.ask(&a, b"x").await.unwrap_err());
    assert!(error.contains("refused: ") && error.contains("ran out"), "{error}");
}

#[tokio::test]
async fn a_refusal_tells_the_dialler_why() {
    let world = World::new();
    let (a, b) = (world.manager(), world.manager());
    b.knows(&a);
    a.rules.refuse(b.id(), "node b is not welcome here");
    let error = b.endpoint.connect(a.id(), Alpn::Node).await.unwrap_err();
    assert_eq!(error.refusal(), Some("node b is not welcome here"));
    assert!(text(error).contains("refused: node b is not welcome here"));
    assert!(a.echo.served().is_empty());
    assert_eq!(a.endpoint.refusals(), Refusals { peers: 1, ..Refusals::default() });
}

#[tokio::test]
async fn without_a_certificate_one_can_only_join() {
    let world = World::new();
    let (a, joiner) = (world.manager(), world.stranger());
    let digest = Authority::open(&world.ca).unwrap().digest();
    let connection = joiner.endpoint.connect_to(a.addr(), &digest).await.unwrap();
    assert_eq!(connection.peer(), Peer { node: a.id(), role: Role::Manager });
    let (mut send, mut recv) = connection.open().await.unwrap();
    send.write_all(b"let me in").await.unwrap();
    send.finish();
    let mut answer = Vec::new();
    recv.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"let me in");
    assert_eq!(a.echo.served(), [(Alpn::Join, None, joiner.addr())]);

    let config = pki::join_config(digest, Alpn::Api.name().as_bytes(), world.time());
    let config = endpoint::client(config, Alpn::Api);
    let attempts = joiner.endpoint.shared().race(vec![a.addr()], Alpn::Api, &config).await.unwrap_err();
    assert_eq!(attempts[0].fault, Fault::Refused("edge-api/1 needs a certificate".to_owned()));
    let error = joiner.endpoint.connect(a.id(), Alpn::Api).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotMember), "{error}");
}

#[tokio::test]
async fn joining_trusts_the_tokens_cluster_only() {
    let (world, other) = (World::new(), World::new());
    let (a, w) = (world.manager(), world.node(Role::Worker));
    let joiner = world.stranger();
    let foreign = Authority::open(&other.ca).unwrap().digest();
    let error = joiner.endpoint.connect_to(a.addr(), &foreign).await.unwrap_err();
    assert!(text(error).contains("not trusted"));
    let digest = Authority::open(&world.ca).unwrap().digest();
    let error = joiner.endpoint.connect_to(w.addr(), &digest).await.unwrap_err();
    assert!(text(error).contains("not trusted"), "a worker cannot let anyone in");
}
