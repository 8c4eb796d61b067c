//! Attach, detach, observe, repair, masquerade, removal.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use orchestrator::network::{
    Attached, Attachment, Network, NetworkError,
    doctor::State,
    netns,
    ports::{Protocol, held_ports, name_holders},
};

use crate::support::{
    DEADLINE, NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, as_node, converse, ip, ip_in, link_names, run,
};

/// When a packet is lost, TCP and neighbour discovery try again after one second.
const LOST_PACKET: Duration = Duration::from_secs(1);

async fn attach(network: &Network, task: &str, index: u16) -> Attached {
    network.attach(&Attachment { task: task.to_owned(), index }).await.unwrap()
}

fn v6(attached: &Attached) -> IpAddr {
    attached.v6.expect("the kernel has IPv6").into()
}

#[test]
fn containers_reach_each_other_and_the_node() {
    as_node(|node| async move {
        let network = node.network().await;
        let a = attach(&network, "a", 2).await;
        let b = attach(&network, "b", 3).await;
        assert_eq!(converse(&a.netns, &b.netns, b.v4.into()).await.unwrap(), IpAddr::from(a.v4));
        assert_eq!(converse(&a.netns, &b.netns, v6(&b)).await.unwrap(), v6(&a));
        let own = "/proc/thread-self/ns/net".as_ref();
        for gateway in network.gateways() {
            converse(&b.netns, own, gateway).await.unwrap();
        }
        assert_eq!(converse(own, &a.netns, a.v4.into()).await.unwrap(), network.gateways()[0]);
    });
}

#[test]
fn the_outside_sees_the_address_of_the_node() {
    as_node(|node| async move {
        let network = node.network().await;
        let a = attach(&network, "a", 2).await;
        let seen = converse(&a.netns, &node.outside(), OUTSIDE_V4.parse().unwrap()).await.unwrap();
        assert_eq!(seen, NODE_V4.parse::<IpAddr>().unwrap());
        let seen = converse(&a.netns, &node.outside(), OUTSIDE_V6.parse().unwrap()).await.unwrap();
        assert_eq!(seen, NODE_V6.parse::<IpAddr>().unwrap());
    });
}

#[test]
fn the_ruleset_is_what_nft_reads_and_nothing_else() {
    as_node(|node| async move {
        let network = node.network().await;
        let ruleset = run("nft list ruleset");
        let expected = "table inet edged {\n\
            \tchain postrouting {\n\
            \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tip saddr 10.231.0.0/16 oifname != \"edge0\" masquerade comment \"edged: 10.231.0.0/16 not to edge0\"\n\
            \t\tip6 saddr fdb7:2e1a:94c3::/64 oifname != \"edge0\" masquerade comment \"edged: fdb7:2e1a:94c3::/64 not to edge0\"\n\
            \t}\n\
            }\n";
        assert_eq!(ruleset, expected);
        let handles = run("nft -a list ruleset");
        network.ensure_base().await.unwrap();
        assert_eq!(run("nft -a list ruleset"), handles, "nothing was made anew");
    });
}

#[test]
fn attaching_again_changes_nothing() {
    as_node(|node| async move {
        let network = node.network().await;
        let first = attach(&network, "a", 2).await;
        // The kernel reports carriers a moment after they are there.
        let begun = Instant::now();
        while ip("-o link").contains("NO-CARRIER") {
            assert!(begun.elapsed() < DEADLINE, "{}", ip("-o link"));
        }
        let inside = || ["-o link", "-o addr", "route", "-6 route"].map(|what| ip_in(&first.netns, what));
        let before = (ip("-o link"), ip("-o addr show dev edge0"), inside());
        network.ensure_base().await.unwrap();
        assert_eq!(attach(&network, "a", 2).await, first);
        let after = (ip("-o link"), ip("-o addr show dev edge0"), inside());
        assert_eq!(after, before);
    });
}

