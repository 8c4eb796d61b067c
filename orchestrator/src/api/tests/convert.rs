//! Service specs survive the way to Docker's form and back.

use crate::api::docker::{
    convert::{service_spec, to_service_spec},
    spec,
};
use orchestrator_core::model::*;
use proptest::{collection::vec, option, prelude::*};
use std::collections::BTreeMap;

fn text() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}"
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(text(), text(), 0..3)
}

fn words() -> impl Strategy<Value = Option<Vec<String>>> {
    option::of(vec(text(), 1..4))
}

fn mount(at: usize) -> impl Strategy<Value = Mount> {
    let propagation = prop_oneof![Just(Propagation::RPrivate), Just(Propagation::Slave), Just(Propagation::RShared)];
    let source = prop_oneof![
        (text(), propagation, any::<bool>(), any::<bool>()).prop_map(|(path, propagation, recursive, create)| {
            MountSource::Bind { path: format!("/{path}"), propagation, recursive, create }
        }),
        (option::of(text()), any::<bool>(), labels(), option::of(text()))
            .prop_map(|(name, no_copy, labels, subpath)| MountSource::Volume { name, no_copy, labels, subpath }),
        (option::of(1..1u64 << 40), 1..0o7777u32)
            .prop_map(|(size_bytes, mode)| MountSource::Tmpfs { size_bytes, mode }),
    ];
    (source, any::<bool>()).prop_map(move |(source, read_only)| Mount { target: format!("/m{at}"), read_only, source })
}

fn health() -> impl Strategy<Value = HealthCheck> {
    let test = prop_oneof![
        Just(HealthTest::None),
        vec(text(), 1..3).prop_map(HealthTest::Exec),
        text().prop_map(HealthTest::Shell),
    ];
    (test, 1..100_000u64, 1..100_000u64, 1..10u32, 0..100_000u64, 1..100_000u64).prop_map(
        |(test, interval, timeout, retries, start_period, start_interval)| HealthCheck {
            test,
            interval: Millis(interval),
            timeout: Millis(timeout),
            retries,
            start_period: Millis(start_period),
            start_interval: Millis(start_interval),
        },
    )
}

fn container() -> impl Strategy<Value = ContainerSpec> {
    let process =
        (words(), words(), vec(text().prop_map(|t| format!("{t}=x")), 0..3), option::of(text()), option::of(text()));
    let rights =
        (vec(text().prop_map(|t| t.to_uppercase()), 0..3), vec(Just("ALL".to_owned()), 0..2), any::<[bool; 5]>());
    let rest = (
        (mount(0), mount(1)),
        option::of(health()),
        option::of(1..=64u8),
        0..100_000u64,
        labels(),
        option::of(any::<bool>()),
        -1000..=1000i32,
        (4096..1u64 << 30, 1..10u32),
        vec((text(), Just("10.0.0.1".to_owned())), 0..3),
    );
    (process, rights, rest).prop_map(|(process, rights, rest)| {
        let mut spec = ContainerSpec::new(ImageName::new("nginx:1").unwrap());
        let (command, args, env, user, hostname) = process;
        (spec.command, spec.args, spec.env, spec.user, spec.hostname) = (command, args, env, user.clone(), hostname);
        spec.workdir = user.map(|user| format!("/{user}"));
        let (add, drop, flags) = rights;
        (spec.cap_add, spec.cap_drop) = (add, drop);
        [spec.read_only, spec.tty, spec.open_stdin, spec.privileged, spec.no_new_privileges] = flags;
        if flags[0] {
            let path = "/dev/ttyUSB0".to_owned();
            spec.devices.push(Device { host_path: path.clone(), container_path: path, permissions: "rw".into() });
            spec.dns.servers.push("9.9.9.9".into());
            spec.dns.options.push("ndots:1".into());
            spec.groups.push("dialout".into());
        }
        let (mounts, check, signal, grace, labels, init, oom, log, hosts) = rest;
        spec.mounts = vec![mounts.0, mounts.1];
        spec.health = check;
        spec.stop_signal = signal.map(|number| Signal::try_from(number).unwrap());
        spec.stop_grace = Millis(grace);
        spec.sysctls = labels.clone();
        spec.ulimits = labels.keys().map(|name| (name.clone(), Ulimit { soft: 1, hard: -1 })).collect();
        spec.labels = labels;
        spec.init = init;
        spec.oom_score_adj = oom;
        spec.log = LogConfig { max_bytes: log.0, max_files: log.1 };
        spec.hosts = hosts;
        spec
    })
}

fn update(rollback: bool) -> impl Strategy<Value = UpdateConfig> {
    let actions = if rollback {
        vec![FailureAction::Pause, FailureAction::Continue]
    } else {
        vec![FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback]
    };
    let order = prop_oneof![Just(UpdateOrder::StopFirst), Just(UpdateOrder::StartFirst)];
    (any::<u32>(), 0..100_000u64, proptest::sample::select(actions), 1..100_000u64, 0..=1_000_000u32, order).prop_map(
        |(parallelism, delay, on_failure, monitor, max_failure_ppm, order)| UpdateConfig {
            parallelism,
            delay: Millis(delay),
            on_failure,
            monitor: Millis(monitor),
            max_failure_ppm,
            order,
        },
    )
}

