//! The flags of `service create` and `service update`, and what they do to a service in the API's form. Flags that both
//! commands share are in [`Common`]; lists are given whole to `create`, and changed entry by entry by `update`.

use super::{
    super::{Error, Result},
    syntax,
};
use crate::api::docker::spec::{
    DnsConfig, EndpointSpec, Global, Healthcheck, Limits, LogDriver, Mode, Placement, Preference, Privileges,
    Replicated, Reservations, Resources, RestartPolicy, ServiceSpec, Spread, UpdateConfig,
};
use std::collections::BTreeMap;

/// Flags of both commands.
#[derive(clap::Args, Debug, Default)]
pub(super) struct Common {
    /// Return at once instead of waiting for the service to be stable
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Show no progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not ask the registry which content the image's name stands for
    #[arg(long)]
    pub(super) no_resolve_image: bool,
    /// Send credentials for the registry to the nodes
    #[arg(long, hide = true)]
    with_registry_auth: bool,
    /// Number of tasks
    #[arg(long, value_name = "N")]
    pub(super) replicas: Option<u32>,
    /// Tasks on one node at most; 0 is no limit
    #[arg(long, value_name = "N")]
    replicas_max_per_node: Option<u32>,
    /// What the service's name resolves to
    #[arg(long, value_parser = ["vip", "dnsrr"])]
    endpoint_mode: Option<String>,
    /// Replaces the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// User: NAME or UID[:GID]
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Run a small init as process 1
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    init: Option<bool>,
    /// Allocate a terminal
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    tty: Option<bool>,
    /// Mount the root file system read-only
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    read_only: Option<bool>,
    /// All capabilities, all devices, no confinement
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    privileged: Option<bool>,
    /// Processes gain no privileges through set-user-id programs
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    no_new_privileges: Option<bool>,
    /// Add a capability
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// Score for the out-of-memory killer, -1000 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    oom_score_adj: Option<i32>,
    /// Signal that asks the process to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time between the stop signal and SIGKILL (default 10s)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    stop_grace_period: Option<u64>,
    /// What a node that reaches no manager does with its tasks: keep them, stop them after the grace, or (auto) stop only
    /// those of services with one replica
    #[arg(long, value_parser = ["keep", "stop", "auto"])]
    on_disconnect: Option<String>,
    /// How long such a node waits before it stops them (default: twice the time after which a node counts as down)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    disconnect_grace: Option<u64>,
    /// CPU limit in cores
    #[arg(long, value_name = "CORES", value_parser = syntax::cpus)]
    limit_cpu: Option<u64>,
    /// Memory limit
    #[arg(long, value_name = "BYTES", value_parser = syntax::bytes)]
    limit_memory: Option<u64>,
    /// Limit of processes; 0 is the default of 4096
    #[arg(long, value_name = "N")]
    limit_pids: Option<u64>,
    /// CPU set aside, in cores
    #[arg(long, value_name = "CORES", value_parser = syntax::cpus)]
    reserve_cpu: Option<u64>,
    /// Memory set aside
    #[arg(long, value_name = "BYTES", value_parser = syntax::bytes)]
    reserve_memory: Option<u64>,
    /// Shell command that checks whether the container works
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between checks (default 30s)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    health_interval: Option<u64>,
    /// Failures in a row that make it unhealthy (default 3)
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
    /// Time after the start in which failures do not count (default 0s)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    health_start_period: Option<u64>,
    /// Time between checks during the start period (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    health_start_interval: Option<u64>,
    /// A check that takes longer has failed (default 30s)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    health_timeout: Option<u64>,
    /// No health check, also if the image has one
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
    /// Where logs go: json-file or local (rotated files on the node)
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Size of log files: max-size=5m, max-file=2
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    /// Which ends of a task lead to a new one (default any)
    #[arg(long, value_parser = ["none", "on-failure", "any"])]
    restart_condition: Option<String>,
    /// Time from the end of a task to the new one (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    restart_delay: Option<u64>,
    /// New tasks per slot at most; 0 is no limit
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u32>,
    /// Time over which the attempts are counted
    #[arg(long, value_name = "DURATION", value_parser = syntax::duration)]
    restart_window: Option<u64>,
    #[command(flatten)]
    update: UpdateFlags,
    #[command(flatten)]
    rollback: RollbackFlags,
    #[command(flatten)]
    unsupported: Unsupported,
}

