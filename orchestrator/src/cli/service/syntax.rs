//! What users write after the flags of `service create` and `service update`, read into the API's form.

use super::super::{Error, Result};
use crate::api::{
    docker::{
        convert::parse_bytes,
        spec::{BindOptions, Device, Mount, Port, TmpfsOptions, Ulimit, VolumeOptions},
    },
    time,
};
use std::collections::BTreeMap;

/// `1h30m`, `10s`; nanoseconds.
pub(in crate::cli) fn duration(text: &str) -> std::result::Result<u64, String> {
    time::parse_duration(text).ok_or_else(|| "use a number with a unit: 500ms, 10s, 1m30s, 2h".into())
}

/// `512M`, `1g`; bytes.
pub(super) fn bytes(text: &str) -> std::result::Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "use a number with a unit: 512k, 64M, 1g".into())
}

/// `0.5`; billionths of a core.
pub(super) fn cpus(text: &str) -> std::result::Result<u64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..1e6).contains(&number) => Ok((number * 1e9).round() as u64),
        _ => Err("use a number of cores: 0.5, 2".into()),
    }
}

/// `KEY=VALUE`; a key alone has an empty value.
pub(super) fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.into(), value.into())
}

/// Reads `8080:80`, `8080:80/udp`, `80`, `8000-8002:80-82`, or `published=8080,target=80,protocol=tcp,mode=host`.
pub(super) fn publish(text: &str) -> Result<Vec<Port>> {
    let bad = |why: &str| Error::usage(format!("invalid --publish {text:?}: {why}"));
    if text.contains('=') {
        let mut port = Port { protocol: "tcp".into(), publish_mode: "ingress".into(), ..Port::default() };
        for field in text.split(',') {
            let (key, value) = pair(field);
            let number = || value.parse::<u16>().map_err(|_| bad(&format!("{key} must be a port number")));
            match key.trim() {
                "target" => port.target_port = number()?,
                "published" => port.published_port = number()?,
                "protocol" if matches!(value.as_str(), "tcp" | "udp") => port.protocol = value,
                "protocol" => return Err(bad("protocol must be tcp or udp")),
                "mode" if matches!(value.as_str(), "ingress" | "host") => port.publish_mode = value,
                "mode" => return Err(bad("mode must be ingress or host")),
                other => return Err(bad(&format!("unknown key {other:?}; use target, published, protocol, mode"))),
            }
        }
        if port.target_port == 0 {
            return Err(bad("target is missing"));
        }
        return Ok(vec![port]);
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp") {
        return Err(bad("protocol must be tcp or udp"));
    }
    let parts: Vec<&str> = ports.split(':').collect();
    let (published, target) = match parts.as_slice() {
        [target] => (None, *target),
        [published, target] => (Some(*published), *target),
        _ => return Err(bad("publishing on one address is not supported yet; use PUBLISHED:TARGET")),
    };
    let range = |text: &str| -> Result<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first != 0 && first <= last => Ok((first, last)),
            _ => Err(bad("ports are numbers from 1 to 65535, or ranges FIRST-LAST of them")),
        }
    };
    let (first, last) = range(target)?;
    let published = published.filter(|text| !text.is_empty()).map(range).transpose()?;
    if published.is_some_and(|(from, to)| to - from != last - first) {
        return Err(bad("both ranges must have the same length"));
    }
    let port = |offset: u16| Port {
        name: String::new(),
        protocol: protocol.into(),
        target_port: first + offset,
        published_port: published.map_or(0, |(from, _)| from + offset),
        publish_mode: "ingress".into(),
    };
    Ok((0..=last - first).map(port).collect())
}

