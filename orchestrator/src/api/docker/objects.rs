//! Docker's JSON form of cluster objects: services, tasks, nodes, the swarm. Answers of the API, read back by the command
//! line.

#![allow(missing_docs, reason = "the fields are Docker's; its API reference (v1.47) defines them")]

use super::spec::{EndpointSpec, Platform, Port, ServiceSpec, TaskTemplate, wire};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

wire! {
    pub struct Version {
        pub index: u64,
    }

    pub struct Service {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub spec: ServiceSpec,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub previous_spec: Option<ServiceSpec>,
        pub endpoint: Endpoint,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub update_status: Option<UpdateStatus>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub service_status: Option<ServiceStatus>,
    }

    pub struct Endpoint {
        pub spec: EndpointSpec,
        #[serde(skip_serializing_if = "is_default")]
        pub ports: Vec<Port>,
    }

    pub struct UpdateStatus {
        pub state: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub started_at: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub completed_at: Option<String>,
        #[serde(skip_serializing_if = "is_default")]
        pub message: String,
    }

    pub struct ServiceStatus {
        pub running_tasks: u64,
        pub desired_tasks: u64,
        pub completed_tasks: u64,
    }

    pub struct Task {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub labels: BTreeMap<String, String>,
        pub spec: TaskTemplate,
        #[serde(rename = "ServiceID")]
        pub service_id: String,
        #[serde(skip_serializing_if = "is_default")]
        pub slot: u32,
        #[serde(rename = "NodeID", skip_serializing_if = "is_default")]
        pub node_id: String,
        pub status: TaskStatus,
        pub desired_state: String,
    }

    pub struct TaskStatus {
        pub timestamp: String,
        pub state: String,
        #[serde(skip_serializing_if = "is_default")]
        pub message: String,
        #[serde(skip_serializing_if = "is_default")]
        pub err: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub container_status: Option<ContainerStatus>,
        pub port_status: PortStatus,
    }

    pub struct ContainerStatus {
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        #[serde(rename = "PID")]
        pub pid: u32,
        pub exit_code: i32,
    }

    pub struct PortStatus {
        #[serde(skip_serializing_if = "is_default")]
        pub ports: Vec<Port>,
    }

    pub struct Node {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub spec: NodeSpec,
        pub description: NodeDescription,
        pub status: NodeStatus,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub manager_status: Option<ManagerStatus>,
    }

    pub struct NodeSpec {
        #[serde(skip_serializing_if = "is_default")]
        pub name: String,
        pub labels: BTreeMap<String, String>,
        pub role: String,
        pub availability: String,
    }

    pub struct NodeDescription {
        pub hostname: String,
        pub platform: Platform,
        pub resources: NodeResources,
        pub engine: Engine,
        #[serde(rename = "TLSInfo", skip_serializing_if = "is_default")]
        pub tls_info: TlsInfo,
    }

    pub struct NodeResources {
        #[serde(rename = "NanoCPUs")]
        pub nano_cpus: u64,
        pub memory_bytes: u64,
    }

    pub struct Engine {
        pub engine_version: String,
        #[serde(skip_serializing_if = "is_default")]
        pub labels: BTreeMap<String, String>,
    }

    pub struct NodeStatus {
        pub state: String,
        #[serde(skip_serializing_if = "is_default")]
        pub message: String,
        pub addr: String,
    }

    pub struct ManagerStatus {
        #[serde(skip_serializing_if = "is_default")]
        pub leader: bool,
        pub reachability: String,
        pub addr: String,
    }

    pub struct ServiceCreated {
        #[serde(rename = "ID")]
        pub id: String,
        #[serde(skip_serializing_if = "is_default")]
        pub warnings: Vec<String>,
    }

    pub struct SwarmInit {
        pub listen_addr: String,
        pub advertise_addr: String,
        pub data_path_addr: String,
        pub data_path_port: u32,
        /// Docker's client always sends it; without address pools it means nothing.
        pub subnet_size: u32,
        pub force_new_cluster: bool,
        pub auto_lock_managers: bool,
        pub availability: String,
        pub spec: SwarmSpec,
    }

    pub struct SwarmJoin {
        pub listen_addr: String,
        pub advertise_addr: String,
        pub data_path_addr: String,
        pub remote_addrs: Vec<String>,
        pub join_token: String,
        pub availability: String,
    }

    pub struct Swarm {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub spec: SwarmSpec,
        #[serde(rename = "TLSInfo")]
        pub tls_info: TlsInfo,
        pub join_tokens: JoinTokens,
    }

    pub struct JoinTokens {
        pub worker: String,
        pub manager: String,
    }

    pub struct TlsInfo {
        #[serde(skip_serializing_if = "is_default")]
        pub trust_root: String,
        #[serde(skip_serializing_if = "is_default")]
        pub cert_issuer_subject: String,
        #[serde(skip_serializing_if = "is_default")]
        pub cert_issuer_public_key: String,
    }

    pub struct SwarmSpec {
        pub name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub labels: Option<BTreeMap<String, String>>,
        pub orchestration: Orchestration,
        pub dispatcher: Dispatcher,
        #[serde(rename = "CAConfig")]
        pub ca_config: CaConfig,
        pub encryption_config: EncryptionConfig,
    }

    pub struct Orchestration {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub task_history_retention_limit: Option<u32>,
    }

    pub struct Dispatcher {
        /// Nanoseconds; 0 leaves it.
        pub heartbeat_period: u64,
    }

    pub struct CaConfig {
        /// Nanoseconds; 0 leaves it.
        pub node_cert_expiry: u64,
    }

    pub struct EncryptionConfig {
        pub auto_lock_managers: bool,
    }
}
