//! `up`: checks the requirements, starts the supervisor, and prints its steps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentbox_contracts::permissions::EVENT_READER;
use agentbox_testing::cluster::LABEL;
use agentbox_testing::log_tail::{last_lines, tail};
use agentbox_testing::paths::{Layout, cache_directory};
use agentbox_testing::plan::Plan;
use agentbox_testing::private_file;
use agentbox_testing::state::{Phase, State};
use agentbox_testing::{Components, ExistingKubernetes, Runtime, bin_dir, boxd};
use anyhow::{Context, bail};
use clap::Args;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{down, observe, prepare};
use crate::secrets::Secrets;
use crate::services;

/// What the first start writes, beside the space that boxes must leave free (`storage_reserve_mib` of the
/// driver): with less, no box would start.
const REQUIRED_BYTES: u64 = 3 << 30;
const DEADLINE: Duration = Duration::from_secs(900);

#[derive(Args)]
pub(super) struct Options {
    /// The number of replicas of each service, 1 to 32.
    #[arg(long, env = "REPLICAS", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=32))]
    replicas: u16,
    /// Where boxes run: this machine's containerd, a Kubernetes of one node on it, or both.
    #[arg(
        long,
        env = "RUNTIME",
        default_value = "containerd",
        value_delimiter = ','
    )]
    runtime: Vec<Runtime>,
    /// With RUNTIME=kubernetes: the kubeconfig of a Kubernetes that already runs, to use in the
    /// place of a local one.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// With KUBECONFIG: an image with boxd that the cluster can pull.
    #[arg(long, env = "BOXD_IMAGE")]
    boxd_image: Option<String>,
    /// With KUBECONFIG: the networks of the cluster's pods, services and nodes.
    #[arg(long, env = "CLUSTER_CIDRS", value_delimiter = ',')]
    cluster_cidrs: Vec<IpNet>,
    /// With KUBECONFIG: what happens before a box uses an image that its node has. `pull`: the node asks
    /// the registry. `kubelet`: the kubelet compares logins, for nodes with images that no registry
    /// has; it needs the feature `KubeletEnsureSecretPulledImages` (by default from Kubernetes 1.35 on).
    #[arg(long, env = "PRESENT_IMAGES", default_value = "pull", value_parser = ["pull", "kubelet"])]
    present_images: String,
    /// How many bits per second a box on this machine's containerd may send and receive, such as
    /// `100M`, or `none`. Default: `1G`.
    #[arg(long, env = "NETWORK_BANDWIDTH", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    network_bandwidth: Option<String>,
    /// Encrypt the connections to NATS, with a certificate that each start makes.
    #[arg(long, env = "NATS_TLS", action = clap::ArgAction::SetTrue,
          value_parser = clap::builder::FalseyValueParser::new())]
    nats_tls: bool,
    /// Start a trace collector, Jaeger, Prometheus and the canary too.
    #[arg(long, env = "OBSERVE", action = clap::ArgAction::SetTrue,
          value_parser = clap::builder::FalseyValueParser::new())]
    observe: bool,
    /// The public address.
    #[arg(long, env = "AGENTBOX_HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The public port.
    #[arg(long, env = "AGENTBOX_PORT", default_value_t = 8080)]
    port: u16,
}

impl Options {
    fn existing(&self) -> anyhow::Result<Option<ExistingKubernetes>> {
        let given = self.kubeconfig.as_ref();
        let Some(kubeconfig) = given.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(None);
        };
        if !self.runtime.contains(&Runtime::Kubernetes) {
            return Ok(None);
        }
        let unset = "unset KUBECONFIG to start a local Kubernetes";
        if !kubeconfig.is_file() {
            let shown = kubeconfig.display();
            bail!("KUBECONFIG is `{shown}`, which is not one file: set it to one file, or {unset}");
        }
        let Some(boxd_image) = self.boxd_image.clone().filter(|image| !image.is_empty()) else {
            bail!(
                "KUBECONFIG selects a cluster for the boxes: set BOXD_IMAGE to an image of boxd \
                 that it can pull (`make images`), or {unset}"
            );
        };
        if self.cluster_cidrs.is_empty() {
            bail!(
                "KUBECONFIG selects a cluster for the boxes: set CLUSTER_CIDRS to the networks \
                 of its pods, services and nodes, which no box may reach, or {unset}"
            );
        }
        Ok(Some(ExistingKubernetes {
            kubeconfig: std::path::absolute(kubeconfig)?,
            boxd_image,
            cluster_cidrs: self.cluster_cidrs.clone(),
            present_images: self.present_images.clone(),
        }))
    }
}