/// Reads `type=bind,source=/a,target=/b,readonly`.
pub(super) fn mount(text: &str) -> Result<Mount> {
    let bad = |why: &str| Error::usage(format!("invalid --mount {text:?}: {why}"));
    let mut mount = Mount { r#type: "volume".into(), ..Mount::default() };
    let (mut bind, mut volume, mut tmpfs) = (BindOptions::default(), VolumeOptions::default(), TmpfsOptions::default());
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim().to_lowercase(), value),
            None => (field.trim().to_lowercase(), "true"),
        };
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(bad(&format!("{key} must be true or false"))),
        };
        match key.as_str() {
            "type" => mount.r#type = value.to_lowercase(),
            "source" | "src" => mount.source = value.into(),
            "target" | "dst" | "destination" => mount.target = value.into(),
            "readonly" | "ro" => mount.read_only = flag()?,
            "consistency" => {}
            "bind-propagation" => bind.propagation = value.to_lowercase(),
            "bind-nonrecursive" => bind.non_recursive = flag()?,
            "bind-recursive" if value == "enabled" => bind.non_recursive = false,
            "bind-recursive" if value == "disabled" => bind.non_recursive = true,
            "bind-create-src" => bind.create_mountpoint = flag()?,
            "volume-nocopy" => volume.no_copy = flag()?,
            "volume-subpath" => volume.subpath = value.into(),
            "volume-label" => volume.labels.extend([pair(value)]),
            "tmpfs-size" => tmpfs.size_bytes = bytes(value).map_err(|why| bad(&why))?,
            "tmpfs-mode" => {
                tmpfs.mode = u32::from_str_radix(value, 8).map_err(|_| bad("tmpfs-mode must be octal, like 1777"))?;
            }
            "bind-recursive" | "volume-driver" | "volume-opt" => {
                return Err(bad(&format!("{key}={value} is not supported yet")));
            }
            other => return Err(bad(&format!("unknown key {other:?}"))),
        }
    }
    if mount.target.is_empty() {
        return Err(bad("target is missing"));
    }
    let kinds = [
        ("bind", bind != BindOptions::default()),
        ("volume", volume != VolumeOptions::default()),
        ("tmpfs", tmpfs != TmpfsOptions::default()),
    ];
    if let Some((kind, _)) = kinds.iter().find(|(kind, given)| *given && *kind != mount.r#type) {
        return Err(bad(&format!("{kind} options do not fit a mount of type {}", mount.r#type)));
    }
    match mount.r#type.as_str() {
        "bind" if mount.source.is_empty() => return Err(bad("source is missing")),
        "bind" => mount.bind_options = (bind != BindOptions::default()).then_some(bind),
        "volume" => mount.volume_options = (volume != VolumeOptions::default()).then_some(volume),
        "tmpfs" => mount.tmpfs_options = (tmpfs != TmpfsOptions::default()).then_some(tmpfs),
        other => return Err(bad(&format!("type {other:?} must be bind, volume or tmpfs"))),
    }
    Ok(mount)
}

/// Reads `nofile=1024:2048`.
pub(super) fn ulimit(text: &str) -> Result<Ulimit> {
    let bad = || Error::usage(format!("invalid --ulimit {text:?}: it must be NAME=SOFT[:HARD]"));
    let (name, limits) = text.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(Ulimit {
        name: name.to_lowercase(),
        soft: soft.parse().map_err(|_| bad())?,
        hard: hard.parse().map_err(|_| bad())?,
    })
}

/// Reads `/dev/ttyUSB0[:/dev/tty[:rwm]]`.
pub(super) fn device(text: &str) -> Result<Device> {
    let parts: Vec<&str> = text.split(':').collect();
    let modes = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, inside, permissions) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, permissions] if modes(permissions) => (*host, *host, *permissions),
        [host, inside] => (*host, *inside, "rwm"),
        [host, inside, permissions] => (*host, *inside, *permissions),
        _ => return Err(Error::usage(format!("invalid --device {text:?}: it must be HOST[:CONTAINER[:rwm]]"))),
    };
    Ok(Device { path_on_host: host.into(), path_in_container: inside.into(), cgroup_permissions: permissions.into() })
}

/// Reads Docker's `NAME:ADDRESS` into the form of hosts(5).
pub(super) fn host(text: &str) -> Result<String> {
    let parts = text.split_once([':', '=']);
    match parts {
        Some((name, address)) if !name.is_empty() && address.parse::<std::net::IpAddr>().is_ok() => {
            Ok(format!("{address} {name}"))
        }
        _ => Err(Error::usage(format!("invalid --host {text:?}: it must be NAME:ADDRESS"))),
    }
}

/// Reads `spread=node.labels.zone` into the label's name.
pub(super) fn preference(text: &str) -> Result<String> {
    match text.split_once('=') {
        Some(("spread", label)) if !label.is_empty() => Ok(label.into()),
        _ => Err(Error::usage(format!("invalid placement preference {text:?}: it must be spread=node.labels.KEY"))),
    }
}

