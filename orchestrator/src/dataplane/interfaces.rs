//! The interfaces and addresses of the calling thread's network namespace.
//!
//! In: nothing but the kernel. Out: interfaces with what matters for attaching, and the addresses a published port
//! answers on. Read anew at every call: addresses come and go with DHCP.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs, io,
    mem::{MaybeUninit, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
};

/// `SIOCETHTOOL` and `ETHTOOL_GDRVINFO` (include/uapi/linux/sockios.h, ethtool.h).
const SIOCETHTOOL: u64 = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;
/// `ARPHRD_ETHER` (include/uapi/linux/if_arp.h).
const ARPHRD_ETHER: u16 = 1;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    /// Kernel index.
    pub(super) index: u32,
    /// Whether frames begin with an Ethernet header.
    pub(super) ethernet: bool,
    /// Whether it is the loopback interface.
    pub(super) loopback: bool,
    /// Its addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// The interfaces by name.
pub(super) fn interfaces() -> io::Result<BTreeMap<String, Interface>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the list is freed below and not used after.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: an element of the list getifaddrs has built, which lives until freeifaddrs.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: every entry has a name.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        let interface = found.entry(name).or_default();
        interface.loopback = entry.ifa_flags & libc::IFF_LOOPBACK as u32 != 0;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: the family says which kind of address lies there; getifaddrs allocates each in full.
        unsafe {
            match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                    interface.addresses.insert(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into());
                }
                libc::AF_INET6 => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                    interface.addresses.insert(Ipv6Addr::from(address.sin6_addr.s6_addr).into());
                }
                libc::AF_PACKET => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_ll>();
                    interface.index = address.sll_ifindex as u32;
                    interface.ethernet = address.sll_hatype == ARPHRD_ETHER;
                }
                _ => {}
            }
        }
    }
    // SAFETY: the list came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
    // An interface without a hardware address, such as a tunnel, has no link-layer entry in the list.
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    for (name, interface) in found.iter_mut().filter(|(_, interface)| interface.index == 0) {
        interface.index = rustix::net::netdevice::name_to_index(&socket, name).unwrap_or(0);
    }
    // It may also have gone since.
    found.retain(|_, interface| interface.index != 0);
    Ok(found)
}

/// The interfaces packets from other machines come in by: those of the default routes, and all that are hardware.
pub(super) fn uplinks(interfaces: &BTreeMap<String, Interface>) -> io::Result<BTreeSet<String>> {
    let mut uplinks = BTreeSet::new();
    // proc(5): column 1 is the interface, 2 and 8 destination and mask in hexadecimal.
    for line in fs::read_to_string("/proc/thread-self/net/route")?.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if let [name, "00000000", _, _, _, _, _, "00000000", ..] = columns[..] {
            uplinks.insert(name.to_owned());
        }
    }
    // Without IPv6 in the kernel the file is absent. Columns: destination, its length, …, interface last.
    for line in fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default().lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (Some(length), Some(name)) = (columns.get(1), columns.last()) else { continue };
        if *length == "00" && columns[0].bytes().all(|digit| digit == b'0') {
            uplinks.insert((*name).to_owned());
        }
    }
    for name in interfaces.keys() {
        if is_hardware(name) {
            uplinks.insert(name.clone());
        }
    }
    uplinks.retain(|name| interfaces.get(name).is_some_and(|interface| !interface.loopback));
    Ok(uplinks)
}

/// `struct ethtool_drvinfo` (include/uapi/linux/ethtool.h).
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

/// Whether the interface sits on a bus, whose places have numbers (`0000:01:00.0`, `fd580000.ethernet`). Virtual ones
/// name none, or a word such as `tap` or `N/A`.
pub(super) fn is_hardware(name: &str) -> bool {
    let Ok(socket) = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None) else {
        return false;
    };
    // SAFETY: all-zero is valid for both structures.
    let (mut info, mut request) = unsafe {
        (MaybeUninit::<DriverInfo>::zeroed().assume_init(), MaybeUninit::<libc::ifreq>::zeroed().assume_init())
    };
    if name.len() >= request.ifr_name.len() {
        return false;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    info.command = ETHTOOL_GDRVINFO;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    debug_assert_eq!(size_of::<DriverInfo>(), 196, "as the kernel copies it");
    // SAFETY: the request names a buffer as long as the kernel's structure.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    let bus = info.bus.split(|byte| *byte == 0).next().unwrap_or_default();
    result == 0 && bus.iter().any(u8::is_ascii_digit)
}

/// The addresses published ports answer on: all but loopback, which no packet from outside bears.
pub(super) fn local_addresses(interfaces: &BTreeMap<String, Interface>) -> BTreeSet<IpAddr> {
    interfaces
        .values()
        .filter(|interface| !interface.loopback)
        .flat_map(|interface| interface.addresses.iter().copied())
        .collect()
}