pub(super) async fn run(layout: &Layout, options: Options) -> anyhow::Result<()> {
    if let Some(state) = State::read(&layout.state())
        && state.supervisor_is_alive()
    {
        match state.phase {
            Phase::Ready => {
                println!("AgentBox is already running.");
                return print_summary(layout, &state);
            }
            _ => bail!("another command is starting or stopping AgentBox; see `make status`"),
        }
    }
    let existing = options.existing()?;
    check_requirements(layout, &options).await?;
    down::remove_stale(layout).await;
    prepare_directory(layout, &options, existing)?;
    let mut supervisor = start(layout)?;
    let state = print_steps(layout, &mut supervisor).await?;
    print_summary(layout, &state)
}

/// Checks the requirements first, because these errors are clearer than those of the start.
async fn check_requirements(layout: &Layout, options: &Options) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("boxes need root (namespaces, mounts, a bridge): run `sudo make up`");
    }
    crate::ports::require_free(options.host, options.port)?;
    prepare::require_packages().await?;
    std::fs::create_dir_all(cache_directory())
        .with_context(|| format!("cannot use {}", cache_directory().display()))?;
    // The directory itself may not exist yet.
    let existing = layout.directory().ancestors().find(|path| path.exists());
    for directory in [existing.unwrap_or(Path::new("/")), &cache_directory()] {
        let disk = nix::sys::statvfs::statvfs(directory)?;
        let free = disk.blocks_available() * disk.fragment_size();
        if free < REQUIRED_BYTES {
            bail!(
                "the disk is full: {} MiB free in {}, {} MiB are needed",
                free >> 20,
                directory.display(),
                REQUIRED_BYTES >> 20
            );
        }
    }
    services::require_programs(&bin_dir(), &boxd())?;
    if options.observe {
        observe::require()?;
    }
    Ok(())
}

/// Makes the directory of the instance, and writes the plan of what the supervisor runs there.
fn prepare_directory(
    layout: &Layout,
    options: &Options,
    existing: Option<ExistingKubernetes>,
) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(layout.directory())?;
    std::fs::create_dir_all(layout.logs())?;
    // Programs that `dev` built in an earlier run.
    let _ = std::fs::remove_dir_all(layout.dev_programs());
    // The name follows from the directory, so that the next start finds what a crash left.
    let digest = Sha256::digest(layout.directory().as_os_str().as_encoded_bytes());
    let plan = Plan {
        deployment: Some(format!("local-{}", hex::encode(&digest[..4]))),
        components: Components {
            containerd: options.runtime.contains(&Runtime::Containerd),
            kubernetes: options.runtime.contains(&Runtime::Kubernetes) && existing.is_none(),
            ..Components::ALL
        },
        existing,
        replicas: usize::from(options.replicas),
        durable: true,
        network_bandwidth: options.network_bandwidth.clone(),
        nats_tls: options.nats_tls,
        observe: options.observe,
        bin_dir: bin_dir(),
        boxd: boxd(),
        host: options.host,
        port: Some(options.port),
        environment: BTreeMap::new(),
    };
    private_file::write(&layout.plan(), &serde_json::to_vec_pretty(&plan)?)?;
    Ok(())
}

