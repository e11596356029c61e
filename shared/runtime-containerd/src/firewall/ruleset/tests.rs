use serde_json::json;

use super::*;

const ID: &str = "env-0123456789abcdef";
const OWNER: &str = "user-0123456789abcdef";

fn ruleset() -> Ruleset {
    let config: Config = serde_json::from_value(json!({
        "socket": "/s", "state_dir": "/d", "boxd": "/b", "subnet": "10.160.0.0/20",
        "bridge": "abx0", "deployment": "local", "dns_servers": ["192.0.2.53", "fd00::53"],
        "blocked_egress_cidrs": ["198.51.100.0/24"],
    }))
    .unwrap();
    Ruleset::new(&config)
}

fn network() -> BoxNetwork {
    BoxNetwork {
        address: Ipv4Addr::new(10, 160, 0, 5),
        mac: "02:00:00:00:00:05".into(),
        port: "veth5".into(),
        owner: Some(OWNER.parse().unwrap()),
    }
}

fn chain(text: &str, name: &str) -> Vec<String> {
    let prefix = format!("add rule inet agentbox-local {name}-{ID} ");
    text.lines()
        .filter_map(|l| l.strip_prefix(&prefix))
        .map(str::to_owned)
        .collect()
}

/// The box's own chains for a policy.
fn rules(policy: Option<NetworkPolicy>) -> (Vec<String>, Vec<String>, bool) {
    let policy = policy.unwrap_or_else(|| NetworkPolicy::unspecified(true));
    let text = ruleset().install(&ID.parse().unwrap(), &network(), &policy);
    (
        chain(&text, "out"),
        chain(&text, "in"),
        !text.contains("delete element inet agentbox-local resolving"),
    )
}

const NO_BOX: &str = "ip daddr 10.160.0.0/20 reject with icmpx admin-prohibited";
const REFUSE: &str = "reject with icmpx admin-prohibited";
const NO_OTHER_OWNER: &str = "iifname \"abx0\" ip saddr != @boxes-local-user-0123456789abcdef drop";

#[test]
fn policy_renders_exactly_the_allowed_rules() {
    let blocked = "ip daddr { 198.51.100.0/24 } reject with icmpx admin-prohibited";
    let table = [
        (
            "none: the public internet",
            None,
            vec![NO_BOX, blocked, "jump internet", REFUSE],
            vec![NO_OTHER_OWNER, "drop"],
            true,
        ),
        (
            "empty: nothing",
            Some(NetworkPolicy::default()),
            vec![NO_BOX, REFUSE],
            vec![NO_OTHER_OWNER, "drop"],
            false,
        ),
        (
            "internet",
            Some(NetworkPolicy {
                allow_internet: true,
                ..Default::default()
            }),
            vec![NO_BOX, blocked, "jump internet", REFUSE],
            vec![NO_OTHER_OWNER, "drop"],
            true,
        ),
        (
            "two networks, one inside the other, and one of IPv6",
            Some(NetworkPolicy {
                allowed_egress_cidrs: ["10.1.2.3/8", "10.1.0.0/16", "fd00::/8"]
                    .map(|cidr| cidr.parse().unwrap())
                    .to_vec(),
                ..Default::default()
            }),
            vec![
                NO_BOX,
                blocked,
                "ip daddr { 10.0.0.0/8 } goto delivered",
                REFUSE,
            ],
            vec![NO_OTHER_OWNER, "drop"],
            false,
        ),
        (
            "ports and other boxes",
            Some(NetworkPolicy {
                allowed_ingress_ports: [80, 8080].map(|port| port.try_into().unwrap()).to_vec(),
                allow_cluster_internal: true,
                ..Default::default()
            }),
            vec![
                "ip daddr @boxes-local-user-0123456789abcdef goto delivered",
                NO_BOX,
                REFUSE,
            ],
            vec![
                NO_OTHER_OWNER,
                "iifname \"abx0\" ip saddr @boxes-local-user-0123456789abcdef goto reached",
                "tcp dport { 80, 8080 } goto reached",
                "drop",
            ],
            false,
        ),
    ];
    for (case, policy, out, inward, resolves) in table {
        let (got_out, got_in, got_resolves) = rules(policy);
        assert_eq!(got_out, out, "{case}");
        assert_eq!(got_in, inward, "{case}");
        assert_eq!(got_resolves, resolves, "{case}");
    }
}

