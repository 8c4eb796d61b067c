//! Published ports by eBPF: loads the programs of `orchestrator-ebpf`, keeps them attached, fills their maps.
//!
//! In: the desired [`Table`], interfaces of containers. Out: traffic from clients to containers with the client's
//! address kept, the table read back from the kernel, a report per interface, counters. Called by the agent; every
//! call blocks for system calls and belongs on a blocking thread that is in the node's network namespace.
//!
#![doc = include_str!("../../docs/dataplane.md")]

mod flows;
mod hooks;
mod interfaces;
mod kernel;
#[cfg(test)]
mod packet_tests;
mod stats;
mod tables;

pub use self::{
    flows::Swept,
    hooks::{InterfaceReport, Mode, SocketHookReport},
    stats::Stats,
};
pub use orchestrator_ebpf_common::maps::{Reason, ServiceCounters};

use self::{flows::Flows, hooks::Hooks, interfaces::Interface, kernel::Elements, tables::Tables};
use aya::{
    EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use orchestrator_core::forwarding::Table;
use orchestrator_ebpf_common::maps::{
    BACKEND_ABSENT, Config, MAGLEV_WORDS, MAX_BACKENDS, MAX_EMBRYONIC, MAX_FLOWS, MAX_SOCKETS, MAX_TABLES, SCHEMA,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/orchestrator-ebpf.o"));

/// Maps that are pinned, so that they outlive this process.
const MAPS: [&str; 10] = [
    "BACKENDS",
    "CONFIG",
    "EMBRYONIC",
    "FLOWS",
    "LOCAL",
    "MAGLEV",
    "REASONS",
    "SERVICES",
    "SERVICE_COUNTERS",
    "SOCKETS",
];

const _: () =
    assert!(MAX_BACKENDS == orchestrator_core::forwarding::LAST_BACKEND as u32 + 1, "every number has a place");

/// Below this much memory the connection tables are a quarter of their size: 2 MiB instead of 8.
const SMALL_MEMORY_BYTES: u64 = 1 << 30;

/// What a node's dataplane needs to know.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Directory for this node's pins. It is made; its parent is where a bpffs is mounted if there is none. No other
    /// node on the same kernel may use it.
    pub pin_dir: PathBuf,
    /// Interfaces that packets from other machines come in by; `None`: those of the default routes and all that are
    /// hardware.
    pub uplinks: Option<BTreeSet<String>>,
    /// Root of the cgroup v2 tree; `None`: where it is usually mounted.
    pub cgroup_root: Option<PathBuf>,
    /// Only this rung of the ladder, for tests and for working around a driver; `None`: the highest that works.
    pub force: Option<Mode>,
    /// Sizes of the tables that grow with traffic. Tables already pinned keep theirs.
    pub sizes: Sizes,
}

impl DataplaneConfig {
    /// A node with everything detected.
    #[must_use]
    pub fn new(pin_dir: impl Into<PathBuf>) -> Self {
        Self { pin_dir: pin_dir.into(), uplinks: None, cgroup_root: None, force: None, sizes: Sizes::default() }
    }
}

/// Entries of the tables that grow with traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Established flows, two entries each.
    pub flows: u32,
    /// Flows whose handshake is not over, two entries each.
    pub embryonic: u32,
    /// Sockets of the node connected to published ports.
    pub sockets: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        let small = memory_bytes().is_some_and(|bytes| bytes < SMALL_MEMORY_BYTES);
        let divisor = if small { 4 } else { 1 };
        Self { flows: MAX_FLOWS / divisor, embryonic: MAX_EMBRYONIC, sockets: MAX_SOCKETS / divisor }
    }
}