macro_rules! rollout_flags {
    ($name:ident, $prefix:literal, $what:literal, [$($action:literal),*]) => {
        #[derive(clap::Args, Debug, Default)]
        struct $name {
            #[doc = concat!("Tasks ", $what, " at the same time; 0 is all (default 1)")]
            #[arg(long = concat!($prefix, "-parallelism"), id = concat!($prefix, "_parallelism"), value_name = "N")]
            parallelism: Option<u32>,
            #[doc = concat!("Pause between tasks ", $what)]
            #[arg(long = concat!($prefix, "-delay"), id = concat!($prefix, "_delay"), value_name = "DURATION", value_parser = syntax::duration)]
            delay: Option<u64>,
            #[doc = concat!("A task ", $what, " that fails within this time counts (default 5s)")]
            #[arg(long = concat!($prefix, "-monitor"), id = concat!($prefix, "_monitor"), value_name = "DURATION", value_parser = syntax::duration)]
            monitor: Option<u64>,
            #[doc = "What happens after too many failures (default pause)"]
            #[arg(long = concat!($prefix, "-failure-action"), id = concat!($prefix, "_failure_action"), value_parser = [$($action),*])]
            failure_action: Option<String>,
            #[doc = "Share of tasks that may fail, 0 to 1"]
            #[arg(long = concat!($prefix, "-max-failure-ratio"), id = concat!($prefix, "_max_failure_ratio"), value_name = "RATIO")]
            max_failure_ratio: Option<f64>,
            #[doc = "Whether the old task ends before or after the new one runs (default stop-first)"]
            #[arg(long = concat!($prefix, "-order"), id = concat!($prefix, "_order"), value_parser = ["start-first", "stop-first"])]
            order: Option<String>,
        }

        impl $name {
            fn apply(&self, config: &mut Option<UpdateConfig>) {
                let given = self.parallelism.is_some()
                    || self.delay.is_some()
                    || self.monitor.is_some()
                    || self.failure_action.is_some()
                    || self.max_failure_ratio.is_some()
                    || self.order.is_some();
                if !given {
                    return;
                }
                let config = config.get_or_insert_with(|| UpdateConfig { parallelism: 1, ..UpdateConfig::default() });
                set(&mut config.parallelism, self.parallelism);
                set(&mut config.delay, self.delay);
                set(&mut config.monitor, self.monitor);
                set(&mut config.failure_action, self.failure_action.clone());
                set(&mut config.max_failure_ratio, self.max_failure_ratio);
                set(&mut config.order, self.order.clone());
            }
        }
    };
}

rollout_flags!(UpdateFlags, "update", "updated", ["pause", "continue", "rollback"]);
rollout_flags!(RollbackFlags, "rollback", "rolled back", ["pause", "continue"]);

