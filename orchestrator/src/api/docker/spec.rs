//! Docker's JSON form of what a user asks for: the tree below `ServiceSpec`, with the fields that we serve. Read from request
//! bodies and written into answers; the command line builds and changes the same types. Meaning: `convert`.

#![allow(missing_docs, reason = "the fields are Docker's; its API reference (v1.47, ServiceSpec) defines them")]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares structs in Docker's form: Pascal case, absent fields have their default.
macro_rules! wire {
    ($($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        $vis struct $name { $($(#[$field_meta])* pub $field: $type,)* }
    )*};
}
pub(crate) use wire;

wire! {
    /// A service as asked for.
    pub struct ServiceSpec {
        pub name: String,
        pub labels: BTreeMap<String, String>,
        pub task_template: TaskTemplate,
        pub mode: Mode,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub update_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub rollback_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub endpoint_spec: Option<EndpointSpec>,
        /// Ours: `keep`, `stop` or `auto`. Left out of an update, it keeps its value.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub on_disconnect: Option<String>,
        /// Ours: nanoseconds; 0 is the default. Left out of an update, it keeps its value.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub disconnect_grace: Option<u64>,
    }

    /// What each task is.
    pub struct TaskTemplate {
        pub container_spec: ContainerSpec,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub resources: Option<Resources>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub restart_policy: Option<RestartPolicy>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub placement: Option<Placement>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub log_driver: Option<LogDriver>,
        pub force_update: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub runtime: String,
    }

    /// The container.
    pub struct ContainerSpec {
        pub image: String,
        #[serde(skip_serializing_if = "is_default")]
        pub labels: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_default")]
        pub command: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub args: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub hostname: String,
        #[serde(skip_serializing_if = "is_default")]
        pub env: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub dir: String,
        #[serde(skip_serializing_if = "is_default")]
        pub user: String,
        #[serde(skip_serializing_if = "is_default")]
        pub groups: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub privileges: Option<Privileges>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub init: Option<bool>,
        #[serde(rename = "TTY", skip_serializing_if = "is_default")]
        pub tty: bool,
        #[serde(skip_serializing_if = "is_default")]
        pub open_stdin: bool,
        #[serde(skip_serializing_if = "is_default")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "is_default")]
        pub mounts: Vec<Mount>,
        #[serde(skip_serializing_if = "is_default")]
        pub stop_signal: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub stop_grace_period: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub healthcheck: Option<Healthcheck>,
        #[serde(skip_serializing_if = "is_default")]
        pub hosts: Vec<String>,
        #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
        pub dns_config: Option<DnsConfig>,
        #[serde(skip_serializing_if = "is_default")]
        pub oom_score_adj: i32,
        #[serde(skip_serializing_if = "is_default")]
        pub isolation: String,
        #[serde(skip_serializing_if = "is_default")]
        pub sysctls: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_default")]
        pub capability_add: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub capability_drop: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub ulimits: Vec<Ulimit>,
        /// Ours. A client that does not know it leaves it out of an update, which keeps the value.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub privileged: Option<bool>,
        /// Ours, with the fields of Docker's `HostConfig.Devices`. Left out of an update, it keeps its value.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub devices: Option<Vec<Device>>,
    }

    pub struct Privileges {
        #[serde(skip_serializing_if = "is_default")]
        pub no_new_privileges: bool,
    }

    pub struct Device {
        pub path_on_host: String,
        pub path_in_container: String,
        pub cgroup_permissions: String,
    }

    pub struct Mount {
        pub r#type: String,
        #[serde(skip_serializing_if = "is_default")]
        pub source: String,
        pub target: String,
        #[serde(skip_serializing_if = "is_default")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "is_default")]
        pub consistency: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub bind_options: Option<BindOptions>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub volume_options: Option<VolumeOptions>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tmpfs_options: Option<TmpfsOptions>,
    }

    pub struct BindOptions {
        #[serde(skip_serializing_if = "is_default")]
        pub propagation: String,
        #[serde(skip_serializing_if = "is_default")]
        pub non_recursive: bool,
        #[serde(skip_serializing_if = "is_default")]
        pub create_mountpoint: bool,
    }

    pub struct VolumeOptions {
        #[serde(skip_serializing_if = "is_default")]
        pub no_copy: bool,
        #[serde(skip_serializing_if = "is_default")]
        pub labels: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_default")]
        pub subpath: String,
    }

    pub struct TmpfsOptions {
        #[serde(skip_serializing_if = "is_default")]
        pub size_bytes: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub mode: u32,
    }

    /// Times in nanoseconds; 0 is inherited.
    pub struct Healthcheck {
        #[serde(skip_serializing_if = "is_default")]
        pub test: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub interval: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub timeout: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub start_period: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub start_interval: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub retries: u32,
    }

    pub struct DnsConfig {
        #[serde(skip_serializing_if = "is_default")]
        pub nameservers: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub search: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub options: Vec<String>,
    }

    pub struct Ulimit {
        pub name: String,
        pub hard: i64,
        pub soft: i64,
    }

    pub struct Resources {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub limits: Option<Limits>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub reservations: Option<Reservations>,
    }

    pub struct Limits {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")]
        pub nano_cpus: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub memory_bytes: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub pids: u64,
    }

    pub struct Reservations {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")]
        pub nano_cpus: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub memory_bytes: u64,
    }

    pub struct RestartPolicy {
        #[serde(skip_serializing_if = "is_default")]
        pub condition: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub delay: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub max_attempts: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub window: Option<u64>,
    }

    pub struct Placement {
        #[serde(skip_serializing_if = "is_default")]
        pub constraints: Vec<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub preferences: Vec<Preference>,
        #[serde(skip_serializing_if = "is_default")]
        pub max_replicas: u32,
        #[serde(skip_serializing_if = "is_default")]
        pub platforms: Vec<Platform>,
    }

    pub struct Preference {
        pub spread: Spread,
    }

    pub struct Spread {
        pub spread_descriptor: String,
    }

    /// `Variant` is the image specification's; Docker leaves it out here.
    pub struct Platform {
        #[serde(skip_serializing_if = "is_default")]
        pub architecture: String,
        #[serde(rename = "OS", skip_serializing_if = "is_default")]
        pub os: String,
        #[serde(skip_serializing_if = "is_default")]
        pub variant: String,
    }

    pub struct LogDriver {
        pub name: String,
        #[serde(skip_serializing_if = "is_default")]
        pub options: BTreeMap<String, String>,
    }

    pub struct Mode {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub replicated: Option<Replicated>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub global: Option<Global>,
    }

    pub struct Replicated {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub replicas: Option<u32>,
    }

    pub struct Global {
    }

    /// Times in nanoseconds.
    pub struct UpdateConfig {
        pub parallelism: u32,
        #[serde(skip_serializing_if = "is_default")]
        pub delay: u64,
        #[serde(skip_serializing_if = "is_default")]
        pub failure_action: String,
        #[serde(skip_serializing_if = "is_default")]
        pub monitor: u64,
        pub max_failure_ratio: f64,
        #[serde(skip_serializing_if = "is_default")]
        pub order: String,
    }

    pub struct EndpointSpec {
        #[serde(skip_serializing_if = "is_default")]
        pub mode: String,
        #[serde(skip_serializing_if = "is_default")]
        pub ports: Vec<Port>,
    }

    pub struct Port {
        /// Accepted and not kept: nothing refers to it.
        #[serde(skip_serializing_if = "is_default")]
        pub name: String,
        #[serde(skip_serializing_if = "is_default")]
        pub protocol: String,
        #[serde(skip_serializing_if = "is_default")]
        pub target_port: u16,
        #[serde(skip_serializing_if = "is_default")]
        pub published_port: u16,
        #[serde(skip_serializing_if = "is_default")]
        pub publish_mode: String,
    }
}
