//! Egress masquerade: packets from the containers' subnets leave the node under the node's address.
//!
//! One nf_tables table named `edged` in the node's network namespace, replaced whole in one transaction when the kernel
//! has anything else than what is wanted. Connections keep their translation across a replacement: it is in conntrack.

use std::io;

use super::{
    NetworkError, Result, Subnet4, Subnet6,
    nftables::{
        Attributes, FAMILY_ANY, FAMILY_INET, HOOK_FORWARD, HOOK_POSTROUTING, NFPROTO_IPV4, NFPROTO_IPV6, POLICY_DROP,
        PRIORITY_SRCNAT, Transaction, attribute, dump, expression, expression_list, message,
    },
};

const TABLE: &str = "edged";
const CHAIN: &str = "postrouting";
/// Offsets of the source address: RFC 791 §3.1, RFC 8200 §3.
const IPV4_SOURCE: u32 = 12;
const IPV6_SOURCE: u32 = 8;

/// Makes the table so, unless it is. Blocks, but not for long.
///
/// # Errors
/// [`NetworkError::Unsupported`] when the kernel has no nf_tables NAT.
pub(super) fn ensure(bridge: &str, subnet4: Subnet4, subnet6: Option<Subnet6>) -> Result<()> {
    let rules = rules(bridge, subnet4, subnet6);
    if is_so(&rules).map_err(failed)? {
        return Ok(());
    }
    let mut transaction = Transaction::default();
    // A table can only be removed when it exists, so it is added first; the kernel sees one change.
    transaction.add(message::NEW_TABLE, FAMILY_INET, table());
    transaction.remove(message::DEL_TABLE, FAMILY_INET, table());
    transaction.add(message::NEW_TABLE, FAMILY_INET, table());
    transaction.add(message::NEW_CHAIN, FAMILY_INET, chain());
    for rule in rules {
        let attributes = Attributes::default()
            .string(attribute::RULE_TABLE, TABLE)
            .string(attribute::RULE_CHAIN, CHAIN)
            .nested(attribute::RULE_EXPRESSIONS, rule.expressions)
            .bytes(attribute::RULE_USERDATA, &rule.comment);
        transaction.add(message::NEW_RULE, FAMILY_INET, attributes);
    }
    transaction.commit().map_err(failed)
}

/// Removes the table; being absent is no error. Blocks, but not for long.
pub(super) fn remove() -> Result<()> {
    let mut transaction = Transaction::default();
    transaction.add(message::NEW_TABLE, FAMILY_INET, table());
    transaction.remove(message::DEL_TABLE, FAMILY_INET, table());
    match transaction.commit() {
        // A kernel without nf_tables has no table either.
        Err(error) if is_unsupported(&error) => Ok(()),
        other => other.map_err(|error| NetworkError::Netlink {
            tried: format!("delete the nf_tables table {TABLE}"),
            source: error,
        }),
    }
}

/// Chains of others that drop forwarded packets by default, as `family table chain`. Blocks, but not for long.
pub(super) fn dropping_forward_chains() -> io::Result<Vec<String>> {
    let chains = dump(message::GET_CHAIN, FAMILY_ANY, &Attributes::default())?;
    let mut found = Vec::new();
    for chain in chains {
        let forwards = chain.nested_number(attribute::CHAIN_HOOK, attribute::HOOK_NUMBER) == Some(HOOK_FORWARD);
        let filters = chain.string(attribute::CHAIN_TYPE).as_deref() == Some("filter");
        let family = match chain.family {
            FAMILY_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => continue,
        };
        if forwards && filters && chain.number(attribute::CHAIN_POLICY) == Some(POLICY_DROP) {
            let name = |kind| chain.string(kind).unwrap_or_default();
            found.push(format!("{family} {} {}", name(attribute::CHAIN_TABLE), name(attribute::CHAIN_NAME)));
        }
    }
    Ok(found)
}