#[test]
fn the_container_has_what_it_was_promised() {
    as_node(|node| async move {
        ip("link set up0 mtu 1400");
        let network = node.network().await;
        let a = attach(&network, "a", 258).await;
        assert_eq!(a.v4.to_string(), "10.231.1.2");
        assert_eq!(a.mac, [0x02, 0xed, 10, 231, 1, 2]);
        let link = ip_in(&a.netns, "-o link show eth0");
        assert!(link.contains("mtu 1400") && link.contains("02:ed:0a:e7:01:02"), "{link}");
        assert!(ip_in(&a.netns, "route").starts_with("default via 10.231.0.1 dev eth0"));
        assert!(ip_in(&a.netns, "-6 route show default").starts_with("default via fdb7:2e1a:94c3::1 dev eth0"));
        assert!(!ip_in(&a.netns, "-6 addr").contains("tentative"));
        assert!(ip_in(&a.netns, "-o link show lo").contains("LOOPBACK,UP"));
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/up0/accept_ra"), "2\n", "routes from advertisements stay");
    });
}

#[test]
fn a_container_gets_a_new_address_with_a_new_index() {
    as_node(|node| async move {
        let network = node.network().await;
        attach(&network, "a", 2).await;
        let moved = attach(&network, "a", 9).await;
        let addresses = ip_in(&moved.netns, "-o addr show eth0 scope global");
        assert!(addresses.contains("10.231.0.9/16") && addresses.contains("fdb7:2e1a:94c3::9/64"), "{addresses}");
        assert!(!addresses.contains("10.231.0.2/16") && !addresses.contains("94c3::2/64"), "{addresses}");
        assert_eq!(network.observe().await.unwrap().attached["a"], moved);
    });
}

#[test]
fn what_was_changed_by_hand_is_repaired() {
    as_node(|node| async move {
        let network = node.network().await;
        let a = attach(&network, "a", 2).await;
        let host = &a.host_ifname;
        let damages: &[&dyn Fn()] = &[
            &|| drop(ip_in(&a.netns, "addr flush dev eth0 scope global")),
            &|| drop(ip_in(&a.netns, "route del default")),
            &|| drop(ip_in(&a.netns, "-6 route del default")),
            &|| drop(ip_in(&a.netns, "link set eth0 down")),
            &|| drop(ip_in(&a.netns, "link set eth0 address 02:00:00:00:00:07")),
            &|| drop(ip_in(&a.netns, "link set eth0 mtu 1280")),
            &|| drop(ip_in(&a.netns, "link set lo down")),
            &|| drop(ip_in(&a.netns, "link del eth0")),
            &|| drop(ip_in(&a.netns, "link set eth0 name eth7")),
            &|| drop(ip(&format!("link set {host} down"))),
            &|| drop(ip(&format!("link set {host} nomaster"))),
            &|| drop(ip(&format!("link del {host}"))),
            &|| drop(run(&format!("umount {}", a.netns.display()))),
            &|| drop(ip("addr flush dev edge0")),
            &|| drop(ip("link set edge0 down")),
            &|| drop(ip("link del edge0")),
            &|| drop(run("nft flush ruleset")),
            &|| drop(run("nft flush chain inet edged postrouting")),
            &|| drop(run("nft add rule inet edged postrouting counter")),
            &|| drop(run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")),
        ];
        for (number, damage) in damages.iter().enumerate() {
            damage();
            network.ensure_base().await.unwrap();
            let again = attach(&network, "a", 2).await;
            for (own, outside, seen) in [(a.v4.into(), OUTSIDE_V4, NODE_V4), (v6(&a), OUTSIDE_V6, NODE_V6)] {
                let talk = converse(&again.netns, &node.outside(), outside.parse().unwrap()).await;
                assert_eq!(talk.unwrap(), seen.parse::<IpAddr>().unwrap(), "damage {number}");
                converse("/proc/thread-self/ns/net".as_ref(), &again.netns, own).await.unwrap();
            }
            let observed = network.observe().await.unwrap();
            assert_eq!(observed.attached.keys().collect::<Vec<_>>(), ["a"], "damage {number}");
            assert_eq!(observed.partial, BTreeSet::new(), "damage {number}");
        }
        assert_eq!(run("nft list ruleset").matches("masquerade").count(), 2);
    });
}

#[test]
fn a_new_daemon_observes_what_the_last_one_attached() {
    as_node(|node| async move {
        let network = node.network().await;
        let a = attach(&network, "a", 2).await;
        let b = attach(&network, "b.1", 3).await;
        drop(network);
        let network = Network::open(node.config()).await.unwrap();
        let observed = network.observe().await.unwrap();
        assert_eq!(observed.attached.into_iter().collect::<Vec<_>>(), [("a".to_owned(), a), ("b.1".to_owned(), b)]);
        assert_eq!(observed.partial, BTreeSet::new());
        let mut other = node.config();
        other.node_key = "n2".to_owned();
        other.run_dir = node.folder().join("n2");
        let other = Network::open(other).await.unwrap().observe().await.unwrap();
        assert_eq!((other.attached.len(), other.partial.len()), (0, 0), "another node's links are not ours");
    });
}

#[test]
fn halves_are_observed_and_can_be_detached() {
    as_node(|node| async move {
        let network = node.network().await;
        let a = attach(&network, "a", 2).await;
        let b = attach(&network, "b", 3).await;
        let c = attach(&network, "c", 4).await;
        ip(&format!("link del {}", a.host_ifname));
        run(&format!("umount {}", b.netns.display()));
        ip(&format!("link set {} down", c.host_ifname));
        std::fs::write(network.netns_dir().join("d"), "").unwrap();
        ip("link add ve0123456789ab type veth peer name other");
        let observed = network.observe().await.unwrap();
        assert_eq!(observed.attached.len(), 0);
        let partial: BTreeSet<String> = ["a", "b", "c", "d", "ve0123456789ab"].map(str::to_owned).into();
        assert_eq!(observed.partial, partial);
        for task in partial {
            network.detach(&task).await.unwrap();
            network.detach(&task).await.unwrap();
        }
        let observed = network.observe().await.unwrap();
        assert_eq!((observed.attached.len(), observed.partial.len()), (0, 0));
        assert_eq!(link_names(), ["edge0", "lo", "up0"]);
    });
}

#[test]
fn removing_the_base_leaves_nothing() {
    as_node(|node| async move {
        let network = node.network().await;
        attach(&network, "a", 2).await;
        let b = attach(&network, "b", 3).await;
        ip(&format!("link del {}", b.host_ifname));
        network.remove_base().await.unwrap();
        network.remove_base().await.unwrap();
        assert_eq!(link_names(), ["lo", "up0"]);
        assert_eq!(run("nft list ruleset"), "");
        assert!(!network.netns_dir().exists());
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(node.folder().to_str().unwrap())).collect();
        assert_eq!(left.len(), 1, "only the outside is left: {left:?}");
    });
}

