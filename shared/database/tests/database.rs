//! Connections, migrations and leader election on a real Postgres. Needs `cargo build -p agentbox-testing`
//! once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers fail it by panicking"
)]

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::InstanceId;
use agentbox_database::lease::CREATE_LEASES;
use agentbox_database::sql::{statement, unsigned};
use agentbox_database::{Leases, migrate};
use agentbox_testing::tool::Tool;
use agentbox_testing::{Components, Options, System, TestPostgres, eventually};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use sea_orm_migration::prelude::*;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const SCHEMA: &str = "test";
/// The deadline for what a replica does within some seconds.
const SOON: Duration = Duration::from_secs(10);

/// A migration: its name and its SQL.
struct Sql(&'static str, &'static str);

impl MigrationName for Sql {
    fn name(&self) -> &str {
        self.0
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Sql {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(self.1).await?;
        Ok(())
    }
}

fn leases() -> Box<dyn MigrationTrait> {
    Box::new(Sql("m0001_leases", CREATE_LEASES))
}

fn words() -> Box<dyn MigrationTrait> {
    Box::new(Sql(
        "m0002_words",
        "CREATE TABLE words (word text NOT NULL)",
    ))
}

struct First;

#[async_trait::async_trait]
impl MigratorTrait for First {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![leases()]
    }
}

struct Second;

#[async_trait::async_trait]
impl MigratorTrait for Second {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![leases(), words()]
    }
}

struct Broken;

#[async_trait::async_trait]
impl MigratorTrait for Broken {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        let broken = "INSERT INTO words VALUES ('broken'); SELECT nonsense";
        vec![leases(), words(), Box::new(Sql("m0003_broken", broken))]
    }
}

async fn connect(url: &str) -> DatabaseConnection {
    // Longer than the machine stalls.
    let within = Duration::from_secs(20);
    let connected = agentbox_database::connect_within(url, SCHEMA, 4, within);
    connected.await.unwrap()
}

async fn database() -> DatabaseConnection {
    let database = connect(&TestPostgres::start().await.unwrap().url).await;
    migrate::<First>(&database, SCHEMA).await.unwrap();
    database
}

async fn count(database: &DatabaseConnection, table: &str) -> u64 {
    let statement = statement(format!("SELECT count(*) AS total FROM {table}"), []);
    let row = database.query_one_raw(statement).await.unwrap().unwrap();
    unsigned(&row, "total").unwrap()
}

/// The expiry of the only lease, as text.
async fn expiry(database: &DatabaseConnection) -> String {
    let statement = statement("SELECT expires_at::text AS at FROM leases", []);
    let row = database.query_one_raw(statement).await.unwrap().unwrap();
    row.try_get("", "at").unwrap()
}

fn replica(database: &DatabaseConnection) -> Leases {
    Leases::new(database.clone(), InstanceId::random())
}

/// The number of leases that `holder` has.
async fn leases_of(database: &DatabaseConnection, holder: &InstanceId) -> u64 {
    let holder = holder.as_str();
    count(database, &format!("leases WHERE holder = '{holder}'")).await
}

