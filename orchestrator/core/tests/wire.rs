//! The envelope: golden bytes of every kind, so that a change of the format is a decision and not an accident, and refusals
//! of everything that is not exactly such bytes.

#![cfg(test)]

use orchestrator_core::{
    assignment::{AssignedBackend, AssignedService, AssignedTask, Assignment, Membership},
    model::*,
    state::{Action, Change, Entry, Guard, Key, Object, State},
    wire::{self, HEADER_LEN, Header, Kind, Message, WireError},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
};

#[track_caller]
fn check_golden<M: Message + PartialEq + Debug>(message: &M, golden: &str) {
    let bytes = wire::encode(message).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let golden: String = golden.split_whitespace().collect();
    assert_eq!(hex, golden, "the bytes changed: raise the version, or take the change back");
    assert_eq!(&wire::decode::<M>(&bytes).unwrap(), message);
}

fn spec() -> ServiceSpec {
    let mut container = ContainerSpec::new(ImageName::new("nginx:1").unwrap());
    container.env.push("A=1".into());
    container.health = Some(HealthCheck::new(HealthTest::Shell("true".into())));
    container.mounts.push(Mount {
        target: "/data".into(),
        read_only: true,
        source: MountSource::Tmpfs { size_bytes: Some(4096), mode: 0o1777 },
    });
    ServiceSpec::new(ServiceParts {
        name: Name::new("web").unwrap(),
        labels: BTreeMap::from([("k".into(), "v".into())]),
        mode: Mode::Replicated { replicas: 3 },
        task: TaskSpec {
            container,
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement {
                constraints: vec![Constraint::parse("node.labels.zone==a").unwrap()],
                ..Placement::default()
            },
            force_update: 0,
        },
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: vec![port()] },
        on_disconnect: Some(OnDisconnect::Stop),
        disconnect_grace: Some(Millis(20_000)),
    })
    .unwrap()
}

fn port() -> PortSpec {
    PortSpec { protocol: Protocol::Tcp, target: 80, published: 8080, mode: PublishMode::Ingress }
}

fn task() -> Task {
    Task {
        id: TaskId(4),
        service: ServiceId(3),
        slot: Slot::Replica(1),
        version: 1,
        created_at: UnixMillis(1000),
        placed: Some(Placed { node: NodeId(2), index: 2, backends: vec![7] }),
        desired: Desired::Run,
        outcome: Some(Outcome { end: End::Failed, at: UnixMillis(2000), exit_code: Some(-1), message: "x".into() }),
    }
}

fn description() -> NodeDescription {
    NodeDescription {
        platform: Some(Platform { os: "linux".into(), arch: "arm64".into(), variant: "v8".into() }),
        nano_cpus: 4_000_000_000,
        memory_bytes: 1 << 30,
        version: "0.1.0".into(),
        labels: BTreeMap::new(),
        address: "10.0.0.1".into(),
        port: 2377,
    }
}

fn cluster() -> Cluster {
    let ca = Ca { certificate: vec![0x30, 0x82], key: Secret(vec![0x30]) };
    let tokens = Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) };
    let settings = Settings { labels: BTreeMap::from([("site".into(), "barn".into())]), ..Settings::default() };
    let removed = BTreeMap::from([(NodeId(9), UnixMillis(300))]);
    Cluster { removed, ..Cluster::new(ClusterId(1), ca, tokens, settings, UnixMillis(1)) }
}

fn entry() -> Entry {
    let node = Node {
        id: NodeId(2),
        hostname: "pi".into(),
        role: Role::Manager,
        raft_id: Some(1),
        availability: Availability::Active,
        labels: BTreeMap::new(),
        description: description(),
        created_at: UnixMillis(1),
    };
    let service = Service {
        id: ServiceId(3),
        name: Name::new("web").unwrap(),
        current: 1,
        previous: None,
        removed: false,
        created_at: UnixMillis(1),
        updated_at: UnixMillis(2),
        ports: vec![port()],
        update: Some(UpdateStatus {
            state: UpdateState::Completed,
            on_failure: FailureAction::Pause,
            started_at: UnixMillis(1),
            completed_at: Some(UnixMillis(2)),
            message: "ok".into(),
        }),
    };
    let put = |object| Change { expect: 0, action: Action::Put(object) };
    Entry {
        at: UnixMillis(1_700_000_000_000),
        reads: vec![Guard { key: Key::Spec(ServiceId(3), 1), expect: 9 }],
        changes: vec![
            put(Object::Cluster(cluster())),
            put(Object::Node(node)),
            put(Object::Service(service)),
            put(Object::Spec(SpecVersion { service: ServiceId(3), number: 1, spec: spec().into() })),
            put(Object::Task(task())),
            put(Object::Turn(Turn)),
            Change { expect: 300, action: Action::Delete(Key::Task(TaskId(5))) },
        ],
    }
}

