//! The files of `deploy/observability` that no program of a test reads agree with each other: the compose file,
//! Grafana's provisioning, and the configurations of Prometheus, the collector and Tempo.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../observability")
}

fn read(name: &str) -> Value {
    let path = directory().join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        return serde_json::from_str(&text).unwrap();
    }
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn list(value: &Value) -> Vec<&Value> {
    value
        .as_array()
        .map_or_else(Vec::new, |list| list.iter().collect())
}

fn texts(value: &Value) -> Vec<&str> {
    list(value)
        .into_iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

fn entries(value: &Value) -> Vec<(&str, &Value)> {
    let map = value.as_object().unwrap();
    map.iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect()
}

/// Fails if a map has a key that its program does not have here.
fn expect_keys(what: &str, value: &Value, known: &[&str]) {
    for (key, _) in entries(value) {
        assert!(
            known.contains(&key),
            "{what}: unknown key `{key}`, none of {known:?}"
        );
    }
}

/// The `host:port` of an address with or without a scheme.
fn host_and_port(text: &str) -> (&str, &str) {
    let address = text.strip_prefix("http://").unwrap_or(text);
    address
        .rsplit_once(':')
        .unwrap_or_else(|| panic!("{text}: no port"))
}

/// The default of a value such as `${env:TRACES_ENDPOINT:-tempo:4317}`.
fn default_of(text: &str) -> &str {
    let inner = text
        .strip_prefix("${")
        .and_then(|text| text.strip_suffix('}'));
    inner
        .and_then(|text| text.split_once(":-"))
        .map_or(text, |(_, default)| default)
}

/// What is mounted into the container of a service: the source by the path inside.
fn mounts(compose: &Value, service: &str) -> BTreeMap<String, String> {
    texts(&compose["services"][service]["volumes"])
        .into_iter()
        .map(|volume| {
            let parts: Vec<&str> = volume.split(':').collect();
            (parts[1].to_owned(), parts[0].to_owned())
        })
        .collect()
}

/// Whether the path is that of a mount, or below it.
fn is_mounted(mounts: &BTreeMap<String, String>, path: &str) -> bool {
    mounts
        .keys()
        .any(|mount| Path::new(path).starts_with(mount))
}

#[test]
fn compose_file_names_what_exists() {
    let compose = read("compose.yaml");
    expect_keys("compose.yaml", &compose, &["name", "services", "volumes"]);
    let services: BTreeSet<&str> = entries(&compose["services"])
        .iter()
        .map(|(name, _)| *name)
        .collect();
    let volumes: BTreeSet<&str> = entries(&compose["volumes"])
        .iter()
        .map(|(name, _)| *name)
        .collect();
    let mut used = BTreeSet::new();
    for (name, service) in entries(&compose["services"]) {
        let known = [
            "image",
            "command",
            "volumes",
            "ports",
            "environment",
            "depends_on",
            "restart",
            "profiles",
            "extra_hosts",
        ];
        expect_keys(name, service, &known);
        expect_pinned(name, service["image"].as_str().unwrap());
        for port in texts(&service["ports"]) {
            assert!(
                port.starts_with("127.0.0.1:"),
                "{name}: {port} is open to others"
            );
        }
        for other in texts(&service["depends_on"]) {
            assert!(services.contains(other), "{name}: no service {other}");
        }
        let mounts = mounts(&compose, name);
        for source in mounts.values() {
            match source.strip_prefix("./") {
                Some(file) => assert!(directory().join(file).exists(), "{name}: no {source}"),
                None => {
                    assert!(
                        volumes.contains(source.as_str()),
                        "{name}: no volume {source}"
                    );
                    used.insert(source.clone());
                }
            }
        }
        for argument in texts(&service["command"]) {
            if let Some((_, path)) = argument.split_once("=/") {
                assert!(
                    is_mounted(&mounts, &format!("/{path}")),
                    "{name}: {argument} is not mounted"
                );
            }
        }
    }
    assert_eq!(
        used.len(),
        volumes.len(),
        "unused volumes: {volumes:?}, used {used:?}"
    );
}

/// An image has a version, and, if it has a digest, that is complete.
fn expect_pinned(service: &str, image: &str) {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let (_, tag) = name
        .rsplit_once(':')
        .unwrap_or_else(|| panic!("{service}: {image} has no tag"));
    let has_version = tag.trim_start_matches('v').split('.').count() == 3;
    assert!(has_version, "{service}: {image} has no complete version");
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        let is_complete = hex.len() == 64 && hex.chars().all(|digit| digit.is_ascii_hexdigit());
        assert!(is_complete, "{service}: {digest} is no digest");
    }
}