/// `KEY=VALUE` as it is; `KEY` alone takes the value from our own environment and is left out if it has none.
pub(super) fn env(text: &str) -> Option<String> {
    if text.contains('=') {
        return Some(text.into());
    }
    std::env::var(text).ok().map(|value| format!("{text}={value}"))
}

/// Reads a file of `KEY=VALUE` lines.
pub(super) fn env_file(path: &str) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::new(format!("cannot read --env-file {path}: {error}")))?;
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.filter_map(env).collect())
}

/// Lays `KEY=VALUE` entries over each other: the last one of a key counts, at the place of the first.
pub(super) fn merge_env(entries: &mut Vec<String>, new: impl IntoIterator<Item = String>) {
    for entry in new {
        let key = pair(&entry).0;
        match entries.iter_mut().find(|known| pair(known).0 == key) {
            Some(known) => *known = entry,
            None => entries.push(entry),
        }
    }
}

/// Splits a command line as a shell would, without expanding anything.
pub(super) fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => {
                let next = chars.next();
                word.get_or_insert_default().extend(next);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Error::usage(format!("invalid command line {text:?}: a quote is not closed")));
    }
    words.extend(word);
    Ok(words)
}

/// Labels from `KEY=VALUE` arguments.
pub(super) fn labels(arguments: &[String]) -> BTreeMap<String, String> {
    arguments.iter().map(|text| pair(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_short_and_long_form() {
        let shown = |text: &str| match publish(text) {
            Ok(ports) => ports
                .iter()
                .map(|p| format!("{}:{}/{}/{}", p.published_port, p.target_port, p.protocol, p.publish_mode))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.message,
        };
        let cases = [
            ("8080:80", "8080:80/tcp/ingress"),
            ("80", "0:80/tcp/ingress"),
            ("53:53/udp", "53:53/udp/ingress"),
            ("8000-8001:80-81", "8000:80/tcp/ingress 8001:81/tcp/ingress"),
            ("published=8080,target=80,mode=host", "8080:80/tcp/host"),
            ("target=80,protocol=udp", "0:80/udp/ingress"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text), expected, "{text}");
        }
        for bad in ["", "a:b", "0:80", "70000:1", "1-2:1-3", "80/sctp", "published=1", "target=1,x=y", "1.2.3.4:1:2"] {
            assert!(shown(bad).starts_with("invalid --publish"), "{bad}: {}", shown(bad));
        }
    }

    #[test]
    fn mounts_are_read_by_key() {
        let bind = mount("type=bind,src=/a,dst=/b,ro,bind-propagation=rshared").unwrap();
        assert_eq!((bind.r#type.as_str(), bind.source.as_str(), bind.target.as_str()), ("bind", "/a", "/b"));
        assert!(bind.read_only);
        assert_eq!(bind.bind_options.unwrap().propagation, "rshared");
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=0700").unwrap();
        assert_eq!(tmpfs.tmpfs_options, Some(TmpfsOptions { size_bytes: 1 << 20, mode: 0o700 }));
        assert_eq!(mount("source=data,target=/d").unwrap().r#type, "volume");
        for bad in ["type=bind,target=/a", "type=tmpfs,target=/a,volume-nocopy", "type=x,target=/a", "target=", "foo=1"]
        {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_values_are_read() {
        assert_eq!(words(r#"sh -c "echo  'a b'" \"x"#).unwrap(), ["sh", "-c", "echo  'a b'", "\"x"]);
        assert!(words("a 'b").is_err());
        assert_eq!(device("/dev/gpiomem:rw").unwrap().cgroup_permissions, "rw");
        assert_eq!(device("/dev/a:/dev/b:r").unwrap().path_in_container, "/dev/b");
        assert_eq!(host("db:10.0.0.1").unwrap(), "10.0.0.1 db");
        assert_eq!(host("db:::1").unwrap(), "::1 db");
        assert_eq!(ulimit("nofile=10:20").unwrap().hard, 20);
        assert_eq!(cpus("0.5"), Ok(500_000_000));
        let mut env = vec!["A=1".into(), "B=2".into()];
        merge_env(&mut env, ["A=3".into(), "C=4".into()]);
        assert_eq!(env, ["A=3", "B=2", "C=4"]);
    }
}
