//! What a container costs: wall time of create, start, wait and delete through the runtime, beside libcontainer called
//! barely in the same process, and private memory of a shim. Figures on standard output. The bare calls load no seccomp
//! filter, because the runtime loads its own; libcontainer would make it anew each time, which takes it as long as the rest.
//!
//! `cargo run --release --example bench_start [ROUNDS] [SHIM]`, as root, with busybox-static installed. SHIM is the program
//! that is run as shim, such as a whole `edged`; this one unless told otherwise.

use orchestrator::runtime::{ContainerConfig, ContainerState, ImageDefaults, Runtime, RuntimeConfig, shim};
use orchestrator_core::model::{ContainerSpec, ImageName, Resources, TaskId};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

const ROUNDS: u32 = 50;
/// Containers that stand side by side when memory is measured.
const SIDE_BY_SIDE: u32 = 10;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("shim") => shim::main(),
        Some("bare") => bare(),
        rounds => {
            let rounds = rounds.and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
            match tokio::runtime::Runtime::new().map_err(Into::into).and_then(|tokio| tokio.block_on(bench(rounds))) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("bench_start: {error:#}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

async fn bench(rounds: u32) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in("/run")?;
    let runtime = Runtime::open(RuntimeConfig {
        state_dir: dir.path().join("state"),
        run_dir: dir.path().join("run"),
        node_key: format!("bench-{}", std::process::id()),
        shim_exe: std::env::args_os().nth(2).map_or_else(std::env::current_exe, |path| Ok(path.into()))?,
    })
    .await?;
    let rootfs = dir.path().join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;

    let mut times = Vec::new();
    let mut spec_file = None;
    for n in 0..rounds {
        let config = container(n, &rootfs, &["/bin/busybox", "true"]);
        let begin = Instant::now();
        runtime.create(&config).await?;
        let created = begin.elapsed();
        if spec_file.is_none() {
            // The same container for the bare calls.
            let bundle = dir.path().join("bundle");
            fs::create_dir(&bundle)?;
            fs::copy(
                dir.path().join("run").join(config.task.to_string()).join("config.json"),
                bundle.join("config.json"),
            )?;
            spec_file = Some(bundle);
        }
        let mut changes = runtime.changes();
        runtime.start(config.task).await?;
        let started = begin.elapsed();
        while !matches!(runtime.observe().await?[&config.task].state, ContainerState::Exited { .. }) {
            changes.changed().await?;
        }
        let ended = begin.elapsed();
        runtime.delete(config.task).await?;
        times.push([created, started - created, ended - started, begin.elapsed() - ended, begin.elapsed()]);
    }
    for (index, what) in ["create", "start", "wait", "delete", "all"].into_iter().enumerate() {
        println!("runtime {what:7} {}", summary(times.iter().map(|t| t[index]).collect()));
    }

    if let Some(bundle) = spec_file {
        let mut bare = Vec::new();
        for n in 0..rounds {
            let begin = Instant::now();
            let status =
                Command::new(std::env::current_exe()?).arg("bare").arg(&bundle).arg(format!("bare-{n}")).status()?;
            anyhow::ensure!(status.success(), "bare libcontainer failed");
            bare.push(begin.elapsed());
        }
        println!("bare libcontainer without a filter, process included {}", summary(bare));
    }

    let configs: Vec<_> =
        (0..SIDE_BY_SIDE).map(|n| container(1000 + n, &rootfs, &["/bin/busybox", "sleep", "1000"])).collect();
    for config in &configs {
        runtime.create(config).await?;
        runtime.start(config.task).await?;
    }
    for config in [&configs[0], &configs[configs.len() - 1]] {
        let record = fs::read_to_string(dir.path().join("run").join(config.task.to_string()).join("shim.pid"))?;
        let record: serde_json::Value = serde_json::from_str(&record)?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", record["pid"]))?;
        let lines: Vec<&str> = rollup
            .lines()
            .filter(|l| ["Rss", "Pss:", "Private", "Anonymous:"].iter().any(|k| l.starts_with(k)))
            .collect();
        println!("shim: {}", lines.join(", ").split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for config in &configs {
        runtime.delete(config.task).await?;
    }
    Ok(())
}

fn container(n: u32, rootfs: &Path, command: &[&str]) -> ContainerConfig {
    let mut spec = ContainerSpec::new(ImageName::new("busybox").expect("it is a name"));
    spec.command = Some(command.iter().map(|s| (*s).into()).collect());
    ContainerConfig {
        task: TaskId(u128::from(n)),
        name: format!("bench.{n}"),
        spec,
        resources: Resources::default(),
        image: ImageDefaults::default(),
        rootfs: rootfs.into(),
        netns: None,
        hostname: "bench".into(),
        hosts: String::new(),
        resolv_conf: String::new(),
        volumes: BTreeMap::new(),
    }
}

/// Creates, starts, waits and deletes by libcontainer alone: `bench_start bare <bundle> <id>`.
fn bare() -> ExitCode {
    use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
    let args: Vec<String> = std::env::args().collect();
    let run = || -> anyhow::Result<()> {
        let root = Path::new(&args[2]).join("root");
        let mut container = ContainerBuilder::new(args[3].clone(), SyscallType::default())
            .with_root_path(root)?
            .as_init(&args[2])
            .with_systemd(false)
            .build()?;
        let pid = container.pid().and_then(|pid| rustix::process::Pid::from_raw(pid.as_raw()));
        let pid = pid.ok_or_else(|| anyhow::anyhow!("there is no process"))?;
        let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        container.start()?;
        // It is a child of libcontainer's, not of this process. Deleted before it has ended, its control groups would be
        // busy, for which libcontainer waits in steps of 100 ms.
        rustix::event::poll(&mut [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)], None)?;
        container.delete(true)?;
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    format!("p50 {:6.1} ms  p90 {:6.1} ms", at(50), at(90))
}