#[test]
fn prometheus_reads_files_that_are_mounted_and_targets_of_the_compose_file() {
    let (compose, prometheus) = (read("compose.yaml"), read("prometheus/prometheus.yml"));
    expect_keys(
        "prometheus.yml",
        &prometheus,
        &["global", "rule_files", "scrape_configs"],
    );
    expect_keys(
        "global",
        &prometheus["global"],
        &["scrape_interval", "evaluation_interval"],
    );
    let mounts = mounts(&compose, "prometheus");
    let mut files = texts(&prometheus["rule_files"]);
    let collector = read("collector/config.yaml");
    let metrics = collector["exporters"]["prometheus"]["endpoint"]
        .as_str()
        .unwrap();
    let (_, port) = host_and_port(default_of(metrics));
    for job in list(&prometheus["scrape_configs"]) {
        expect_keys(
            "a job",
            job,
            &["job_name", "file_sd_configs", "static_configs"],
        );
        for discovery in list(&job["file_sd_configs"]) {
            expect_keys("file_sd_configs", discovery, &["files", "refresh_interval"]);
            files.extend(texts(&discovery["files"]));
        }
        for fixed in list(&job["static_configs"]) {
            expect_keys("static_configs", fixed, &["targets"]);
            assert_eq!(texts(&fixed["targets"]), [format!("collector:{port}")]);
        }
    }
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        assert!(mounts.contains_key(file), "{file} is not mounted");
    }
    let jobs: BTreeSet<String> = list(&read("prometheus/targets.json"))
        .into_iter()
        .map(|target| target["labels"]["job"].as_str().unwrap().to_owned())
        .collect();
    let services = [
        "api-gateway",
        "auth",
        "canary",
        "exec-proxy",
        "scheduler",
        "webhooks",
    ];
    assert_eq!(
        jobs,
        BTreeSet::from(services.map(|service| format!("agentbox-{service}")))
    );
}

#[test]
fn collector_and_tempo_listen_where_others_send() {
    let (compose, collector) = (read("compose.yaml"), read("collector/config.yaml"));
    let protocols = &collector["receivers"]["otlp"]["protocols"];
    let open = texts(&compose["services"]["collector"]["ports"]);
    for (protocol, fixed) in [("grpc", "4317"), ("http", "4318")] {
        let endpoint = default_of(protocols[protocol]["endpoint"].as_str().unwrap());
        let (_, port) = host_and_port(endpoint);
        assert_eq!(port, fixed);
        assert!(
            open.contains(&format!("127.0.0.1:{port}:{port}").as_str()),
            "{open:?}"
        );
    }
    for (name, pipeline) in entries(&collector["service"]["pipelines"]) {
        for part in ["receivers", "processors", "exporters"] {
            for component in texts(&pipeline[part]) {
                let is_defined = collector[part].get(component).is_some()
                    || collector["connectors"].get(component).is_some();
                assert!(is_defined, "{name}: {part} has no {component}");
            }
        }
    }
    let sent_to = default_of(
        collector["exporters"]["otlp_grpc"]["endpoint"]
            .as_str()
            .unwrap(),
    );
    let variable = &compose["services"]["collector"]["environment"]["TRACES_ENDPOINT"];
    assert_eq!(default_of(variable.as_str().unwrap()), sent_to);

    let tempo = read("tempo/tempo.yaml");
    expect_keys(
        "tempo.yaml",
        &tempo,
        &["server", "distributor", "storage", "compactor"],
    );
    expect_keys("server", &tempo["server"], &["http_listen_port"]);
    expect_keys("distributor", &tempo["distributor"], &["receivers"]);
    expect_keys("compactor", &tempo["compactor"], &["compaction"]);
    expect_keys(
        "compaction",
        &tempo["compactor"]["compaction"],
        &["block_retention"],
    );
    let trace = &tempo["storage"]["trace"];
    expect_keys("trace", trace, &["backend", "local", "wal"]);
    assert_eq!(trace["backend"], "local");
    let mounts = mounts(&compose, "tempo");
    for kept in ["local", "wal"] {
        let path = trace[kept]["path"].as_str().unwrap();
        assert!(is_mounted(&mounts, path), "{path} is not mounted");
    }
    let receiver = &tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"];
    let (_, port) = host_and_port(receiver.as_str().unwrap());
    assert_eq!(host_and_port(sent_to), ("tempo", port));
}