/// A replica that counts how often it became the leader and whether it is one now.
struct Candidate {
    started: Arc<AtomicUsize>,
    leading: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Candidate {
    fn start(leases: Leases) -> Self {
        let (started, leading) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (started, leading) = (started.clone(), leading.clone());
            let shutdown = shutdown.clone();
            async move {
                let work = |cancelled: CancellationToken| {
                    let (started, leading) = (started.clone(), leading.clone());
                    async move {
                        started.fetch_add(1, Ordering::SeqCst);
                        leading.fetch_add(1, Ordering::SeqCst);
                        cancelled.cancelled().await;
                        leading.fetch_sub(1, Ordering::SeqCst);
                    }
                };
                leases.run_while_held("work", &shutdown, work).await;
            }
        });
        Self {
            started,
            leading,
            shutdown,
            task,
        }
    }

    fn leads(&self) -> bool {
        self.leading.load(Ordering::SeqCst) == 1
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn migrations_of_replicas_that_start_together_run_once() {
    let url = TestPostgres::start().await.unwrap().url;
    let (first, second) = (connect(&url).await, connect(&url).await);
    let (one, other) = tokio::join!(
        migrate::<Second>(&first, SCHEMA),
        migrate::<Second>(&second, SCHEMA)
    );
    one.unwrap();
    other.unwrap();
    assert_eq!(count(&first, "seaql_migrations").await, 2);
}

#[tokio::test]
async fn failed_migration_leaves_the_schema_unchanged() {
    let database = database().await;
    migrate::<Broken>(&database, SCHEMA).await.unwrap_err();
    assert_eq!(count(&database, "seaql_migrations").await, 1);
    migrate::<Second>(&database, SCHEMA).await.unwrap();
    assert_eq!(count(&database, "words").await, 0);
}

#[tokio::test]
async fn second_candidate_leads_after_the_shutdown_of_the_first() {
    let database = database().await;
    let holder = InstanceId::random();
    let first = Candidate::start(Leases::new(database.clone(), holder.clone()));
    eventually("the first leads", SOON, async || first.leads()).await;
    let second = Candidate::start(replica(&database));
    // The second candidate tries to acquire the lease as often as the first renews it.
    for _ in 0..3 {
        let expiry = expiry(&database).await;
        eventually("the first renews", SOON, async || {
            self::expiry(&database).await != expiry
        })
        .await;
    }
    assert!(first.leads());
    assert_eq!(second.started.load(Ordering::SeqCst), 0);
    assert_eq!(first.started.load(Ordering::SeqCst), 1);

    first.stop().await;
    // The second need not wait until the lease expires.
    assert_eq!(leases_of(&database, &holder).await, 0);
    eventually("the second leads", SOON, async || second.leads()).await;
    second.stop().await;
    assert_eq!(count(&database, "leases").await, 0);
}

#[tokio::test]
async fn lease_of_a_killed_leader_passes_on_when_it_expires() {
    let database = database().await;
    let first = Candidate::start(replica(&database));
    eventually("the first leads", SOON, async || first.leads()).await;
    let second = Candidate::start(replica(&database));
    first.task.abort();
    let killed = Instant::now();
    eventually("the second leads", SOON, async || second.leads()).await;
    // A lease was valid for at least three seconds when its holder renewed it every second.
    assert!(killed.elapsed() > Duration::from_secs(1), "{killed:?}");
    second.stop().await;
}

#[tokio::test]
async fn leader_that_loses_its_lease_stops_its_work() {
    let database = database().await;
    let candidate = Candidate::start(replica(&database));
    eventually("it leads", SOON, async || candidate.leads()).await;
    let other = "UPDATE leases SET holder = 'another', expires_at = now() + interval '1 hour'";
    database.execute_unprepared(other).await.unwrap();
    eventually("it stops", SOON, async || !candidate.leads()).await;

    database
        .execute_unprepared("UPDATE leases SET expires_at = now()")
        .await
        .unwrap();
    eventually("it leads again", SOON, async || candidate.leads()).await;
    assert_eq!(candidate.started.load(Ordering::SeqCst), 2);
    candidate.stop().await;
}

/// The extensions of the certificates of [`certificates`].
const OPENSSL: &str = "\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1
";

/// Makes an authority in `directory`, and a certificate of a server on 127.0.0.1 that it has signed.
async fn certificates(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let at = |name: &str| directory.join(name);
    std::fs::write(at("openssl.cnf"), OPENSSL).unwrap();
    let new = |kind: &str| {
        Tool::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "1", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", &format!("/CN=agentbox-test-{kind}")])
            .args(["-extensions", kind])
            .arg_pair("-config", at("openssl.cnf"))
            .arg_pair("-keyout", at(&format!("{kind}.key")))
            .arg_pair("-out", at(&format!("{kind}.crt")))
    };
    new("authority").run().await.unwrap();
    new("server")
        .arg_pair("-CA", at("authority.crt"))
        .arg_pair("-CAkey", at("authority.key"))
        .run()
        .await
        .unwrap();
}

#[tokio::test]
async fn server_that_cannot_be_verified_is_refused_at_once() {
    let components = Components {
        postgres: true,
        ..Components::NONE
    };
    let system = System::start(Options::components(components))
        .await
        .unwrap();
    let postgres = system.postgres.clone().unwrap();
    let (own, other) = (
        system.directory().join("own"),
        system.directory().join("other"),
    );
    certificates(&own).await;
    certificates(&other).await;
    let url = |host: &str, authority: &Path| {
        let url = postgres.admin_url.replace("127.0.0.1", host);
        let file = authority.join("authority.crt");
        format!("{url}?sslmode=verify-full&sslrootcert={}", file.display())
    };
    let refused = async |url: String| {
        let begun = Instant::now();
        let error = agentbox_database::connect(&url, SCHEMA, 1).await;
        // Less than the retries would take.
        assert!(begun.elapsed() < Duration::from_secs(25), "{url}");
        ErrorChain(&error.unwrap_err()).to_string()
    };
    // Without TLS.
    let error = refused(url("127.0.0.1", &own)).await;
    assert!(error.contains("does not support TLS"), "{error}");

    let data = postgres.execute(&["SHOW data_directory"]).await.unwrap();
    let data = Path::new(data.trim());
    let owner = std::fs::metadata(data).unwrap();
    for name in ["server.crt", "server.key"] {
        let path = data.join(name);
        std::fs::copy(own.join(name), &path).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    let encrypt = ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"];
    postgres.execute(&encrypt).await.unwrap();
    eventually("TLS", Duration::from_secs(20), async || {
        let ssl = postgres.execute(&["SHOW ssl"]).await.unwrap();
        ssl.trim() == "on"
    })
    .await;
    let encrypted = "pg_stat_ssl WHERE ssl AND pid = pg_backend_pid()";
    let own_url = url("127.0.0.1", &own);
    let database = agentbox_database::connect(&own_url, SCHEMA, 1).await;
    assert_eq!(count(&database.unwrap(), encrypted).await, 1);
    // Another authority, and another name than that of the certificate.
    for (host, authority) in [("127.0.0.1", &other), ("localhost", &own)] {
        let error = refused(url(host, authority)).await;
        assert!(error.contains("certificate"), "{error}");
    }
    system.stop().await;
}