fn state() -> State {
    let mut state = State::default();
    let mut entry = entry();
    entry.reads.clear();
    entry.changes.pop();
    state.apply(1, &entry);
    state
}

fn assignment() -> Assignment {
    let backend = AssignedBackend {
        task: TaskId(4),
        node: NodeId(2),
        index: 2,
        slots: vec![(port(), 7)],
        ending: false,
        up: true,
    };
    Assignment {
        node: NodeId(2),
        term: 3,
        revision: 200,
        edition: 4,
        membership: Membership {
            role: Role::Manager,
            raft_id: Some(1),
            managers: BTreeMap::from([(NodeId(2), "10.0.0.1:2377".into())]),
            heartbeat: Millis(1000),
            down_after: Millis(5000),
            cert_validity: Millis(3_600_000),
            ca: vec![0x30, 0x82],
        },
        tasks: BTreeMap::from([(
            TaskId(4),
            AssignedTask {
                service: ServiceId(3),
                service_name: "web".into(),
                slot: Slot::Node(NodeId(2)),
                spec: spec().into_parts().task,
                desired: Desired::Shutdown,
                index: 2,
                on_disconnect: Some(Millis(20_000)),
            },
        )]),
        history: BTreeSet::from([TaskId(1)]),
        services: Arc::new(BTreeMap::from([(
            ServiceId(3),
            AssignedService { name: "web".into(), ports: vec![port()], backends: vec![backend] },
        )])),
    }
}

fn report() -> Report {
    let task = TaskReport {
        state: TaskState::Running,
        since: UnixMillis(5),
        message: "started".into(),
        pid: Some(77),
        exit_code: None,
    };
    Report {
        node: NodeId(2),
        term: 3,
        revision: 200,
        description: description(),
        raft: Some(1),
        lost_log: None,
        tasks: BTreeMap::from([(TaskId(4), task)]),
        held_ports: vec![HeldPort { protocol: Protocol::Udp, port: 53, holder: "dnsmasq (12)".into() }],
    }
}

#[test]
fn an_entry_has_these_bytes() {
    check_golden(
        &entry(),
        "
        01000163010000ac05c7a180d095ffbc31010303010907000000010105e807882780b0f1fb1c01047369746504626172
        6e020230820130010101010101010101010101010101010202020202020202020202020202020280b0f1fb1c0109ac02
        00000102027069010101000001056c696e75780561726d363402763880d0acf30e808080800405302e312e3000083130
        2e302e302e31c9120100000203037765620100000102010050903f00010200010102026f6b0000030301037765620101
        6b01760003076e67696e783a3100000103413d31000000000001052f646174610102018020ff070000000000904e0000
        000000000001020474727565b0ea01b0ea010300882700000000008080c002020000000000028827000001106e6f6465
        2e6c6162656c732e7a6f6e6501016100000000010000882700000100008827000000010050903f00010101a09c010000
        040403000101e8070102020107000102d00f01010178000005ac02010405
        ",
    );
}

#[test]
fn a_state_has_these_bytes() {
    check_golden(
        &state(),
        "
        02000158010000c622b4c701010101010105e807882780b0f1fb1c010473697465046261726e02023082013001010101
        0101010101010101010101010202020202020202020202020202020280b0f1fb1c0109ac020102010102027069010101
        000001056c696e75780561726d363402763880d0acf30e808080800405302e312e30000831302e302e302e31c9120101
        03010103037765620100000102010050903f00010200010102026f6b010301010103010377656201016b01760003076e
        67696e783a3100000103413d31000000000001052f646174610102018020ff070000000000904e000000000000000102
        0474727565b0ea01b0ea010300882700000000008080c002020000000000028827000001106e6f64652e6c6162656c73
        2e7a6f6e6501016100000000010000882700000100008827000000010050903f00010101a09c01010401010403000101
        e8070102020107000102d00f01010178010101
        ",
    );
}

#[test]
fn an_assignment_has_these_bytes() {
    check_golden(
        &assignment(),
        "
        030001bb0000005aa4c9030203c8010401010101020d31302e302e302e313a32333737e807882780dddb010230820104
        03037765620102076e67696e783a3100000103413d31000000000001052f646174610102018020ff070000000000904e
        0000000000000001020474727565b0ea01b0ea010300882700000000008080c002020000000000028827000001106e6f
        64652e6c6162656c732e7a6f6e6501016100000000010201a09c010101010303776562010050903f0001040202010050
        903f00070001
        ",
    );
}