/// Whether the kernel can translate addresses by nf_tables: a transaction that would make a chain of type `nat`.
pub(super) fn probe() -> io::Result<()> {
    const PROBE: &str = "edged-probe";
    let table = || Attributes::default().string(attribute::TABLE_NAME, PROBE);
    let mut transaction = Transaction::default();
    transaction.add(message::NEW_TABLE, FAMILY_INET, table());
    transaction.add(message::NEW_CHAIN, FAMILY_INET, nat_chain(PROBE));
    transaction.remove(message::DEL_TABLE, FAMILY_INET, table());
    transaction.commit()
}

struct Rule {
    expressions: Attributes,
    /// What the rule does, in the format in which `nft` shows comments; it tells our rule from one made by hand.
    comment: Vec<u8>,
}

fn rules(bridge: &str, subnet4: Subnet4, subnet6: Option<Subnet6>) -> Vec<Rule> {
    let mut rules = vec![Rule {
        expressions: masquerade_rule(
            NFPROTO_IPV4,
            expression::header_matches(IPV4_SOURCE, &subnet4.network().octets(), &subnet4.mask()),
            bridge,
        ),
        comment: comment(&format!("edged: {subnet4} not to {bridge}")),
    }];
    if let Some(subnet6) = subnet6 {
        // Only the first half of the address is compared: the prefix is always /64.
        let prefix = &subnet6.network().octets()[..8];
        rules.push(Rule {
            expressions: masquerade_rule(
                NFPROTO_IPV6,
                expression::header_matches(IPV6_SOURCE, prefix, &[0xff; 8]),
                bridge,
            ),
            comment: comment(&format!("edged: {subnet6} not to {bridge}")),
        });
    }
    rules
}

fn masquerade_rule(nfproto: u8, source: Vec<Attributes>, bridge: &str) -> Attributes {
    let conditions =
        [expression::family_is(nfproto), source, expression::leaves_by_other_than(bridge)].into_iter().flatten();
    expression_list(conditions.chain([expression::masquerade()]))
}

/// A comment as user data: type 0 (`NFTNL_UDATA_RULE_COMMENT`), length, text with its final NUL.
fn comment(text: &str) -> Vec<u8> {
    let mut data = vec![0, (text.len() + 1) as u8];
    data.extend_from_slice(text.as_bytes());
    data.push(0);
    data
}

fn is_so(rules: &[Rule]) -> io::Result<bool> {
    let ours = Attributes::default().string(attribute::RULE_TABLE, TABLE);
    let comments: Vec<Vec<u8>> = dump(message::GET_RULE, FAMILY_INET, &ours)?
        .iter()
        .filter(|rule| rule.string(attribute::RULE_TABLE).as_deref() == Some(TABLE))
        .map(|rule| rule.bytes(attribute::RULE_USERDATA).unwrap_or_default().to_vec())
        .collect();
    Ok(comments.iter().eq(rules.iter().map(|rule| &rule.comment)))
}

fn table() -> Attributes {
    Attributes::default().string(attribute::TABLE_NAME, TABLE)
}

fn chain() -> Attributes {
    nat_chain(TABLE)
}

fn nat_chain(table: &str) -> Attributes {
    let hook = Attributes::default()
        .number(attribute::HOOK_NUMBER, HOOK_POSTROUTING)
        .number(attribute::HOOK_PRIORITY, PRIORITY_SRCNAT);
    Attributes::default()
        .string(attribute::CHAIN_TABLE, table)
        .string(attribute::CHAIN_NAME, CHAIN)
        .nested(attribute::CHAIN_HOOK, hook)
        .string(attribute::CHAIN_TYPE, "nat")
}

fn failed(source: io::Error) -> NetworkError {
    if is_unsupported(&source) {
        return NetworkError::Unsupported {
            feature: "nf_tables NAT",
            remedy: "load the modules `nf_tables`, `nft_chain_nat` and `nft_masq`, or build CONFIG_NFT_MASQ",
            source,
        };
    }
    NetworkError::Netlink { tried: format!("make the nf_tables table {TABLE}"), source }
}

/// What a kernel without the subsystem, the chain type or an expression answers.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL))
}
