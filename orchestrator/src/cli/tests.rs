//! `edgectl` against the API's fake: what it prints, what it sends, how it fails.

mod cluster;

use super::{Cli, Out, run};
use crate::api::fake::{Buffer, Fake};
use clap::CommandFactory;
use orchestrator_core::model::{Mode, ServiceSpec};
use std::{ffi::OsString, sync::Arc};

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

struct Ran {
    out: String,
    err: String,
    code: i32,
}

async fn at(host: &str, arguments: &[&str]) -> Ran {
    let (stdout, stderr) = (Buffer::default(), Buffer::default());
    let mut out = Out::to(Box::new(stdout.clone()), Box::new(stderr.clone()));
    let line: Vec<OsString> = ["edgectl", "--host", host].iter().chain(arguments).map(OsString::from).collect();
    let code = run(line, &mut out).await;
    Ran { out: stdout.text(), err: stderr.text(), code }
}

async fn ctl(fake: &Fake, arguments: &[&str]) -> Ran {
    at(&fake.host(), arguments).await
}

async fn ok(fake: &Fake, arguments: &[&str]) -> String {
    let ran = ctl(fake, arguments).await;
    assert_eq!(ran.code, 0, "edgectl {arguments:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// Makes times and ids the same on each run.
fn steady(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut line = line.replace("less than a second", "TIME").replace("Less than a second", "TIME");
        for secs in (1..10).rev() {
            line = line.replace(&format!("{secs} seconds"), "TIME").replace(&format!("{secs} second"), "TIME");
        }
        let words: Vec<String> = line
            .split(' ')
            .map(|word| {
                let id = |part: &str| {
                    [12, 25].contains(&part.len())
                        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                        && part.bytes().any(|b| b.is_ascii_digit())
                };
                word.split('.').map(|part| if id(part) { "ID" } else { part }).collect::<Vec<_>>().join(".")
            })
            .filter(|word| !word.is_empty())
            .collect();
        out.push_str(&words.join(" "));
        out.push('\n');
    }
    out
}

const CREATE: &[&str] =
    &["service", "create", "--name", "web", "--replicas", "2", "-p", "8080:80", "--update-monitor", "50ms", "nginx"];

#[tokio::test]
async fn creating_a_service_waits_until_it_is_stable() {
    let fake = Fake::cluster().await;
    let text = ok(&fake, CREATE).await;
    assert_eq!(
        steady(&text),
        "ID\n1/2: running\n2/2: running\noverall progress: 2 out of 2 tasks\n\
         verify: waiting 1s to verify that tasks are stable\nverify: Service web converged\n"
    );
    let text = ok(&fake, &["service", "scale", "web=3"]).await;
    assert!(text.ends_with("verify: Service web converged\n"), "{text}");
    let text = ok(&fake, &["service", "rollback", "web"]).await;
    assert!(text.contains("overall progress: 2 out of 2 tasks"), "{text}");
}

#[tokio::test]
async fn a_service_whose_tasks_all_end_is_reported() {
    let fake = Fake::cluster().await;
    let ran = ctl(&fake, &["service", "create", "--name", "bad", "--restart-condition", "none", "broken"]).await;
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.err.contains("image broken could not be accessed on a registry to record its digest"), "{}", ran.err);
    assert!(ran.err.contains("create service bad: all tasks ended and none is restarted"), "{}", ran.err);
    assert!(ran.err.contains("no such image: broken"), "{}", ran.err);
}

#[tokio::test]
async fn lists_look_like_dockers() {
    let fake = Fake::cluster().await;
    ok(&fake, CREATE).await;
    assert_eq!(
        steady(&ok(&fake, &["service", "ls"]).await),
        "ID NAME MODE REPLICAS IMAGE PORTS\nID web replicated 2/2 nginx:latest *:8080->80/tcp\n"
    );
    assert_eq!(
        steady(&ok(&fake, &["service", "ps", "web"]).await),
        "ID NAME IMAGE NODE DESIRED STATE CURRENT STATE ERROR PORTS\n\
         ID web.1 nginx:latest pi1 Running Running TIME ago\n\
         ID web.2 nginx:latest pi1 Running Running TIME ago\n"
    );
    assert_eq!(
        steady(&ok(&fake, &["node", "ls"]).await),
        "ID HOSTNAME STATUS AVAILABILITY MANAGER STATUS ADDRESS VERSION\nID * pi1 Ready Active Leader 10.0.0.5 0.1.0\n"
    );
    assert_eq!(
        steady(&ok(&fake, &["ps"]).await).lines().nth(1).unwrap(),
        "ID nginx:latest \"nginx -g daemon off;\" TIME ago Up TIME *:8080->80/tcp web.1.ID"
    );
    assert_eq!(
        ok(&fake, &["image", "ls"]).await,
        "IMAGE ID       REPOSITORY   TAG      CREATED      SIZE\nbbbbbbbbbbbb   nginx        latest   3 days ago   187MB\n"
    );
    let stats = steady(&ok(&fake, &["stats", "--no-stream"]).await);
    assert!(stats.contains("20MiB / 100MiB 20.00% 1.2kB / 3.4kB 0B / 0B 3"), "{stats}");
}

