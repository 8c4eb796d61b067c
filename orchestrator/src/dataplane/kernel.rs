//! The few system calls aya has no safe form of: links that can be created, pinned and updated alike for every hook;
//! deleting map entries in batches; a namespace's cookie; mounting bpffs.
//!
//! In and out: file descriptors and plain values. Called by the other files of the dataplane only.

use std::{
    ffi::{CStr, CString},
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy)]
enum Command {
    ObjectPin = 6,
    ObjectGet = 7,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    Xdp = 37,
    TcxIngress = 46,
}

/// `XDP_FLAGS_DRV_MODE` (include/uapi/linux/if_link.h): in the driver or not at all. Generic XDP is never asked for:
/// with receive offload on, bulk TCP through it collapses.
pub(super) const XDP_NATIVE: u32 = 1 << 2;

/// Magic number of bpffs (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// The `link_create` part of `union bpf_attr`, as long as the longest user (tcx) reads.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

/// The `link_update` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The `batch` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    position: u64,
    next_position: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a live `repr(C)` prefix of `union bpf_attr`, whose size is passed with it; the kernel
    // takes what lies beyond as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Where a program is attached.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Interface(u32),
    Cgroup(BorrowedFd<'a>),
}

/// Attaches a program by a link (`BPF_LINK_CREATE`), which detaches when its last descriptor and pin are gone.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let target = match target {
        Target::Interface(index) => index,
        Target::Cgroup(fd) => descriptor(fd),
    };
    let mut attributes = LinkCreate {
        program: descriptor(program),
        target,
        attach_type: attach_type as u32,
        flags,
        ..LinkCreate::default()
    };
    let fd = bpf(Command::LinkCreate, &mut attributes)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program in a link, between two packets.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdate { link: descriptor(link), program: descriptor(program), ..LinkUpdate::default() };
    bpf(Command::LinkUpdate, &mut attributes).map(drop)
}

/// Gives an object a name in a bpffs, which keeps it alive.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = Object { path: path.as_ptr() as u64, fd: descriptor(object), flags: 0 };
    bpf(Command::ObjectPin, &mut attributes).map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = Object { path: path.as_ptr() as u64, ..Object::default() };
    let fd = bpf(Command::ObjectGet, &mut attributes)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls `visit` with every entry of a hash map, many per system call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6). Entries that
/// come or go meanwhile may be met or missed.
pub(super) fn for_each_entry<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    // More than a hash bucket ever holds in practice; the kernel asks for more room with ENOSPC.
    let mut room = 512_usize;
    let (mut position, mut started) = (0_u32, false);
    loop {
        let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::zeroed(); room];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::zeroed(); room];
        let mut next = 0_u32;
        let mut attributes = Batch {
            position: if started { (&raw mut position) as u64 } else { 0 },
            next_position: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map: descriptor(map),
            ..Batch::default()
        };
        let result = bpf(Command::MapLookupBatch, &mut attributes);
        let last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(attributes.count as usize) {
            // SAFETY: the kernel has filled this many; any bytes are valid for `Pod` types.
            unsafe { visit(key.assume_init_ref(), value.assume_init_ref()) };
        }
        if last {
            return Ok(());
        }
        (position, started) = (next, true);
    }
}

/// A pinned array map, read and written many elements per system call (`BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_UPDATE_BATCH`).
pub(super) struct Elements<V> {
    map: OwnedFd,
    length: u32,
    value: PhantomData<V>,
}

impl<V: aya::Pod> Elements<V> {
    /// Opens a pinned array of `length` elements.
    pub(super) fn open(path: &Path, length: u32) -> io::Result<Self> {
        Ok(Self { map: open_pinned(path)?, length, value: PhantomData })
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> u32 {
        self.length
    }

    /// The elements from `first` on.
    pub(super) fn read(&self, first: u32, count: u32) -> io::Result<Vec<V>> {
        let mut keys = vec![0_u32; count as usize];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::zeroed(); count as usize];
        // The kernel begins behind the given key.
        let before = first.wrapping_sub(1);
        let mut next = 0_u32;
        let mut attributes = Batch {
            position: if first == 0 { 0 } else { (&raw const before) as u64 },
            next_position: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map: descriptor(self.map.as_fd()),
            ..Batch::default()
        };
        match bpf(Command::MapLookupBatch, &mut attributes) {
            Ok(_) => {}
            // The last element was among them.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        if attributes.count != count {
            return Err(io::Error::other(format!("{} of {count} elements read", attributes.count)));
        }
        // SAFETY: any bytes are valid for `Pod` types, and all elements have been written.
        Ok(values.into_iter().map(|value| unsafe { value.assume_init() }).collect())
    }

    /// Writes elements from `first` on, one after the other.
    pub(super) fn write(&self, first: u32, values: &[V]) -> io::Result<()> {
        let keys: Vec<u32> = (first..).take(values.len()).collect();
        let mut attributes = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: values.len() as u32,
            map: descriptor(self.map.as_fd()),
            ..Batch::default()
        };
        bpf(Command::MapUpdateBatch, &mut attributes).map(drop)
    }
}

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value is eight bytes long, as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Whether the path lies on a bpffs.
pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type as u32 == BPF_FS_MAGIC)
}

/// Mounts a bpffs.
pub(super) fn mount_bpffs(path: &Path) -> io::Result<()> {
    let flags =
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC;
    const OPTIONS: &CStr = c"mode=0700";
    Ok(rustix::mount::mount("bpf", path, "bpf", flags, OPTIONS)?)
}

/// Seconds of the monotonic clock, the one the programs read.
pub(super) fn monotonic_seconds() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs()
}