/// Flags of Docker's that this version cannot honour: known, so that the refusal can say so.
macro_rules! unsupported {
    ($($field:ident = $flag:literal),* $(,)?) => {
        #[derive(clap::Args, Debug, Default)]
        struct Unsupported {
            $(#[arg(long = $flag, id = concat!("unsupported_", $flag), hide = true)] $field: Vec<String>,)*
        }

        impl Unsupported {
            fn check(&self) -> Result {
                let given = [$(($flag, !self.$field.is_empty())),*];
                match given.iter().find(|(_, given)| *given) {
                    Some((flag, _)) => Err(Error::usage(format!("not supported yet: --{flag}"))),
                    None => Ok(()),
                }
            }
        }
    };
}

unsupported! {
    network = "network",
    network_add = "network-add",
    network_rm = "network-rm",
    secret = "secret",
    secret_add = "secret-add",
    secret_rm = "secret-rm",
    config = "config",
    config_add = "config-add",
    config_rm = "config-rm",
    credential_spec = "credential-spec",
    generic_resource = "generic-resource",
    generic_resource_add = "generic-resource-add",
    generic_resource_rm = "generic-resource-rm",
    isolation = "isolation",
    max_concurrent = "max-concurrent",
    memory_swap = "memory-swap",
    memory_swappiness = "memory-swappiness",
}

/// `service create`.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Create {
    /// Name of the service
    #[arg(long)]
    pub(super) name: Option<String>,
    /// replicated, or global: one task on each node
    #[arg(long, default_value = "replicated", value_name = "MODE")]
    mode: String,
    /// Publish a port: PUBLISHED:TARGET[/PROTOCOL], or published=8080,target=80,protocol=tcp,mode=ingress|host
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Set an environment variable, KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Label of the service, KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Label of its containers, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    container_label: Vec<String>,
    /// Attach a file system: type=bind|volume|tmpfs,source=…,target=…
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// Give a device of the node: /dev/ttyUSB0[:/dev/tty[:rwm]]
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Where tasks may run, for example node.labels.zone==a
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Spread tasks over the values of a label: spread=node.labels.zone
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref: Vec<String>,
    /// Supplementary group
    #[arg(long)]
    group: Vec<String>,
    /// Line for /etc/hosts, NAME:ADDRESS
    #[arg(long, value_name = "NAME:ADDRESS")]
    host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Resolver option
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Kernel parameter of the container, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
    /// Limit of processes, NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    #[command(flatten)]
    pub(super) common: Common,
    /// The image
    image: String,
    /// Arguments for the image's entrypoint
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Create {
    pub(super) fn spec(&self) -> Result<ServiceSpec> {
        let mut spec = ServiceSpec { name: self.name.clone().unwrap_or_default(), ..ServiceSpec::default() };
        spec.mode = match (self.mode.as_str(), self.common.replicas) {
            ("replicated", replicas) => {
                Mode { replicated: Some(Replicated { replicas: Some(replicas.unwrap_or(1)) }), global: None }
            }
            ("global", None) => Mode { replicated: None, global: Some(Global {}) },
            ("global", Some(_)) => return Err(Error::usage("replicas can only be used with replicated mode")),
            ("replicated-job" | "global-job", _) => {
                return Err(Error::usage(format!("not supported yet: --mode {}", self.mode)));
            }
            (other, _) => {
                return Err(Error::usage(format!("invalid --mode {other:?}: it must be replicated or global")));
            }
        };
        spec.labels = syntax::labels(&self.label);
        let ports: Vec<_> = self.publish.iter().map(|text| syntax::publish(text)).collect::<Result<Vec<_>>>()?.concat();
        spec.endpoint_spec = Some(EndpointSpec { mode: String::new(), ports });
        let container = &mut spec.task_template.container_spec;
        container.image.clone_from(&self.image);
        container.args.clone_from(&self.command);
        for file in &self.env_file {
            syntax::merge_env(&mut container.env, syntax::env_file(file)?);
        }
        syntax::merge_env(&mut container.env, self.env.iter().filter_map(|text| syntax::env(text)));
        container.labels = syntax::labels(&self.container_label);
        container.mounts = self.mount.iter().map(|text| syntax::mount(text)).collect::<Result<_>>()?;
        container.devices = Some(self.device.iter().map(|text| syntax::device(text)).collect::<Result<_>>()?);
        container.groups.clone_from(&self.group);
        container.hosts = self.host.iter().map(|text| syntax::host(text)).collect::<Result<_>>()?;
        container.dns_config = Some(DnsConfig {
            nameservers: self.dns.clone(),
            search: self.dns_search.clone(),
            options: self.dns_option.clone(),
        });
        container.sysctls = syntax::labels(&self.sysctl);
        container.ulimits = self.ulimit.iter().map(|text| syntax::ulimit(text)).collect::<Result<_>>()?;
        spec.task_template.placement = Some(Placement {
            constraints: self.constraint.clone(),
            preferences: self
                .placement_pref
                .iter()
                .map(|text| Ok(Preference { spread: Spread { spread_descriptor: syntax::preference(text)? } }))
                .collect::<Result<_>>()?,
            ..Placement::default()
        });
        self.common.apply(&mut spec)?;
        Ok(spec)
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn empty_if_default<T: Default + PartialEq>(place: &mut Option<T>) {
    if place.as_ref().is_some_and(|value| *value == T::default()) {
        *place = None;
    }
}

impl Common {
    fn apply(&self, spec: &mut ServiceSpec) -> Result {
        self.unsupported.check()?;
        let task = &mut spec.task_template;
        let container = &mut task.container_spec;
        if let Some(line) = &self.entrypoint {
            container.command = syntax::words(line)?;
        }
        set(&mut container.user, self.user.clone());
        set(&mut container.dir, self.workdir.clone());
        set(&mut container.hostname, self.hostname.clone());
        container.init = self.init.or(container.init);
        set(&mut container.tty, self.tty);
        set(&mut container.read_only, self.read_only);
        container.privileged = Some(self.privileged.or(container.privileged).unwrap_or(false));
        if let Some(on) = self.no_new_privileges {
            container.privileges = on.then_some(Privileges { no_new_privileges: true });
        }
        self.capabilities(&mut container.capability_add, &mut container.capability_drop);
        set(&mut container.oom_score_adj, self.oom_score_adj);
        set(&mut container.stop_signal, self.stop_signal.clone());
        container.stop_grace_period = self.stop_grace_period.or(container.stop_grace_period);
        self.health(&mut container.healthcheck);
        self.resources(task.resources.get_or_insert_default());
        self.log(&mut task.log_driver);
        let restart: &mut RestartPolicy = task.restart_policy.get_or_insert_default();
        set(&mut restart.condition, self.restart_condition.clone());
        restart.delay = self.restart_delay.or(restart.delay);
        restart.max_attempts = self.restart_max_attempts.or(restart.max_attempts);
        restart.window = self.restart_window.or(restart.window);
        empty_if_default(&mut task.restart_policy);
        set(&mut task.placement.get_or_insert_default().max_replicas, self.replicas_max_per_node);
        set(&mut spec.endpoint_spec.get_or_insert_default().mode, self.endpoint_mode.clone());
        self.update.apply(&mut spec.update_config);
        self.rollback.apply(&mut spec.rollback_config);
        if self.on_disconnect.as_deref() == Some("keep") {
            spec.disconnect_grace = None;
        }
        spec.on_disconnect = self.on_disconnect.clone().or(spec.on_disconnect.take());
        spec.disconnect_grace = self.disconnect_grace.or(spec.disconnect_grace);
        Ok(())
    }

    /// Adding takes a capability from the dropped ones, and dropping takes it from the added ones, as Docker does.
    fn capabilities(&self, add: &mut Vec<String>, drop: &mut Vec<String>) {
        let full = |name: &String| {
            let upper = name.to_uppercase();
            if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
        };
        let put = |names: &[String], into: &mut Vec<String>, from: &mut Vec<String>| {
            for name in names.iter().map(full) {
                if from.contains(&name) {
                    from.retain(|known| *known != name);
                } else if !into.contains(&name) {
                    into.push(name);
                }
            }
        };
        put(&self.cap_add, add, drop);
        put(&self.cap_drop, drop, add);
    }

    fn health(&self, check: &mut Option<Healthcheck>) {
        if self.no_healthcheck {
            *check = Some(Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() });
            return;
        }
        let health = check.get_or_insert_default();
        set(&mut health.test, self.health_cmd.as_ref().map(|line| vec!["CMD-SHELL".into(), line.clone()]));
        set(&mut health.interval, self.health_interval);
        set(&mut health.timeout, self.health_timeout);
        set(&mut health.retries, self.health_retries);
        set(&mut health.start_period, self.health_start_period);
        set(&mut health.start_interval, self.health_start_interval);
        empty_if_default(check);
    }

    fn resources(&self, resources: &mut Resources) {
        let limits: &mut Limits = resources.limits.get_or_insert_default();
        set(&mut limits.nano_cpus, self.limit_cpu);
        set(&mut limits.memory_bytes, self.limit_memory);
        set(&mut limits.pids, self.limit_pids);
        let reservations: &mut Reservations = resources.reservations.get_or_insert_default();
        set(&mut reservations.nano_cpus, self.reserve_cpu);
        set(&mut reservations.memory_bytes, self.reserve_memory);
    }

    fn log(&self, driver: &mut Option<LogDriver>) {
        if self.log_driver.is_none() && self.log_opt.is_empty() {
            return;
        }
        let driver = driver.get_or_insert_default();
        set(&mut driver.name, self.log_driver.clone());
        driver.options.extend(syntax::labels(&self.log_opt));
    }
}

/// `service update`.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Update {
    /// Another image
    #[arg(long)]
    pub(super) image: Option<String>,
    /// Other arguments for the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    args: Option<String>,
    /// Replace all tasks though nothing else changed
    #[arg(long)]
    force: bool,
    /// Return to the version before
    #[arg(long = "rollback", id = "to_previous")]
    pub(super) to_previous: bool,
    /// Publish a port
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<String>,
    /// Stop publishing, by target port
    #[arg(long, value_name = "TARGET[/PROTOCOL]")]
    publish_rm: Vec<String>,
    /// Set an environment variable
    #[arg(long, value_name = "KEY=VALUE")]
    env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "KEY")]
    env_rm: Vec<String>,
    /// Add or change a label of the service
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Add or change a label of the containers
    #[arg(long, value_name = "KEY=VALUE")]
    container_label_add: Vec<String>,
    /// Remove a label of the containers
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Attach a file system, or change the one at that target
    #[arg(long, value_name = "MOUNT")]
    mount_add: Vec<String>,
    /// Detach the file system at a target
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Give a device of the node
    #[arg(long, value_name = "DEVICE")]
    device_add: Vec<String>,
    /// Take a device away, by its path on the node
    #[arg(long, value_name = "PATH")]
    device_rm: Vec<String>,
    /// Add a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_rm: Vec<String>,
    /// Add a supplementary group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Remove a supplementary group
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add a line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    host_add: Vec<String>,
    /// Remove a line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    host_rm: Vec<String>,
    /// Add a name server
    #[arg(long, value_name = "ADDRESS")]
    dns_add: Vec<String>,
    /// Remove a name server
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<String>,
    /// Add a resolver option
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Remove a resolver option
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add a search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Remove a search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Set a kernel parameter of the container
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl_add: Vec<String>,
    /// Remove a kernel parameter
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
    /// Set a limit of processes
    #[arg(long, value_name = "LIMIT")]
    ulimit_add: Vec<String>,
    /// Remove a limit of processes
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
    #[command(flatten)]
    pub(super) common: Common,
    /// The service by id or name
    pub(super) service: String,
}