#[test]
fn data_sources_of_grafana_are_programs_of_the_compose_file() {
    let (compose, tempo) = (read("compose.yaml"), read("tempo/tempo.yaml"));
    let provisioned = read("grafana/provisioning/datasources/datasources.yaml");
    expect_keys(
        "datasources.yaml",
        &provisioned,
        &["apiVersion", "datasources"],
    );
    assert_eq!(provisioned["apiVersion"], 1);
    let sources = list(&provisioned["datasources"]);
    let uids: BTreeSet<&str> = sources
        .iter()
        .map(|source| source["uid"].as_str().unwrap())
        .collect();
    assert_eq!(uids.len(), sources.len(), "{uids:?}");
    // Those of the programs without a configuration are their own defaults.
    let tempo_port = tempo["server"]["http_listen_port"].to_string();
    let ports = [
        ("prometheus", "9090"),
        ("tempo", tempo_port.as_str()),
        ("jaeger", "16686"),
    ];
    for source in &sources {
        let known = ["name", "uid", "type", "url", "isDefault", "jsonData"];
        expect_keys("a data source", source, &known);
        let (host, port) = host_and_port(source["url"].as_str().unwrap());
        assert_eq!(source["type"], host);
        assert!(compose["services"].get(host).is_some(), "no service {host}");
        assert!(
            ports.contains(&(host, port)),
            "{host} does not listen on {port}"
        );
        let data = &source["jsonData"];
        let mut named = vec![&data["tracesToMetrics"], &data["serviceMap"]];
        named.extend(list(&data["exemplarTraceIdDestinations"]));
        for uid in named
            .iter()
            .filter_map(|link| link["datasourceUid"].as_str())
        {
            assert!(uids.contains(uid), "no data source {uid}");
        }
    }
    let defaults = sources.iter().filter(|source| source["isDefault"] == true);
    assert_eq!(defaults.count(), 1);
}

#[test]
fn grafana_reads_the_dashboards_which_use_a_provisioned_data_source() {
    let compose = read("compose.yaml");
    let provider = read("grafana/provisioning/dashboards/dashboards.yaml");
    expect_keys("dashboards.yaml", &provider, &["apiVersion", "providers"]);
    let mounts = mounts(&compose, "grafana");
    assert_eq!(
        mounts["/etc/grafana/provisioning"],
        "./grafana/provisioning"
    );
    for provider in list(&provider["providers"]) {
        let known = ["name", "folder", "type", "allowUiUpdates", "options"];
        expect_keys("a provider", provider, &known);
        assert_eq!(provider["type"], "file");
        let path = provider["options"]["path"].as_str().unwrap();
        assert_eq!(mounts.get(path).map(String::as_str), Some("./dashboards"));
    }
    let provisioned = read("grafana/provisioning/datasources/datasources.yaml");
    let types: Vec<&str> = list(&provisioned["datasources"])
        .into_iter()
        .map(|source| source["type"].as_str().unwrap())
        .collect();
    for name in ["api", "environments", "executions", "stores"] {
        let dashboard = read(&format!("dashboards/{name}.json"));
        let variables = list(&dashboard["templating"]["list"]);
        let variable = variables
            .iter()
            .find(|variable| variable["name"] == "datasource");
        let variable = variable.unwrap();
        assert_eq!(variable["type"], "datasource", "{name}");
        assert!(
            types.contains(&variable["query"].as_str().unwrap()),
            "{name}"
        );
        for panel in list(&dashboard["panels"]) {
            for target in list(&panel["targets"]) {
                let source = &target["datasource"];
                assert_eq!(source["uid"], "${datasource}", "{name}: {}", panel["title"]);
                assert_eq!(
                    source["type"], variable["query"],
                    "{name}: {}",
                    panel["title"]
                );
            }
        }
    }
}