#[test]
fn replies_pass_by_the_mirror_of_the_policy() {
    let policy = NetworkPolicy {
        allow_internet: true,
        allowed_egress_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        allowed_ingress_ports: vec![80.try_into().unwrap()],
        allow_cluster_internal: true,
    };
    let install =
        |policy: &NetworkPolicy| ruleset().install(&ID.parse().unwrap(), &network(), policy);
    let (open, closed) = (install(&policy), install(&NetworkPolicy::default()));
    let public = format!("ip saddr != {{ {} }} return", PRIVATE_V4.join(", "));
    assert_eq!(
        chain(&open, "out-re"),
        [
            "ip saddr @boxes-local-user-0123456789abcdef return",
            "ip saddr 10.160.0.0/20 drop",
            "ip saddr { 198.51.100.0/24 } drop",
            "ip saddr { 10.0.0.0/8 } return",
            public.as_str(),
            "drop",
        ]
    );
    let other_owner = "oifname \"abx0\" ip daddr != @boxes-local-user-0123456789abcdef drop";
    assert_eq!(
        chain(&open, "in-re"),
        [
            other_owner,
            "oifname \"abx0\" ip daddr @boxes-local-user-0123456789abcdef return",
            "tcp sport { 80 } return",
            "drop",
        ]
    );
    assert_eq!(
        chain(&closed, "out-re"),
        ["ip saddr 10.160.0.0/20 drop", "drop"]
    );
    assert_eq!(chain(&closed, "in-re"), [other_owner, "drop"]);
}

#[test]
fn box_without_a_recorded_owner_opens_no_box() {
    let mut network = network();
    network.owner = None;
    let policy = NetworkPolicy {
        allow_cluster_internal: true,
        ..Default::default()
    };
    let text = ruleset().install(&ID.parse().unwrap(), &network, &policy);
    assert_eq!(chain(&text, "out"), [NO_BOX, REFUSE]);
    assert_eq!(chain(&text, "in"), ["drop"]);
    assert_eq!(ruleset().remove_owner_set(&network), None);
}

#[test]
fn listed_elements_of_one_box_are_removed() {
    let listed = [json!({ "nftables": [
        { "chain": { "name": "out-env-0123456789abcdef" } },
        { "map": { "name": "egress", "elem": [
            ["10.160.0.5", { "goto": { "target": "out-env-0123456789abcdef" } }],
            ["10.160.0.6", { "goto": { "target": "out-env-ffffffffffffffff" } }],
        ]}},
        { "map": { "name": "ingress", "elem": [
            ["10.160.0.5", { "goto": { "target": "in-env-0123456789abcdef" } }],
        ]}},
        { "set": { "name": "boxes-local-user-0123456789abcdef", "elem": [
            "10.160.0.5", "10.160.0.6",
        ]}},
        { "set": { "name": "connections-4096", "elem": [
            { "elem": { "val": "10.160.0.5", "ct count": { "val": 4096, "inv": true } } },
            { "elem": { "val": "10.160.0.6", "ct count": { "val": 4096, "inv": true } } },
        ]}},
        { "set": { "name": "sent-1000000000", "elem": [
            { "elem": { "val": "veth5", "expires": 59, "limit": { "rate": 125_000_000 } } },
        ]}},
        { "set": { "name": "resolving", "elem": [{ "concat": ["10.160.0.5", "192.0.2.53"] }] } },
        { "set": { "name": "senders", "elem": [
            { "concat": ["veth5", "02:00:00:00:00:05", "10.160.0.5"] },
            { "concat": ["veth6", "02:00:00:00:00:06", "10.160.0.6"] },
        ]}},
    ]})];
    let found = Elements::read(&listed);
    let script = ruleset()
        .remove_listed(&ID.parse().unwrap(), &found)
        .unwrap();
    for line in [
        "delete element inet agentbox-local egress { 10.160.0.5 }",
        "delete element inet agentbox-local ingress { 10.160.0.5 }",
        "delete element inet agentbox-local boxes-local-user-0123456789abcdef { 10.160.0.5 }",
        // A set that the kernel empties too.
        "add element inet agentbox-local connections-4096 { 10.160.0.5 }",
        "delete element inet agentbox-local connections-4096 { 10.160.0.5 }",
        "delete element inet agentbox-local resolving { 10.160.0.5 . 192.0.2.53 }",
        "delete element bridge agentbox-local ports { \"veth5\" }",
        "delete element bridge agentbox-local senders { \"veth5\" . 02:00:00:00:00:05 . 10.160.0.5 }",
        "delete chain inet agentbox-local out-env-0123456789abcdef",
    ] {
        assert!(script.lines().any(|l| l == line), "{line} in\n{script}");
    }
    assert!(!script.contains("10.160.0.6"), "{script}");
    assert_eq!(
        ruleset().remove_listed(&EnvironmentId::random(), &found),
        None
    );
}

