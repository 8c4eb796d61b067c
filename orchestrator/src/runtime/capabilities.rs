//! Capabilities of a container (capabilities(7)): the default set, what users add and drop. Pure.

/// All capabilities in the order of their numbers (include/uapi/linux/capability.h).
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless told otherwise: Docker's 14.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities of a container, by OCI name, in the kernel's order. `ours` are those that `edged` itself may have, one
/// bit each: nobody can hand on more (`CapBnd` of proc(5)).
///
/// # Errors
/// The name of what is no capability, or none that `edged` has.
pub(crate) fn granted(privileged: bool, add: &[String], drop: &[String], ours: u64) -> Result<Vec<String>, String> {
    for name in add.iter().chain(drop) {
        if name != "ALL" && !ALL.contains(&name.as_str()) {
            return Err(format!("{name:?} is no capability: see capabilities(7)"));
        }
    }
    let known: Vec<&str> = (0..).zip(ALL).filter(|(bit, _)| ours >> bit & 1 == 1).map(|(_, name)| name).collect();
    if let Some(name) = add.iter().find(|name| *name != "ALL" && !known.contains(&name.as_str())) {
        return Err(format!("capability {name} cannot be given: the kernel or edged itself does not have it"));
    }
    let named = |list: &[String], name: &str| list.iter().any(|n| n == name);
    // What is named outright wins over ALL, and adding over dropping.
    let has = |name: &&&str| {
        privileged
            || named(add, name)
            || (!named(drop, name) && (named(add, "ALL") || (!named(drop, "ALL") && DEFAULT.contains(name))))
    };
    Ok(known.iter().filter(has).map(|name| format!("CAP_{name}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        granted(false, &own(add), &own(drop), (1 << 41) - 1).unwrap()
    }

    #[test]
    fn sets_are_combined_as_docker_users_expect() {
        assert_eq!(caps(&[], &[]).len(), 14);
        assert_eq!(caps(&["NET_ADMIN"], &["NET_RAW"]).len(), 14);
        assert_eq!(caps(&["CHOWN"], &["ALL"]), ["CAP_CHOWN"]);
        assert_eq!(caps(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert_eq!(granted(true, &[], &["ALL".into()], (1 << 38) - 1).unwrap().len(), 38);
    }

    #[test]
    fn nothing_is_handed_on_that_edged_does_not_have() {
        assert_eq!(granted(false, &[], &[], 1), Ok(vec!["CAP_CHOWN".to_owned()]));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(granted(false, &["CAP_CHOWN".into()], &[], u64::MAX).is_err());
        assert!(granted(false, &["BPF".into()], &[], (1 << 38) - 1).is_err());
    }
}