/// Why the dataplane could not do something.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A system call failed.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried, on what.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The programs or their maps could not be set up.
    #[error("cannot load the eBPF programs")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel refused a program.
    #[error("the kernel refused an eBPF program")]
    Program(#[source] Box<aya::programs::ProgramError>),
    /// A map could not be read or written.
    #[error("cannot access an eBPF map")]
    Map(#[source] Box<aya::maps::MapError>),
    /// A table has no place left; fewer ports or tasks, or a larger table, would help.
    #[error("no place left for more {what}: there are {limit}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u32,
    },
    /// No way of attaching to an interface worked.
    #[error("cannot attach to interface {interface}: {why}")]
    Refused {
        /// The interface.
        interface: String,
        /// Each refusal with the kernel's words.
        why: String,
    },
    /// There is no such interface.
    #[error("no network interface with index {0}")]
    NoInterface(u32),
    /// Several steps of a removal failed; the others were carried out.
    #[error("{} steps of removing the dataplane failed, first of all: {}", .0.len(), .0[0])]
    Several(Vec<DataplaneError>),
}

impl From<aya::EbpfError> for DataplaneError {
    fn from(error: aya::EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<aya::programs::ProgramError> for DataplaneError {
    fn from(error: aya::programs::ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

impl From<aya::maps::MapError> for DataplaneError {
    fn from(error: aya::maps::MapError) -> Self {
        Self::Map(Box::new(error))
    }
}

/// The dataplane of one node.
pub struct Dataplane {
    config: DataplaneConfig,
    hooks: Hooks,
    tables: Tables,
    flows: Flows,
    settings: Array<MapData, Config>,
    reasons: PerCpuArray<MapData, u64>,
    interfaces: Vec<InterfaceReport>,
    sockets: Vec<SocketHookReport>,
}

impl Dataplane {
    /// Loads the programs, adopts what an earlier process has pinned or makes it, and attaches to uplinks and sockets.
    ///
    /// # Errors
    /// bpffs cannot be used, or the kernel refuses the tc programs. What can be done without (XDP, socket hooks) is
    /// reported by [`Self::interfaces`] and [`Self::socket_hooks`] instead.
    pub fn open(config: DataplaneConfig) -> Result<Self, DataplaneError> {
        let maps = config.pin_dir.join(format!("maps-v{SCHEMA}"));
        let links = config.pin_dir.join("links");
        prepare(&config.pin_dir)?;
        make_directory(&maps)?;
        make_directory(&links)?;

        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut programs = loader
            .map_max_entries("FLOWS", config.sizes.flows)
            .map_max_entries("EMBRYONIC", config.sizes.embryonic)
            .map_max_entries("SOCKETS", config.sizes.sockets)
            .load(OBJECT)?;
        let mut map = |name: &str| -> Map {
            programs.take_map(name).expect("the object is compiled with this library and has the map")
        };
        let cannot_open = |name: &'static str| {
            move |source| DataplaneError::Kernel { what: format!("open the pinned map {name}"), source }
        };
        let tables = Tables {
            services: HashMap::try_from(map("SERVICES"))?,
            backends: Elements::open(&maps.join("BACKENDS"), MAX_BACKENDS).map_err(cannot_open("BACKENDS"))?,
            maglev: Elements::open(&maps.join("MAGLEV"), MAX_TABLES * MAGLEV_WORDS).map_err(cannot_open("MAGLEV"))?,
            local: HashMap::try_from(map("LOCAL"))?,
            counters: PerCpuArray::try_from(map("SERVICE_COUNTERS"))?,
            cpus: aya::util::nr_cpus()
                .map_err(|(_, source)| DataplaneError::Kernel { what: "count the processors".to_owned(), source })?,
        };
        let flows = Flows {
            established: HashMap::try_from(map("FLOWS"))?,
            embryonic: HashMap::try_from(map("EMBRYONIC"))?,
            descriptors: [
                kernel::open_pinned(&maps.join("FLOWS")).map_err(cannot_open("FLOWS"))?,
                kernel::open_pinned(&maps.join("EMBRYONIC")).map_err(cannot_open("EMBRYONIC"))?,
            ],
        };
        let settings = Array::try_from(map("CONFIG"))?;
        let reasons = PerCpuArray::try_from(map("REASONS"))?;
        let hooks = Hooks::load(programs, links)?;
        let mut dataplane =
            Self { config, hooks, tables, flows, settings, reasons, interfaces: Vec::new(), sockets: Vec::new() };
        dataplane.set_clock_offset(0)?;
        dataplane.refresh()?;
        dataplane.hooks.adopt_containers(list_interfaces()?.keys())?;
        let cgroup = dataplane.config.cgroup_root.clone().or_else(cgroup_root);
        dataplane.sockets = dataplane.hooks.attach_sockets(cgroup.as_deref());
        dataplane.remove_other_schemas()?;
        Ok(dataplane)
    }

    /// Makes the kernel forward as the table says, and looks for new uplinks and addresses. Compares with the maps
    /// themselves, so it mends whatever has happened to them.
    ///
    /// # Errors
    /// A map cannot be written; what was written before stays, and applying again goes on from there.
    pub fn apply(&mut self, table: &Table) -> Result<(), DataplaneError> {
        self.refresh()?;
        self.tables.apply(table)
    }

    /// The table the maps hold.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn observe(&self) -> Result<Table, DataplaneError> {
        self.tables.observe()
    }

    /// Attaches to uplinks that have come, lets go of those that have gone and of containers' interfaces that have gone with
    /// their network namespace, and takes over the node's addresses.
    ///
    /// # Errors
    /// Interfaces cannot be listed, or a map cannot be written. An uplink that refuses is reported, not an error.
    pub fn refresh(&mut self) -> Result<(), DataplaneError> {
        let interfaces = list_interfaces()?;
        let uplinks = match &self.config.uplinks {
            Some(uplinks) => uplinks.clone(),
            None => interfaces::uplinks(&interfaces)
                .map_err(|source| DataplaneError::Kernel { what: "read the routes".to_owned(), source })?,
        };
        self.tables.set_local_addresses(&interfaces::local_addresses(&interfaces))?;
        self.interfaces.clear();
        let mut present = BTreeSet::new();
        for name in uplinks {
            let report = match interfaces.get(&name) {
                Some(interface) => {
                    present.insert(interface.index);
                    self.hooks.attach_uplink(&name, interface, self.config.force)
                }
                None => InterfaceReport { name, mode: None, why: "there is no such interface".to_owned() },
            };
            self.interfaces.push(report);
        }
        self.hooks.prune(&present, &interfaces.values().map(|interface| interface.index).collect())
    }

    /// How each uplink is served, and why not better.
    #[must_use]
    pub fn interfaces(&self) -> &[InterfaceReport] {
        &self.interfaces
    }

    /// How the node's own sockets are served.
    #[must_use]
    pub fn socket_hooks(&self) -> &[SocketHookReport] {
        &self.sockets
    }

    /// Serves a container's packets: `ifindex` is the host side of its veth. Doing so again changes nothing.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses every way of attaching.
    pub fn attach_container(&mut self, ifindex: u32) -> Result<Mode, DataplaneError> {
        let name = interface_name(ifindex)?.ok_or(DataplaneError::NoInterface(ifindex))?;
        self.hooks.attach_container(&name, ifindex, self.config.force)
    }

    /// Stops serving a container's packets; an interface that is gone is no error.
    ///
    /// # Errors
    /// The program cannot be detached.
    pub fn detach_container(&mut self, ifindex: u32) -> Result<(), DataplaneError> {
        let name = interface_name(ifindex)?;
        self.hooks.detach_container(name.as_deref(), ifindex)
    }

    /// What has been counted.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn stats(&self) -> Result<Stats, DataplaneError> {
        stats::read(&self.reasons, &self.tables)
    }

    /// Forgets flows that are over; to be called every ten seconds or so.
    ///
    /// # Errors
    /// The connection table cannot be read or written.
    pub fn sweep(&mut self) -> Result<Swept, DataplaneError> {
        let now = self.now()?;
        let backends = self.tables.all_backends()?;
        let is_backend =
            |slot: u16| backends.get(usize::from(slot)).is_some_and(|backend| backend.state != BACKEND_ABSENT);
        self.flows.sweep(now, is_backend)
    }

    /// Forgets every flow of a backend, whose clients then choose anew; for when its grace period is over.
    ///
    /// # Errors
    /// The connection table cannot be read or written.
    pub fn forget_backend(&mut self, slot: u16) -> Result<Swept, DataplaneError> {
        self.flows.forget_backend(slot)
    }

    /// Takes every program off and every map away. Traffic to published ports ends.
    ///
    /// # Errors
    /// All that could not be removed; the rest is gone.
    pub fn close_and_remove(self) -> Result<(), DataplaneError> {
        let pin_dir = self.config.pin_dir.clone();
        drop(self);
        remove(&pin_dir)
    }

    /// Moves the clock the connection table goes by, so that tests need not wait.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_clock_offset(&mut self, seconds: u32) -> Result<(), DataplaneError> {
        let netns_cookie = kernel::netns_cookie().map_err(|source| DataplaneError::Kernel {
            what: "read the network namespace's cookie".to_owned(),
            source,
        })?;
        Ok(self.settings.set(0, Config { netns_cookie, clock_offset: seconds, reserved: 0 }, 0)?)
    }

