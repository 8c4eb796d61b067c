//! Who a process runs as: names are looked up in the image's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)), by
//! the rules that users of Docker know. Pure; the caller reads the files.

/// A user in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
}

/// Resolves `user`, `user:group` (names or numbers, empty is root) and further groups.
///
/// # Errors
/// The text says which name is in neither file.
pub(crate) fn resolve(who: &str, more_groups: &[String], passwd: &str, group: &str) -> Result<User, String> {
    let (user, primary) = match who.split_once(':') {
        Some((user, primary)) => (user, Some(primary).filter(|g| !g.is_empty())),
        None => (who, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().filter_map(Account::parse).find(|a| a.name == user || Some(a.uid) == user.parse().ok());
    let (name, uid, mut gid) = match (&entry, user.parse()) {
        (Some(account), _) => (account.name, account.uid, account.gid),
        (None, Ok(uid)) => ("", uid, 0),
        (None, Err(_)) => {
            return Err(format!("unable to find user {user}: no matching entries in passwd file of the image"));
        }
    };
    let mut groups = Vec::new();
    match primary {
        Some(primary) => gid = find_group(primary, group)?,
        None if !name.is_empty() => {
            groups.extend(
                group
                    .lines()
                    .filter_map(Group::parse)
                    .filter(|g| g.members.split(',').any(|m| m == name))
                    .map(|g| g.gid),
            );
        }
        None => {}
    }
    for more in more_groups {
        groups.push(find_group(more, group)?);
    }
    groups.retain(|g| *g != gid);
    groups.insert(0, gid);
    groups.dedup();
    Ok(User { uid, gid, groups })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    let by_name = group.lines().filter_map(Group::parse).find(|g| g.name == wanted).map(|g| g.gid);
    by_name
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in group file of the image"))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some(Self { name, uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some(Self { name, gid: fields.nth(1)?.parse().ok()?, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nvideo:x:44:web,other\ndialout:x:20:\n";

    fn user(who: &str, more: &[&str]) -> Result<User, String> {
        resolve(who, &more.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_users_expect() {
        assert_eq!(user("", &[]), Ok(User { uid: 0, gid: 0, groups: vec![0] }));
        assert_eq!(user("web", &[]), Ok(User { uid: 33, gid: 34, groups: vec![34, 44] }));
        assert_eq!(user("33", &["dialout"]), Ok(User { uid: 33, gid: 34, groups: vec![34, 44, 20] }));
        assert_eq!(user("web:dialout", &[]), Ok(User { uid: 33, gid: 20, groups: vec![20] }));
        assert_eq!(user("1000:1001", &["7"]), Ok(User { uid: 1000, gid: 1001, groups: vec![1001, 7] }));
        assert_eq!(user("1000", &[]), Ok(User { uid: 1000, gid: 0, groups: vec![0] }));
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(user("nobody", &[]).unwrap_err().contains("user nobody"));
        assert!(user("web:nogroup", &[]).unwrap_err().contains("group nogroup"));
        assert!(user("web", &["nogroup"]).unwrap_err().contains("group nogroup"));
    }
}