/// Starts the supervisor in a session of its own, so that it survives the terminal.
fn start(layout: &Layout) -> anyhow::Result<Child> {
    let stderr = std::fs::File::options()
        .create(true)
        .append(true)
        .open(layout.log("supervisor"))?;
    let _ = std::fs::remove_file(layout.state());
    Command::new("setsid")
        .arg(std::env::current_exe()?)
        .arg("--dir")
        .arg(layout.directory())
        .arg("supervise")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .context("cannot start the supervisor")
}

/// Prints the steps of the start as they are completed, until everything is ready.
async fn print_steps(layout: &Layout, supervisor: &mut Child) -> anyhow::Result<State> {
    let started = Instant::now();
    let mut printed = 0;
    while started.elapsed() < DEADLINE {
        let has_exited = supervisor.try_wait()?.is_some();
        let state = State::read(&layout.state());
        let steps = state.as_ref().map_or(&[][..], |state| &state.steps);
        for step in steps.iter().skip(printed) {
            println!("  {:>5.1} s  {step}", started.elapsed().as_secs_f32());
        }
        printed = steps.len().max(printed);
        match state {
            Some(state) if state.phase == Phase::Ready => return Ok(state),
            Some(State {
                phase: Phase::Failed { message },
                ..
            }) => bail!("{message}"),
            _ if has_exited => {
                let log = tail(&layout.log("supervisor"), 4096);
                bail!("the supervisor exited: {}", last_lines(&log, 1));
            }
            _ => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
    bail!("AgentBox is not ready after {DEADLINE:?}; see `make status` and `make logs`")
}

/// Prints the URL, the login and a first request, and writes URL and login to `local.env`.
fn print_summary(layout: &Layout, state: &State) -> anyhow::Result<()> {
    let secrets = Secrets::load_or_generate(&layout.secrets())?;
    let url = state
        .gateway
        .as_ref()
        .map_or("", |gateway| gateway.url.as_str());
    let (username, password) = (&secrets.admin_username, &secrets.admin_password);
    let file = layout.local_env();
    let nats = state.nats.as_ref().map_or("", |nats| nats.url.as_str());
    let reader_password = secrets.nats.get(EVENT_READER).map_or("", String::as_str);
    let text = format!(
        "AGENTBOX_URL={url}\nAGENTBOX_ADMIN_USERNAME={username}\nAGENTBOX_ADMIN_PASSWORD={password}\n\
         AGENTBOX_EVENTS_URL={nats}\nAGENTBOX_EVENTS_USER={EVENT_READER}\n\
         AGENTBOX_EVENTS_PASSWORD={reader_password}\n"
    );
    private_file::write(&file, text.as_bytes())?;
    let kinds: Vec<&str> = state.clusters.iter().map(|c| c.kind().as_str()).collect();
    println!(
        r#"
AgentBox is ready.

  URL       {url}
  username  {username}
  password  {password}
  (also in {file}, a file to source in scripts)
  boxes on  {kinds} (select with the label `{LABEL}` in a node_selector)
  events at {nats} as {EVENT_READER}, password {reader_password} (docs/events.md)

Create a first environment:

  . {file}
  TOKEN=$(curl -s "$AGENTBOX_URL/api/v1/auth/login" -H 'Content-Type: application/json' \
    -d "{{\"username\":\"$AGENTBOX_ADMIN_USERNAME\",\"password\":\"$AGENTBOX_ADMIN_PASSWORD\"}}" | jq -r .token)
  curl -s "$AGENTBOX_URL/api/v1/environments" -H "Authorization: Bearer $TOKEN" \
    -H 'Content-Type: application/json' \
    -d '{{"name":"first","image":"python:3.11-slim","resources":{{"cpu":"500m","memory":"512Mi","storage":"1Gi"}}}}'

See also: `make status`, `make logs`, `make down`."#,
        file = file.display(),
        kinds = kinds.join(" and "),
    );
    if let Some(endpoint) = &state.observability {
        print!("{}", observe::summary(endpoint));
    }
    Ok(())
}