    /// The programs' clock; they count from 1, since 0 means "never".
    fn now(&self) -> Result<u32, DataplaneError> {
        let offset = self.settings.get(&0, 0)?.clock_offset;
        Ok(kernel::monotonic_seconds() as u32 + offset + 1)
    }

    /// Maps of other layouts, which no program uses once every link runs ours.
    fn remove_other_schemas(&self) -> Result<(), DataplaneError> {
        let own = format!("maps-v{SCHEMA}");
        for name in hooks::pins(&self.config.pin_dir)? {
            if name.starts_with("maps-") && name != own {
                remove_directory(&self.config.pin_dir.join(name))?;
            }
        }
        Ok(())
    }
}

/// Takes away whatever a dataplane has left below this directory and on the interfaces of the calling thread's network
/// namespace, without opening it: for uninstalling, and after a crash.
///
/// # Errors
/// All that could not be removed; the rest is gone.
pub fn remove(pin_dir: &Path) -> Result<(), DataplaneError> {
    let mut errors = Vec::new();
    let interfaces = interfaces::interfaces().unwrap_or_default();
    errors.extend(hooks::remove_all(&pin_dir.join("links"), interfaces.keys()));
    match hooks::pins(pin_dir) {
        Ok(names) => errors.extend(names.iter().filter_map(|name| remove_directory(&pin_dir.join(name)).err())),
        Err(error) => errors.push(error),
    }
    errors.extend(remove_directory(pin_dir).err());
    if errors.is_empty() { Ok(()) } else { Err(DataplaneError::Several(errors)) }
}

