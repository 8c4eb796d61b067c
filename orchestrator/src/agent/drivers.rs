//! The drivers of this node, opened together and composed in the order that steps need them. The only place where runtime,
//! images, network and dataplane meet.

use super::{Volumes, execute::HOST_RESOLV_CONF, observe::Look};
use crate::{
    config::{Config, Rung},
    dataplane::{self, Dataplane, DataplaneConfig, Mode},
    image::{self, Credentials, Image, Images, Policy, Reference, silent},
    network::{
        Attachment, Network, NetworkConfig,
        dns::{Entry, Resolver},
    },
    runtime::{Runtime, RuntimeConfig},
};
use anyhow::{Context, anyhow};
use orchestrator_core::{forwarding::Table, node::Attached};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

/// Where the kernel's documentation mounts bpffs (Documentation/bpf/).
const BPFFS: &str = "/sys/fs/bpf";

/// All drivers of this node. Clones are handles of the same drivers.
#[derive(Clone)]
pub struct Drivers {
    /// Containers.
    pub runtime: Runtime,
    /// Images and root file systems.
    pub images: Images,
    /// Interfaces and namespaces.
    pub network: Arc<Network>,
    /// Packet programs.
    pub dataplane: Arc<Mutex<Dataplane>>,
    /// Names.
    pub resolver: Arc<Resolver>,
    /// Volumes.
    pub volumes: Volumes,
    credentials: Arc<BTreeMap<String, Credentials>>,
    rootfs_dir: PathBuf,
    pin_dir: PathBuf,
}