#[test]
fn tables_of_others_stay() {
    as_node(|node| async move {
        run("nft add table ip theirs");
        run("nft add chain ip theirs forward { type filter hook forward priority 0 ; policy drop ; }");
        let network = node.network().await;
        let facts = network.doctor().await.unwrap();
        let firewall = facts.iter().find(|fact| fact.name == "forwarding allowed by other firewalls").unwrap();
        match &firewall.state {
            State::Degraded { found, remedy } => {
                assert!(found.contains("ip theirs forward"), "{found}");
                assert!(remedy.contains("nft insert rule ip theirs forward iifname edge0 accept"), "{remedy}");
            }
            other => panic!("{other:?}"),
        }
        network.remove_base().await.unwrap();
        assert!(run("nft list ruleset").contains("table ip theirs"));
    });
}

#[test]
fn a_capable_kernel_has_a_clean_bill() {
    as_node(|node| async move {
        let network = node.network().await;
        for fact in network.doctor().await.unwrap() {
            assert_eq!(fact.state, State::Good, "{}", fact.name);
        }
        assert_eq!(run("nft list ruleset").matches("table").count(), 1, "the probe left nothing");
    });
}

#[test]
fn a_subnet_that_is_in_use_is_refused_with_its_holder() {
    as_node(|node| async move {
        ip("addr add 10.231.7.1/24 dev up0");
        let network = Network::open(node.config()).await.unwrap();
        let error = network.ensure_base().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the container subnet 10.231.0.0/16 is in use by the interface up0 (10.231.7.1/24)"
        );
        assert_eq!(link_names(), ["lo", "up0"]);
    });
}

#[test]
fn bad_attachments_are_refused_and_leave_nothing() {
    as_node(|node| async move {
        let network = node.network().await;
        for (task, index) in [("../a", 2), ("", 2), ("a", 0), ("a", 1), ("a", u16::MAX)] {
            let error = network.attach(&Attachment { task: task.to_owned(), index }).await.unwrap_err();
            assert!(matches!(error, NetworkError::Invalid { .. } | NetworkError::Subnet(_)), "{error}");
        }
        assert_eq!(network.observe().await.unwrap().partial, BTreeSet::new());
        assert_eq!(link_names(), ["edge0", "lo", "up0"]);
    });
}