/// A bpffs at the directory's parent, and the directory in it.
fn prepare(pin_dir: &Path) -> Result<(), DataplaneError> {
    let failed = |what: String| move |source| DataplaneError::Kernel { what, source };
    let parent = pin_dir.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(failed(format!("create {}", parent.display())))?;
    let mounted = kernel::is_bpffs(parent).map_err(failed(format!("examine {}", parent.display())))?;
    if !mounted {
        kernel::mount_bpffs(parent).map_err(failed(format!("mount a bpffs at {}", parent.display())))?;
    }
    make_directory(pin_dir)
}

fn make_directory(path: &Path) -> Result<(), DataplaneError> {
    fs::create_dir_all(path)
        .map_err(|source| DataplaneError::Kernel { what: format!("create {}", path.display()), source })
}

/// Removes a directory of pins with what is in it; one that is not there is removed already.
fn remove_directory(path: &Path) -> Result<(), DataplaneError> {
    for name in hooks::pins(path)? {
        hooks::remove_file(&path.join(name))?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DataplaneError::Kernel { what: format!("remove {}", path.display()), source: error })
        }
        _ => Ok(()),
    }
}

fn list_interfaces() -> Result<BTreeMap<String, Interface>, DataplaneError> {
    interfaces::interfaces()
        .map_err(|source| DataplaneError::Kernel { what: "list network interfaces".to_owned(), source })
}

fn interface_name(ifindex: u32) -> Result<Option<String>, DataplaneError> {
    Ok(list_interfaces()?.into_iter().find(|(_, interface)| interface.index == ifindex).map(|(name, _)| name))
}

/// Where the cgroup v2 tree is: the whole of `/sys/fs/cgroup`, or beside version 1 in `unified`.
fn cgroup_root() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").is_file())
}

fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}