impl Update {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result {
        if let Some(replicas) = self.common.replicas {
            set_replicas(spec, replicas)?;
        }
        change_map(&mut spec.labels, &self.label_rm, &self.label_add);
        self.ports(&mut spec.endpoint_spec.get_or_insert_default().ports)?;
        spec.task_template.force_update += u64::from(self.force);
        let container = &mut spec.task_template.container_spec;
        set(&mut container.image, self.image.clone());
        if let Some(line) = &self.args {
            container.args = syntax::words(line)?;
        }
        container.env.retain(|entry| !self.env_rm.contains(&syntax::pair(entry).0));
        syntax::merge_env(&mut container.env, self.env_add.iter().filter_map(|text| syntax::env(text)));
        change_map(&mut container.labels, &self.container_label_rm, &self.container_label_add);
        change_map(&mut container.sysctls, &self.sysctl_rm, &self.sysctl_add);
        change_list(&mut container.groups, &self.group_rm, self.group_add.clone());
        let hosts = |list: &[String]| list.iter().map(|text| syntax::host(text)).collect::<Result<Vec<_>>>();
        change_list(&mut container.hosts, &hosts(&self.host_rm)?, hosts(&self.host_add)?);
        let dns = container.dns_config.get_or_insert_default();
        change_list(&mut dns.nameservers, &self.dns_rm, self.dns_add.clone());
        change_list(&mut dns.options, &self.dns_option_rm, self.dns_option_add.clone());
        change_list(&mut dns.search, &self.dns_search_rm, self.dns_search_add.clone());
        for text in &self.mount_add {
            let mount = syntax::mount(text)?;
            container.mounts.retain(|known| known.target != mount.target);
            container.mounts.push(mount);
        }
        container.mounts.retain(|mount| !self.mount_rm.contains(&mount.target));
        let devices = container.devices.get_or_insert_default();
        devices.retain(|device| !self.device_rm.contains(&device.path_on_host));
        for text in &self.device_add {
            devices.push(syntax::device(text)?);
        }
        container.ulimits.retain(|limit| !self.ulimit_rm.contains(&limit.name));
        for text in &self.ulimit_add {
            let limit = syntax::ulimit(text)?;
            container.ulimits.retain(|known| known.name != limit.name);
            container.ulimits.push(limit);
        }
        let placement = spec.task_template.placement.get_or_insert_default();
        let tight = |list: &[String]| list.iter().map(|text| text.replace(' ', "")).collect::<Vec<_>>();
        change_list(&mut placement.constraints, &tight(&self.constraint_rm), tight(&self.constraint_add));
        for text in &self.placement_pref_rm {
            let label = syntax::preference(text)?;
            placement.preferences.retain(|known| known.spread.spread_descriptor != label);
        }
        for text in &self.placement_pref_add {
            placement.preferences.push(Preference { spread: Spread { spread_descriptor: syntax::preference(text)? } });
        }
        self.common.apply(spec)
    }