#[test]
fn many_containers_attach_at_once() {
    as_node(|node| async move {
        let network = std::sync::Arc::new(node.network().await);
        let mut tasks = tokio::task::JoinSet::new();
        for index in 2..32 {
            let network = std::sync::Arc::clone(&network);
            tasks.spawn(async move { attach(&network, &format!("t{index}"), index).await });
        }
        let attached = tasks.join_all().await;
        assert_eq!(attached.len(), 30);
        let observed = network.observe().await.unwrap();
        assert_eq!((observed.attached.len(), observed.partial.len()), (30, 0));
        network.remove_base().await.unwrap();
        assert_eq!(link_names(), ["lo", "up0"]);
    });
}

#[test]
fn uplinks_and_addresses_are_found_and_changes_are_noticed() {
    as_node(|node| async move {
        let network = node.network().await;
        let uplinks = network.uplinks().await.unwrap();
        assert_eq!(uplinks.links.iter().map(|link| link.interface.as_str()).collect::<Vec<_>>(), ["up0"]);
        assert_eq!(uplinks.links[0].mtu, 1500);
        let outward: Vec<String> = uplinks
            .addresses
            .iter()
            .filter(|address| !address.node_local)
            .map(|address| address.address.to_string())
            .collect();
        assert_eq!(outward, [NODE_V4, NODE_V6]);

        let mut changes = network.changes();
        for change in
            ["addr add 192.0.2.7/24 dev up0", "link set up0 mtu 1400", "route add 198.51.100.0/24 via 192.0.2.254"]
        {
            // Notices of what was done before may still be on their way; each is a reason to look again, so one that
            // comes after the change was made is awaited until the look shows it.
            changes.mark_unchanged();
            ip(change);
            tokio::time::timeout(DEADLINE, changes.changed()).await.expect(change).unwrap();
        }
        let uplinks = network.uplinks().await.unwrap();
        assert!(uplinks.addresses.iter().any(|address| address.address.to_string() == "192.0.2.7"));
        assert_eq!(uplinks.links[0].mtu, 1400);
    });
}

#[test]
fn without_a_default_route_the_addressed_interface_is_the_uplink() {
    as_node(|node| async move {
        ip("route del default");
        ip("-6 route del default");
        let network = node.network().await;
        let uplinks = network.uplinks().await.unwrap();
        assert_eq!(uplinks.links.iter().map(|link| link.interface.as_str()).collect::<Vec<_>>(), ["up0"]);
    });
}

#[test]
fn held_ports_are_those_of_the_node_and_not_of_containers() {
    as_node(|node| async move {
        let network = node.network().await;
        let a = attach(&network, "a", 2).await;
        let ours = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
        let bound = std::net::UdpSocket::bind("[::]:5353").unwrap();
        let theirs = netns::run(&a.netns, || Ok(std::net::TcpListener::bind("0.0.0.0:9090").unwrap())).await.unwrap();
        let mut held = held_ports().unwrap();
        name_holders(&mut held);
        let seen: Vec<(Protocol, u16, u32)> =
            held.iter().map(|held| (held.protocol, held.port, held.holder.as_ref().unwrap().pid)).collect();
        let me = std::process::id();
        assert_eq!(seen, [(Protocol::Tcp, 8080, me), (Protocol::Udp, 5353, me)]);
        drop((ours, bound, theirs));
    });
}

#[test]
fn observing_is_quick() {
    as_node(|node| async move {
        let network = node.network().await;
        for index in 2..22 {
            attach(&network, &format!("t{index}"), index).await;
        }
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(network.observe().await.unwrap().attached.len(), 20);
        }
        let each = begun.elapsed() / 10;
        println!("observe of 20 containers: {each:?}");
        assert!(each < Duration::from_millis(100), "{each:?}");
    });
}

#[test]
fn the_first_packets_of_a_container_arrive() {
    as_node(|node| async move {
        let network = node.network().await;
        for index in 2..22 {
            let a = attach(&network, &format!("t{index}"), index).await;
            for gateway in network.gateways().into_iter().rev() {
                let begun = Instant::now();
                converse(&a.netns, "/proc/thread-self/ns/net".as_ref(), gateway).await.unwrap();
                let took = begun.elapsed();
                assert!(took < LOST_PACKET, "container {index}, {gateway}: {took:?}");
            }
        }
    });
}