fn service() -> impl Strategy<Value = ServiceSpec> {
    let mode = prop_oneof![(0..100u32).prop_map(|replicas| Mode::Replicated { replicas }), Just(Mode::Global)];
    let restart = (0..3u8, 0..100_000u64, any::<u32>(), 0..100_000u64).prop_map(|(kind, delay, attempts, window)| {
        let kinds = [RestartCondition::None, RestartCondition::OnFailure, RestartCondition::Any];
        let condition = kinds[usize::from(kind)];
        RestartPolicy { condition, delay: Millis(delay), max_attempts: attempts, window: Millis(window) }
    });
    let amounts = (0..1u64 << 40, 0..1u64 << 20);
    (text(), labels(), mode, container(), restart, update(false), update(true), amounts, 1..1000u16, any::<bool>())
        .prop_map(|(name, labels, mode, container, restart, update, rollback, amounts, port, flag)| {
            let publish = if flag { PublishMode::Host } else { PublishMode::Ingress };
            let ports = vec![
                PortSpec { protocol: Protocol::Tcp, target: port, published: port + 1, mode: publish },
                PortSpec { protocol: Protocol::Udp, target: port, published: 0, mode: publish },
            ];
            ServiceSpec::new(ServiceParts {
                name: Name::new(name).unwrap(),
                labels,
                mode,
                task: TaskSpec {
                    container,
                    resources: Resources {
                        limit_nano_cpus: 1_000_000 + amounts.0,
                        limit_memory_bytes: Resources::MIN_MEMORY + amounts.1,
                        limit_pids: amounts.1,
                        reserve_nano_cpus: amounts.0,
                        reserve_memory_bytes: amounts.1,
                    },
                    restart,
                    placement: Placement {
                        constraints: vec![Constraint::parse("node.labels.zone!=a").unwrap()],
                        spread: vec!["node.labels.zone".into()],
                        max_per_node: u32::from(port),
                        platforms: vec![Platform { os: "linux".into(), arch: "arm".into(), variant: "v7".into() }],
                    },
                    force_update: amounts.0,
                },
                update,
                rollback,
                endpoint: EndpointSpec { mode: if flag { EndpointMode::DnsRr } else { EndpointMode::Vip }, ports },
                on_disconnect: None,
                disconnect_grace: None,
            })
            .unwrap()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn specs_survive_the_way_to_docker_and_back(spec in service()) {
        let wire = to_service_spec(&spec);
        let text = serde_json::to_string(&wire).unwrap();
        let read: spec::ServiceSpec = crate::api::request::parse_body(text.as_bytes()).unwrap();
        prop_assert_eq!(&read, &wire);
        prop_assert_eq!(service_spec(&read, None).unwrap(), spec);
    }
}

#[test]
fn an_empty_spec_gets_dockers_defaults() {
    let body = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"nginx"}}}"#;
    let spec = service_spec(&crate::api::request::parse_body(body.as_bytes()).unwrap(), None).unwrap();
    assert_eq!(spec.mode, Mode::Replicated { replicas: 1 });
    assert_eq!(spec.task.restart, RestartPolicy::default());
    assert_eq!(spec.update, UpdateConfig::default());
    assert_eq!(spec.task.container, ContainerSpec::new(ImageName::new("nginx").unwrap()));
}

#[test]
fn an_update_by_a_client_that_does_not_know_our_fields_keeps_them() {
    let body = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"nginx","Privileged":true,
        "Devices":[{"PathOnHost":"/dev/gpiomem"}]}}}"#;
    let before = service_spec(&crate::api::request::parse_body(body.as_bytes()).unwrap(), None).unwrap();
    assert!(before.task.container.privileged);
    let mut wire = to_service_spec(&before);
    wire.task_template.container_spec.privileged = None;
    wire.task_template.container_spec.devices = None;
    assert_eq!(service_spec(&wire, Some(&before)).unwrap(), before);
    wire.task_template.container_spec.privileged = Some(false);
    wire.task_template.container_spec.devices = Some(Vec::new());
    let after = service_spec(&wire, Some(&before)).unwrap();
    assert!(!after.task.container.privileged && after.task.container.devices.is_empty());
}

#[test]
fn signals_that_have_no_name_keep_their_number() {
    for number in [32, 33, 34, 64] {
        let body = format!(
            r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"nginx","StopSignal":"{number}"}}}}}}"#
        );
        let spec = service_spec(&crate::api::request::parse_body(body.as_bytes()).unwrap(), None).unwrap();
        assert_eq!(service_spec(&to_service_spec(&spec), None).unwrap(), spec, "{number}");
    }
}