impl Drivers {
    /// Opens all drivers and brings the node's base (bridge, masquerade, packet programs, resolver) up.
    ///
    /// # Errors
    /// The first driver that cannot work on this machine, with the remedy.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let (state_dir, run_dir) = (config.state_dir.clone(), config.run_dir.clone());
        // Root file systems hold set-user-id programs and volumes hold data: others reach them in containers only.
        for dir in [run_dir.join("rootfs"), state_dir.join("volumes")] {
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::create_dir_all(&dir)
                .and_then(|()| std::fs::set_permissions(&dir, private))
                .with_context(|| format!("making {}", dir.display()))?;
        }
        let network = Network::open(NetworkConfig {
            node_key: config.node_key.clone(),
            bridge: config.network.bridge.clone(),
            subnet4: subnet("network.subnet", &config.network.subnet)?,
            subnet6: subnet("network.subnet6", &config.network.subnet6)?,
            run_dir: run_dir.clone(),
        })
        .await
        .context("opening the network")?;
        network.ensure_base().await.context("bringing the node's network up")?;
        let resolver = Resolver::start(network.resolver_config(HOST_RESOLV_CONF)).await?;
        let pin_dir = Path::new(BPFFS).join(format!("edged-{}", config.node_key));
        let dataplane_config = DataplaneConfig {
            uplinks: (!config.uplinks.is_empty()).then(|| config.uplinks.iter().cloned().collect()),
            force: config.dataplane.force.map(|rung| match rung {
                Rung::Xdp => Mode::Xdp,
                Rung::Tcx => Mode::Tcx,
                Rung::Clsact => Mode::Clsact,
            }),
            ..DataplaneConfig::new(&pin_dir)
        };
        let registries = config.registries.iter();
        let images_config = image::Config {
            insecure_registries: config.insecure_registries.clone(),
            mirrors: registries.clone().map(|(host, known)| (host.clone(), known.mirrors.clone())).collect(),
            ..image::Config::default()
        };
        let credentials = registries.filter_map(|(host, known)| {
            let (username, password) = (known.username.clone()?, known.password.clone()?);
            Some((host.clone(), Credentials::Basic { username, password }))
        });
        let images_dir = state_dir.clone();
        let runtime_config = RuntimeConfig {
            state_dir: logs_dir(&state_dir),
            run_dir: run_dir.join("containers"),
            node_key: config.node_key.clone(),
            shim_exe: std::env::current_exe().context("finding the path of edged")?,
        };
        let (dataplane, images) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let dataplane = Dataplane::open(dataplane_config).context("loading the packet programs")?;
            let images = Images::open(&images_dir, images_config).context("opening the image store")?;
            Ok((dataplane, images))
        })
        .await??;
        let runtime = Runtime::open(runtime_config).await.context("opening the container runtime")?;
        Ok(Self {
            runtime,
            images,
            network: Arc::new(network),
            dataplane: Arc::new(Mutex::new(dataplane)),
            resolver: Arc::new(resolver),
            volumes: Volumes::new(&state_dir),
            credentials: Arc::new(credentials.collect()),
            rootfs_dir: run_dir.join("rootfs"),
            pin_dir,
        })
    }

    /// Address that others reach this node by: `configured`, or the first of the uplinks.
    pub async fn address(&self, configured: Option<IpAddr>) -> String {
        if let Some(address) = configured {
            return address.to_string();
        }
        let uplinks = match self.network.uplinks().await {
            Ok(uplinks) => uplinks,
            Err(error) => {
                tracing::warn!(%error, "the node's own address is not known");
                return String::new();
            }
        };
        let outside = uplinks.addresses.iter().filter(|own| !own.node_local && !own.address.is_loopback());
        let outside = outside.map(|own| own.address).collect::<Vec<_>>();
        let best = outside.iter().find(|address| address.is_ipv4()).or(outside.first());
        best.map_or_else(String::new, ToString::to_string)
    }

    /// Mends the node's base (bridge, addresses, masquerade, uplinks) and takes remains of interfaces away. Only reads when
    /// nothing is amiss.
    pub(super) async fn mend(&self, strays: &[String], links: Vec<u32>) -> anyhow::Result<()> {
        self.network.ensure_base().await.context("mending the node's network")?;
        for stray in strays {
            self.network.detach(stray).await.context("removing a stray interface")?;
        }
        let dataplane = self.dataplane.clone();
        tokio::task::spawn_blocking(move || {
            let mut dataplane = locked(&dataplane);
            dataplane.refresh()?;
            for link in links {
                // Its program may be missing if the daemon died between the two steps of attaching.
                dataplane.attach_container(link)?;
            }
            dataplane.sweep()
        })
        .await?
        .context("mending the packet programs")?;
        Ok(())
    }

    /// Makes the forwarding tables so, if they are not.
    pub(super) async fn forward(&self, desired: Table, look: &mut Look) -> anyhow::Result<()> {
        if look.table == desired {
            return Ok(());
        }
        let dataplane = self.dataplane.clone();
        let applied = desired.clone();
        tokio::task::spawn_blocking(move || locked(&dataplane).apply(&applied)).await??;
        look.observed.serving = desired.serving();
        look.table = desired;
        Ok(())
    }

    /// Makes the resolver answer these names and no others.
    pub(super) fn resolve(&self, names: &BTreeMap<String, Vec<Attached>>) {
        let entry = |at: &Vec<Attached>| Entry {
            v4s: at.iter().map(|attached| attached.v4).collect(),
            v6s: at.iter().filter_map(|attached| attached.v6).collect(),
        };
        self.resolver.set(names.iter().map(|(name, at)| (name.clone(), entry(at))).collect());
    }

    /// The image that `name` stands for on this node, if it is complete here.
    pub(super) fn image(&self, name: &str) -> Option<Image> {
        self.images.get(name).ok()
    }

    /// Makes an image complete on this node, from its registry if need be.
    pub(super) async fn fetch(&self, name: &str) -> anyhow::Result<()> {
        let reference = name.parse::<Reference>()?;
        let credentials = self.credentials(&reference);
        self.images.pull(&reference, credentials, None, Policy::IfMissing, &silent()).await?;
        Ok(())
    }

    /// The node's own credentials for the registry of an image.
    pub(crate) fn credentials(&self, reference: &Reference) -> Option<&Credentials> {
        self.credentials.get(reference.registry())
    }

    /// Makes the interface of a task and has its packets watched.
    pub(super) async fn attach(&self, task: &str, index: u16) -> anyhow::Result<()> {
        let attachment = Attachment { task: task.into(), index };
        let attached = match self.network.attach(&attachment).await {
            Ok(attached) => attached,
            Err(error) => {
                tracing::warn!(task, %error, "the network interface is tried once more");
                self.network.ensure_base().await?;
                self.network.attach(&attachment).await?
            }
        };
        let dataplane = self.dataplane.clone();
        tokio::task::spawn_blocking(move || locked(&dataplane).attach_container(attached.host_ifindex)).await??;
        Ok(())
    }

    /// Removes the interface of a task.
    pub(super) async fn detach(&self, task: &str) -> anyhow::Result<()> {
        if let Some(attached) = self.network.observe().await?.attached.remove(task) {
            let dataplane = self.dataplane.clone();
            tokio::task::spawn_blocking(move || locked(&dataplane).detach_container(attached.host_ifindex)).await??;
        }
        Ok(self.network.detach(task).await?)
    }

    /// Mounts the root file system of a task.
    pub(super) async fn mount(&self, image: &str, task: &str) -> anyhow::Result<()> {
        let image = self.image(image).ok_or_else(|| anyhow!("No such image: {image}"))?;
        Ok(self.images.mount(image.id, task, &self.rootfs(task)).await?)
    }

    /// Unmounts the root file system of a task and removes what it wrote.
    pub(super) async fn unmount(&self, task: &str) -> anyhow::Result<()> {
        self.images.discard(task).await?;
        match std::fs::remove_dir(self.rootfs(task)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.rootfs(task).display()))
            }
            _ => Ok(()),
        }
    }

    /// Where the root file system of a task is mounted.
    pub(super) fn rootfs(&self, task: &str) -> PathBuf {
        self.rootfs_dir.join(task)
    }

    /// Removes everything that this node has made on the host. Goes on after errors and returns them all.
    pub async fn remove_all(&self) -> Vec<anyhow::Error> {
        let mut failed = Vec::new();
        let mut note = |what: &'static str, result: anyhow::Result<()>| {
            if let Err(error) = result {
                failed.push(error.context(what));
            }
        };
        match self.runtime.observe().await {
            Ok(containers) => {
                for task in containers.into_keys() {
                    note("removing a container", self.runtime.delete(task).await.map_err(Into::into));
                }
            }
            Err(error) => note("looking at containers", Err(error.into())),
        }
        match self.images.tasks().await {
            Ok(tasks) => {
                for task in tasks {
                    note("removing a root file system", self.unmount(&task).await);
                }
            }
            Err(error) => note("looking at mounts", Err(error.into())),
        }
        match self.network.observe().await {
            Ok(links) => {
                for task in links.attached.keys().chain(&links.partial) {
                    note("removing a network interface", self.network.detach(task).await.map_err(Into::into));
                }
            }
            Err(error) => note("looking at network interfaces", Err(error.into())),
        }
        let pin_dir = self.pin_dir.clone();
        let removed = tokio::task::spawn_blocking(move || dataplane::remove(&pin_dir)).await;
        note("removing the packet programs", removed.map_err(Into::into).and_then(|done| done.map_err(Into::into)));
        note("removing the control groups", self.runtime.remove_base().await.map_err(Into::into));
        note("removing the node's network", self.network.remove_base().await.map_err(Into::into));
        failed
    }
}

/// Where the logs of containers lie, a directory for each task.
pub(crate) fn logs_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("logs")
}

/// The dataplane, for one caller at a time. A panic while it was held left the maps as they are; the next look mends them.
pub(crate) fn locked(dataplane: &Mutex<Dataplane>) -> std::sync::MutexGuard<'_, Dataplane> {
    dataplane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a network from the configuration.
fn subnet<S: FromStr<Err: std::error::Error + Send + Sync + 'static>>(key: &str, text: &str) -> anyhow::Result<S> {
    text.parse().with_context(|| format!("{key} = {text:?} in the configuration"))
}