#[tokio::test]
async fn lists_can_be_filtered_formatted_and_reduced_to_ids() {
    let fake = Fake::cluster().await;
    ok(&fake, CREATE).await;
    assert_eq!(ok(&fake, &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]).await, "web 2/2\n");
    assert_eq!(ok(&fake, &["service", "ls", "--filter", "name=other", "-q"]).await, "");
    assert_eq!(ok(&fake, &["service", "ls", "-q", "--no-trunc"]).await.trim().len(), 25);
    assert_eq!(
        ok(&fake, &["service", "ls", "--format", "table {{.Name}}\\t{{.Mode}}"]).await,
        "NAME   MODE\nweb    replicated\n"
    );
    let json: serde_json::Value = serde_json::from_str(&ok(&fake, &["service", "ls", "--json"]).await).unwrap();
    assert_eq!(json[0]["Spec"]["Name"], "web");
    let line = ok(&fake, &["node", "ls", "--format", "json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["Hostname"], "pi1");
    assert_eq!(ok(&fake, &["service", "inspect", "web", "-f", "{{.Spec.Mode.Replicated.Replicas}}"]).await, "2\n");
    let ran = ctl(&fake, &["service", "ls", "--format", "{{.Nme}}"]).await;
    assert_eq!(ran.code, 125);
    assert!(ran.err.contains("template field .Nme does not exist; there are: ID"), "{}", ran.err);
}

#[tokio::test]
async fn logs_name_their_tasks() {
    let fake = Fake::cluster().await;
    ok(&fake, CREATE).await;
    let ran = ctl(&fake, &["service", "logs", "web"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.out);
    assert!(lines.iter().all(|line| line.contains("@pi1 | hello from web.")), "{}", ran.out);
    assert_eq!(ran.err.matches("| careful").count(), 2);
    assert!(ok(&fake, &["service", "logs", "--raw", "web"]).await.starts_with("hello from web."));
    let id = ok(&fake, &["ps", "-q", "--no-trunc"]).await.lines().next().unwrap().to_owned();
    assert!(ok(&fake, &["logs", &id]).await.starts_with("hello from web."));
    assert!(ok(&fake, &["service", "logs", &id]).await.contains("hello from web."));
    assert!(ctl(&fake, &["service", "logs", "none"]).await.err.contains("logs of none: no such task or service"));
}

#[tokio::test]
async fn a_wrong_command_line_gets_one_line_that_says_where_to_read_on() {
    let fake = Fake::cluster().await;
    for (words, what) in [
        (&["service", "create", "--nosuch", "x"][..], "unexpected argument '--nosuch' found"),
        (&["service", "create", "--replicas", "x", "y"], "invalid value 'x' for '--replicas <N>'"),
        (&["service", "create"], "required arguments were not provided: <IMAGE>"),
        (&["nosuch"], "unrecognized subcommand 'nosuch'"),
    ] {
        let ran = ctl(&fake, words).await;
        assert_eq!((ran.code, ran.err.trim_end().lines().count()), (125, 1), "{}", ran.err);
        assert!(ran.err.starts_with("edgectl: ") && ran.err.contains(what), "{}", ran.err);
        assert!(ran.err.trim_end().ends_with("--help`"), "{}", ran.err);
    }
}

#[tokio::test]
async fn exec_passes_output_and_exit_code_on() {
    let fake = Fake::cluster().await;
    ok(&fake, CREATE).await;
    let id = ok(&fake, &["ps", "-q"]).await.lines().next().unwrap().to_owned();
    let ran = ctl(&fake, &["exec", &id, "ls", "-l"]).await;
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.code), ("ls out\n", "ls err\n", 7));
}

/// The spec of the only service.
fn spec(fake: &Fake) -> Arc<ServiceSpec> {
    let state = crate::api::node::Cluster::state(&*fake.daemon);
    let service = state.services.values().find(|service| !service.removed).unwrap();
    Arc::clone(&state.current_spec(service).unwrap().spec)
}