#[test]
fn bounds_render_rules_for_each_box_or_none() {
    let mut ruleset = ruleset();
    let text = ruleset.base();
    for line in [
        "add rule bridge agentbox-local guard iifname @ports update @sent-1000000000 \
         { iifname limit rate over 125000000 bytes/second } drop",
        "add rule bridge agentbox-local received oifname @ports update @received-1000000000 \
         { oifname limit rate over 125000000 bytes/second } drop",
        "add rule inet agentbox-local opened ct status & confirmed == 0 update @opened-4096 \
         { ip saddr limit rate over 64/second burst 4096 packets } \
         reject with icmpx admin-prohibited",
        "add rule inet agentbox-local reached ct status & confirmed == 0 add @connections-4096 \
         { ip daddr ct count over 4096 } drop",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    (ruleset.bandwidth, ruleset.connections) = (None, None);
    let text = ruleset.base();
    // The chains are emptied still, so that a bound that was removed ends.
    for chain in [
        "bridge agentbox-local received",
        "inet agentbox-local opened",
    ] {
        assert!(text.contains(&format!("flush chain {chain}\n")), "{text}");
    }
    assert!(
        !text.contains("limit rate") && !text.contains("ct count"),
        "{text}"
    );
}

#[test]
fn packets_leave_a_box_by_its_gateway_only() {
    let text = one_neighbour(Ipv4Addr::new(10, 160, 0, 1));
    let accepted = text.lines().filter(|line| line.ends_with(" accept"));
    assert_eq!(
        accepted.collect::<Vec<_>>(),
        [
            "add rule inet agentbox output oifname \"lo\" accept",
            "add rule inet agentbox output rt ip nexthop 10.160.0.1 accept",
        ]
    );
    assert!(text.contains("policy drop"), "{text}");
}

fn assert_snapshot(name: &str, text: &str) {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(name, text) });
}

#[test]
fn tables_render_the_same_rules() {
    assert_snapshot("tables", &ruleset().base());
}

#[test]
fn policies_render_the_same_rules() {
    let policies = [
        ("no_policy", NetworkPolicy::unspecified(true)),
        ("closed_policy", NetworkPolicy::default()),
        (
            "full_policy",
            NetworkPolicy {
                allow_internet: true,
                allowed_egress_cidrs: ["10.0.0.0/8", "203.0.113.7/32", "fd00::/8"]
                    .map(|cidr| cidr.parse().unwrap())
                    .to_vec(),
                allowed_ingress_ports: [80, 8080].map(|port| port.try_into().unwrap()).to_vec(),
                allow_cluster_internal: true,
            },
        ),
    ];
    for (name, policy) in policies {
        let (ruleset, id) = (ruleset(), ID.parse().unwrap());
        let text = ruleset.install(&id, &network(), &policy);
        let rules = text.strip_prefix(&ruleset.base());
        assert_snapshot(name, rules.expect("the tables' rules come first"));
    }
}

#[test]
fn removal_renders_the_same_commands() {
    let text = ruleset().remove(&ID.parse().unwrap(), &network());
    assert_snapshot("removal", &text);
}

#[test]
fn rules_of_a_claimed_box_replace_those_of_the_warm_one() {
    let (id, policy) = (ID.parse().unwrap(), NetworkPolicy::unspecified(true));
    let (warm, claimed) = (
        BoxNetwork {
            owner: None,
            ..network()
        },
        network(),
    );
    let before = ruleset().rules_of_box(&id, &warm, &NetworkPolicy::default());
    assert!(!before.contains("boxes-local-user"), "{before}");
    assert_eq!(chain(&before, "in"), ["drop"]);
    let after = ruleset().rules_of_box(&id, &claimed, &policy);
    assert!(
        after.contains(&format!("boxes-local-{OWNER} {{ 10.160.0.5 }}")),
        "{after}"
    );
    for name in CHAINS {
        assert!(after.contains(&format!("flush chain inet agentbox-local {name}-{ID}")));
    }
    let all = ruleset().install(&id, &claimed, &policy);
    assert!(all.ends_with(&after) && !after.contains("add table"));
}