    fn ports(&self, ports: &mut Vec<crate::api::docker::spec::Port>) -> Result {
        for text in &self.publish_rm {
            let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let target: u16 =
                port.rsplit(':').next().and_then(|port| port.parse().ok()).ok_or_else(|| {
                    Error::usage(format!("invalid --publish-rm {text:?}: it must be TARGET[/PROTOCOL]"))
                })?;
            ports.retain(|known| (known.target_port, known.protocol.as_str()) != (target, protocol));
        }
        for text in &self.publish_add {
            for port in syntax::publish(text)? {
                let same = |known: &crate::api::docker::spec::Port| {
                    (known.target_port, known.published_port, &known.protocol)
                        == (port.target_port, port.published_port, &port.protocol)
                };
                ports.retain(|known| !same(known));
                ports.push(port);
            }
        }
        Ok(())
    }
}

/// Changes the number of tasks of a replicated service.
pub(super) fn set_replicas(spec: &mut ServiceSpec, replicas: u32) -> Result {
    match &mut spec.mode.replicated {
        Some(replicated) => replicated.replicas = Some(replicas),
        None => return Err(Error::new("scale can only be used with replicated mode")),
    }
    Ok(())
}

fn change_map(map: &mut BTreeMap<String, String>, remove: &[String], add: &[String]) {
    map.retain(|key, _| !remove.contains(key));
    map.extend(syntax::labels(add));
}

fn change_list(list: &mut Vec<String>, remove: &[String], add: Vec<String>) {
    list.retain(|entry| !remove.contains(entry));
    for entry in add {
        if !list.contains(&entry) {
            list.push(entry);
        }
    }
}