#[tokio::test]
async fn flags_of_create_say_what_the_service_is() {
    let fake = Fake::cluster().await;
    let flags = "service create -d --name all --replicas 3 --entrypoint /bin/sh\\ -c -e A=1 -l team=x --container-label c=d \
        -u 1000:1000 -w /srv --hostname box --init --tty --read-only --privileged --no-new-privileges --cap-add net_admin \
        --cap-drop CAP_MKNOD --oom-score-adj -5 --stop-signal SIGINT --stop-grace-period 3s --limit-cpu 0.5 --limit-memory 64M \
        --limit-pids 99 --reserve-cpu 0.25 --reserve-memory 32M --health-cmd true --health-interval 5s --health-retries 2 \
        --log-opt max-size=1m --restart-condition on-failure --restart-delay 1s --restart-max-attempts 4 --restart-window 1m \
        --update-parallelism 2 --update-order start-first --update-failure-action rollback --rollback-delay 2s \
        --constraint node.role==manager --placement-pref spread=node.labels.zone --replicas-max-per-node 9 \
        --mount type=tmpfs,target=/t --device /dev/gpiomem:rw --group dialout --host db:10.0.0.9 --dns 9.9.9.9 \
        --sysctl net.core.somaxconn=1024 --ulimit nofile=1024:2048 -p 53:53/udp --endpoint-mode vip nginx run --fast";
    let arguments: Vec<String> = super::service::split_words(flags);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    ok(&fake, &arguments).await;
    let spec = spec(&fake);
    let container = &spec.task.container;
    assert_eq!(spec.mode, Mode::Replicated { replicas: 3 });
    assert_eq!(container.command.as_deref().unwrap(), ["/bin/sh", "-c"]);
    assert_eq!(container.args.as_deref().unwrap(), ["run", "--fast"]);
    assert_eq!((&container.env[..], container.user.as_deref()), (&["A=1".to_owned()][..], Some("1000:1000")));
    assert_eq!((container.workdir.as_deref(), container.hostname.as_deref()), (Some("/srv"), Some("box")));
    assert!(container.tty && container.read_only && container.privileged && container.no_new_privileges);
    assert_eq!((container.init, container.oom_score_adj), (Some(true), -5));
    assert_eq!((&container.cap_add[0][..], &container.cap_drop[0][..]), ("NET_ADMIN", "MKNOD"));
    assert_eq!((container.stop_signal.unwrap().number(), container.stop_grace.0), (2, 3000));
    assert_eq!(spec.task.resources.limit_nano_cpus, 500_000_000);
    assert_eq!((spec.task.resources.limit_memory_bytes, spec.task.resources.limit_pids), (64 << 20, 99));
    assert_eq!((container.health.as_ref().unwrap().interval.0, container.health.as_ref().unwrap().retries), (5000, 2));
    assert_eq!(container.log.max_bytes, 1 << 20);
    assert_eq!(
        (spec.task.restart.delay.0, spec.task.restart.max_attempts, spec.task.restart.window.0),
        (1000, 4, 60_000)
    );
    assert_eq!((spec.update.parallelism, spec.rollback.parallelism, spec.rollback.delay.0), (2, 1, 2000));
    assert_eq!((spec.task.placement.constraints[0].value.as_str(), spec.task.placement.max_per_node), ("manager", 9));
    assert_eq!(spec.task.placement.platforms[0].variant, "v8");
    assert_eq!((container.mounts[0].target.as_str(), container.devices[0].permissions.as_str()), ("/t", "rw"));
    assert_eq!(container.hosts[0], ("db".to_owned(), "10.0.0.9".to_owned()));
    assert_eq!((container.dns.servers[0].as_str(), container.ulimits["nofile"].hard), ("9.9.9.9", 2048));
    assert_eq!((spec.endpoint.ports[0].target, spec.labels["team"].as_str()), (53, "x"));

    let flags = "service update -d --env-add B=2 --env-rm A --label-rm team --tty=false --privileged=false --device-rm /dev/gpiomem \
        --publish-rm 53/udp --publish-add 81:81 --mount-rm /t --constraint-rm node.role==manager --args again --cap-drop net_admin \
        --group-rm dialout --replicas 1 all";
    let arguments: Vec<String> = super::service::split_words(flags);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    ok(&fake, &arguments).await;
    let after = self::spec(&fake);
    let container = &after.task.container;
    assert_eq!(container.env, ["B=2"]);
    assert_eq!(container.args.as_deref().unwrap(), ["again"]);
    assert!(!container.tty && !container.privileged && container.devices.is_empty() && container.mounts.is_empty());
    assert!(after.labels.is_empty() && container.cap_add.is_empty() && container.groups.is_empty());
    assert!(after.task.placement.constraints.is_empty());
    assert_eq!(after.endpoint.ports.iter().map(|port| port.target).collect::<Vec<_>>(), [81]);
    assert_eq!(after.mode, Mode::Replicated { replicas: 1 });
    assert_eq!((container.health.clone(), after.task.restart), (spec.task.container.health.clone(), spec.task.restart));
}