#[test]
fn a_report_has_these_bytes() {
    check_golden(
        &report(),
        "
        04000152000000b556feea0203c80101056c696e75780561726d363402763880d0acf30e808080800405302e312e3000
        0831302e302e302e31c912010100010407050773746172746564014d000101350c646e736d6173712028313229
        ",
    );
}

#[test]
fn a_header_tells_how_much_to_read() {
    let bytes = wire::encode(&report()).unwrap();
    let header = Header::read(&bytes).unwrap();
    assert_eq!((header.kind, header.version, header.len), (Kind::Report, 1, bytes.len() - HEADER_LEN));
}

#[test]
fn each_refusal_says_what_is_wrong_and_where() {
    let good = wire::encode(&report()).unwrap();
    let spoil = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        wire::decode::<Report>(&bytes).unwrap_err()
    };
    assert_eq!(spoil(0, 99), WireError::UnknownKind(99));
    assert_eq!(spoil(0, 1), WireError::WrongKind { expected: Kind::Report, found: Kind::Entry });
    assert_eq!(spoil(2, 9), WireError::UnknownVersion { kind: Kind::Report, found: 9, known: 1 });
    assert_eq!(
        spoil(6, 0xff),
        WireError::TooLong {
            kind: Kind::Report,
            len: 0xff00_0000 + good.len() - HEADER_LEN,
            max: Kind::Report.max_len()
        }
    );
    assert!(matches!(spoil(HEADER_LEN, 0xee), WireError::Checksum { kind: Kind::Report, .. }));
    assert_eq!(
        wire::decode::<Report>(&good[..good.len() - 1]),
        Err(WireError::Truncated { have: good.len() - 1, need: good.len() })
    );
    assert_eq!(wire::decode::<Report>(&good[..5]), Err(WireError::Truncated { have: 5, need: HEADER_LEN }));
    let long = [good.as_slice(), &[0]].concat();
    assert_eq!(
        wire::decode::<Report>(&long),
        Err(WireError::Trailing { kind: Kind::Report, offset: good.len(), rest: 1 })
    );
    let text = spoil(2, 9).to_string();
    assert_eq!(text, "version 9 of report at offset 2 is unknown, this build reads version 1");
}

/// A sound envelope around a payload that is none of ours.
fn envelope(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..2].copy_from_slice(&(kind as u16).to_le_bytes());
    bytes[2] = 1;
    bytes[3..7].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    let crc = crc32(&[&bytes[..7], payload].concat());
    bytes[7..11].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// CRC-32 of IEEE 802.3, bit by bit: a second opinion on the checksum of the format.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_payload_that_ends_before_its_envelope_is_refused() {
    let message = &wire::encode(&state()).unwrap()[HEADER_LEN..];
    assert_eq!(wire::decode::<State>(&envelope(Kind::State, message)), Ok(state()));
    let longer = envelope(Kind::State, &[message, &[0, 0]].concat());
    let expected = WireError::Trailing { kind: Kind::State, offset: longer.len() - 2, rest: 2 };
    assert_eq!(wire::decode::<State>(&longer), Err(expected));
}

#[test]
fn a_spec_that_breaks_the_rules_does_not_come_in_by_wire() {
    let message = wire::encode(&entry()).unwrap()[HEADER_LEN..].to_vec();
    let at = message.windows(5).position(|window| window == b"/data").unwrap();
    let mut broken = message.clone();
    broken[at] = b'x';
    let refused = wire::decode::<Entry>(&envelope(Kind::Entry, &broken));
    assert!(matches!(refused, Err(WireError::Malformed { kind: Kind::Entry, .. })), "{refused:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = wire::decode::<Entry>(&envelope(Kind::Entry, &payload));
        let _ = wire::decode::<State>(&envelope(Kind::State, &payload));
        let _ = wire::decode::<Assignment>(&envelope(Kind::Assignment, &payload));
        let _ = wire::decode::<Report>(&envelope(Kind::Report, &payload));
        let _ = wire::decode::<Report>(&payload);
    }

    #[test]
    fn one_changed_byte_is_noticed(at in 0usize..1000, flip in 1u8..) {
        let good = wire::encode(&entry()).unwrap();
        let mut bytes = good.clone();
        bytes[at % good.len()] ^= flip;
        prop_assert!(wire::decode::<Entry>(&bytes).is_err());
    }
}