#[tokio::test]
async fn wrong_command_lines_are_refused_by_name() {
    let fake = Fake::cluster().await;
    let cases: [(&[&str], i32, &str); 11] = [
        (&["service", "create", "--network", "x", "nginx"], 125, "not supported yet: --network"),
        (&["service", "create", "--mode", "replicated-job", "nginx"], 125, "not supported yet: --mode replicated-job"),
        (&["service", "create", "--mode", "global", "--replicas", "2", "nginx"], 125, "replicas can only be used with"),
        (&["service", "create", "--limit-memory", "many", "nginx"], 125, "512k, 64M, 1g"),
        (&["service", "create", "-p", "99999:1", "nginx"], 125, "invalid --publish"),
        (
            &["service", "create", "--no-resolve-image", "-d", "--limit-memory", "1M", "nginx"],
            1,
            "below the minimum of 6MB",
        ),
        (&["service", "scale", "web"], 125, "it must be SERVICE=REPLICAS"),
        (&["service", "scale", "none=1"], 1, "scale service none: service none not found"),
        (&["service", "ls", "--filter", "x"], 125, "it must be KEY=VALUE"),
        (&["exec", "none", "true"], 1, "exec in none: No such container: none"),
        (&["frobnicate"], 125, "unrecognized subcommand"),
    ];
    for (arguments, code, words) in cases {
        let ran = ctl(&fake, arguments).await;
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn a_daemon_that_does_not_run_is_named() {
    let ran = at("unix:///nonexistent/edged.sock", &["service", "ls"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        "edgectl: list services: cannot reach edged at /nonexistent/edged.sock: is it running? (systemctl status edged)\n"
    );
    assert_eq!(at("tcp://1.2.3.4", &["ps"]).await.code, 125);
}

#[tokio::test]
async fn images_are_fetched_and_removed() {
    let fake = Fake::cluster().await;
    assert_eq!(ok(&fake, &["pull", "redis:7"]).await, "Pulling from redis:7\nabc: Downloading\nabc: Pull complete\n");
    assert_eq!(ok(&fake, &["image", "ls", "-q", "redis"]).await, "bbbbbbbbbbbb\n");
    let ran = ctl(&fake, &["pull", "broken"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "edgectl: pull broken: the registry went away\n"));
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), vec![1; 200_000]).unwrap();
    let text = ok(&fake, &["image", "load", "-i", archive.path().to_str().unwrap()]).await;
    assert_eq!(text, "Loaded image: nginx:latest\n");
    assert_eq!(*fake.daemon.loaded.lock().unwrap(), 200_000);
    ok(&fake, &["image", "tag", "nginx", "registry:5000/app:2"]).await;
    assert_eq!(
        ok(&fake, &["image", "ls", "--format", "{{.Repository}}|{{.Tag}}", "registry:5000/*"]).await,
        "nginx|latest\nregistry:5000/app|2\n"
    );
    assert!(ok(&fake, &["image", "rm", "redis:7"]).await.starts_with("Untagged: redis:7\n"));
}

#[tokio::test]
async fn the_node_and_its_faults_are_shown() {
    let fake = Fake::bare().await;
    assert!(ok(&fake, &["cluster", "init"]).await.starts_with("Cluster initialised: this node ("));
    assert!(ctl(&fake, &["cluster", "init"]).await.err.contains("initialise the cluster:"));
    assert!(ok(&fake, &["info"]).await.contains("Kernel:           6.12.20\n"));
    assert!(ok(&fake, &["version"]).await.contains("edged   0.1.0 (abcdef0) linux/arm64"));
    let ran = ctl(&fake, &["doctor"]).await;
    assert_eq!(
        ran.out,
        "ok    overlayfs: found\nFAIL  cgroup memory controller: not enabled\n      fix: add cgroup_enable=memory to cmdline.txt\n"
    );
    assert_eq!((ran.code, ran.err.as_str()), (1, "edgectl: one thing is not as it should be\n"));
    assert!(ok(&fake, &["system", "df"]).await.contains("187MB"));
    assert!(ok(&fake, &["system", "interfaces"]).await.contains("tcx"));
    ok(&fake, &["node", "update", "--label-add", "zone=a", "--availability", "drain", "self"]).await;
    let node = ok(&fake, &["node", "inspect", "self", "-f", "{{.Spec.Availability}} {{.Spec.Labels.zone}}"]).await;
    assert_eq!(node, "drain a\n");
    assert!(ok(&fake, &["completion", "bash"]).await.contains("_edgectl"));
}

#[tokio::test]
async fn explain_says_why() {
    let fake = Fake::cluster().await;
    ok(&fake, &["service", "create", "-d", "--name", "lost", "--constraint", "node.labels.zone==moon", "nginx"]).await;
    let text = ok(&fake, &["service", "explain", "lost"]).await;
    assert!(text.starts_with("lost (replicated): 0 of 1 tasks run\nlost.1 ("), "{text}");
    assert!(text.lines().count() >= 3, "{text}");
}
