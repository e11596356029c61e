//! Snapshots of every message as JSON on the wire. A changed snapshot may break a peer of the
//! other version: change the message so that both versions can decode it, then accept the
//! snapshot (`INSTA_UPDATE=always cargo test -p agentbox-contracts`).
//!
//! Session messages and the requests that open sessions are protobuf; their encodings are in the tests
//! of `exec/message` and `exec/open`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::environment::{EnvironmentEvent, EventKind, Route};
use crate::exec::rpc::{ArchiveOutput, BoxSession, GetActivity, GetExecutions, GetUsage};
use crate::rpc::{ClusterRpc, InstanceRpc, Rpc, SessionRpc};
use crate::{audit, environment, error, identity, pool, preview, registry, subjects, webhook};

const ENV: &str = "env-0123456789abcdef";
const USER: &str = "user-0123456789abcdef";
const KEY: &str = "key-0123456789abcdef";
const AUDIT: &str = "audit-0123456789abcdef";
const LOGIN: &str = "login-0123456789abcdef";
const PREVIEW: &str = "preview-0123456789abcdef";
const WEBHOOK: &str = "webhook-0123456789abcdef";
const DELIVERY: &str = "delivery-0123456789abcdef";
const AT: &str = "2026-01-02T03:04:05Z";

mod operators;

type Messages = BTreeMap<String, Value>;

/// Decodes a message with all fields and records its encoding.
fn message<T: Serialize + DeserializeOwned>(messages: &mut Messages, name: &str, value: Value) {
    let decoded: T =
        serde_json::from_value(value).unwrap_or_else(|error| panic!("{name}: {error}"));
    let encoded = serde_json::to_value(decoded).unwrap();
    assert_eq!(messages.insert(name.to_owned(), encoded), None, "{name}");
}

fn rpc<R: Rpc>(messages: &mut Messages, request: Value, reply: Value) {
    let name = format!("{}.{}", R::SERVICE, R::METHOD);
    message::<R::Request>(messages, &format!("{name} request"), request);
    message::<R::Reply>(messages, &format!("{name} reply"), reply);
}

fn cluster_rpc<R: ClusterRpc>(messages: &mut Messages, request: Value, reply: Value) {
    message::<R::Request>(messages, &format!("exec.{} request", R::METHOD), request);
    message::<R::Reply>(messages, &format!("exec.{} reply", R::METHOD), reply);
}

fn instance_rpc<R: InstanceRpc>(messages: &mut Messages, request: Value, reply: Value) {
    let name = format!("{}.{}", R::SERVICE, R::METHOD);
    message::<R::Request>(messages, &format!("{name} request"), request);
    message::<R::Reply>(messages, &format!("{name} reply"), reply);
}

fn environment_request() -> Value {
    json!({
        "name": "build", "image": "python:3.12",
        "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
        "timeout_s": 3600, "idle_timeout_s": 600,
        "env": {"LANG": "C"}, "command": ["sleep", "60"], "labels": {"team": "a"},
        "node_selector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes",
            "effect": "NoSchedule", "tolerationSeconds": 30}],
        "isolation": {
            "runtime_class": "gvisor",
            "network_policy": {"allow_internet": true, "allowed_egress_cidrs": ["192.0.2.0/24"],
                "allowed_ingress_ports": [8080], "allow_cluster_internal": false},
            "security_context": {"run_as_user": 1000, "run_as_group": 1000,
                "run_as_non_root": true, "read_only_root_filesystem": true,
                "allow_privilege_escalation": false},
        },
    })
}

fn environment() -> Value {
    let mut environment = json!({
        "id": ENV, "owner": USER, "owner_username": "ada", "cluster": "local",
        "status": "failed", "status_reason": "OOM_KILLED", "status_message": "out of memory",
        "created_at": AT, "started_at": AT, "ended_at": AT, "expires_at": AT,
        "last_active_at": AT, "exit_code": 137, "endpoint": "http://127.0.0.1:8080", "namespace": "agentbox-a",
        "address": "10.0.0.2:10777", "generation": 3,
        "pool": {"name": "python", "hit": false, "reason": "empty"},
    });
    let request = environment_request();
    let fields = environment.as_object_mut().unwrap();
    fields.extend(request.as_object().unwrap().clone());
    environment
}

fn pool() -> Value {
    let request = environment_request();
    json!({"name": "python", "source": "api", "created_at": AT, "updated_at": AT,
        "spec": {"image": "python:3.12", "resources": request["resources"],
            "isolation": request["isolation"], "node_selector": {"disk": "ssd"},
            "cluster": "local", "min_ready": 2, "max_ready": 8},
        "status": {"target": 3, "ready": 2, "starting": 1, "draining": 1, "hits": 10,
            "misses_by_reason": {"empty": 2, "claim_failed": 1}, "failures": 1,
            "retry_at": AT, "last_error": "image pull failed"}})
}

fn user() -> Value {
    json!({"id": USER, "username": "ada", "email": "ada@example.org", "role": "admin",
        "created_at": AT})
}

fn api_key() -> Value {
    json!({"id": KEY, "owner": USER, "description": "ci", "created_at": AT, "expires_at": AT,
        "last_used_at": AT, "management": true,
        "permissions": [{"environment_id": ENV, "permission": "write"}]})
}

fn audit_entry() -> Value {
    json!({"id": AUDIT, "at": AT, "user": USER, "key": KEY, "address": "192.0.2.1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "action": "exec", "target": ENV,
        "outcome": "accepted", "arguments": ["true"], "arguments_truncated": true})
}

fn principal() -> Value {
    json!({"user": USER, "username": "ada", "role": "user",
        "credential": {"ticket": {"environment": ENV, "action": "attach",
            "issued_by": {"api_key": {"id": KEY}}}},
        "scope": {"environments": {ENV: "read"}}, "expires_at": AT, "management": true})
}

#[test]
fn scheduler_rpcs_match_snapshot() {
    use environment::rpc::{
        Create, Delete, DeleteOwned, Get, GetMany, Health, List, Patch, RecordActivity, Resolve,
    };
    use pool::rpc::{DeletePool, GetPool, ListPools, SetPool};
    use registry::rpc::{DeleteCredential, ListCredentials, SetCredential};
    let mut m = Messages::new();
    let mut request = environment_request();
    request["secret_env"] = json!({"TOKEN": "secret"});
    request["use_entrypoint"] = json!(true);
    let create = json!({"owner": USER, "owner_username": "ada",
        "request": request, "idempotency_key": "key-1"});
    rpc::<Create>(&mut m, create, environment());
    rpc::<Get>(&mut m, json!({"id": ENV}), environment());
    let several = json!({"environments": [environment()], "remaining": [ENV],
        "errors": {ENV: {"code": "internal", "message": "the request failed"}}});
    rpc::<GetMany>(&mut m, json!({"ids": [ENV]}), several);
    let list = json!({"visibility": {"listed": {"owner": USER, "only": [ENV]}},
        "status": "running", "label_selector": "team=a", "limit": 10, "offset": 20,
        "known_total": 21});
    let page = json!({"environments": [environment()], "total": 21, "has_more": true});
    rpc::<List>(&mut m, list, page);
    for (name, visibility) in [
        ("visibility all", json!("all")),
        ("visibility owner", json!({"owner": USER})),
    ] {
        message::<environment::Visibility>(&mut m, name, visibility);
    }
    rpc::<Resolve>(
        &mut m,
        json!({"ids": [ENV]}),
        json!({"owners": {ENV: USER}}),
    );
    let patch = json!({"id": ENV, "name": "test", "labels": {"team": "b"}, "timeout_s": 60,
        "idle_timeout_s": null, "network_policy": {"allow_internet": true,
        "allowed_egress_cidrs": ["192.0.2.0/24"], "allowed_ingress_ports": [8080],
        "allow_cluster_internal": false}});
    let mut patched = environment();
    patched["network_policy_applied"] = json!(true);
    rpc::<Patch>(&mut m, patch, patched);
    rpc::<RecordActivity>(&mut m, json!({"environments": [ENV]}), json!({}));
    rpc::<Delete>(&mut m, json!({"id": ENV, "force": true}), json!({}));
    rpc::<DeleteOwned>(&mut m, json!({"owner": USER}), json!({}));
    let set = json!({"owner": USER, "registry": "registry.example:5000", "username": "ada",
        "password": "secret"});
    rpc::<SetCredential>(&mut m, set, json!({}));
    let list = json!({"owner": USER, "limit": 10, "offset": 20});
    let credential = json!({"registry": "registry.example:5000", "updated_at": AT});
    rpc::<ListCredentials>(
        &mut m,
        list,
        json!({"credentials": [credential], "total": 21}),
    );
    let delete = json!({"owner": USER, "registry": "registry.example:5000"});
    rpc::<DeleteCredential>(&mut m, delete, json!({}));
    let set = json!({"name": "python", "spec": pool()["spec"]});
    rpc::<SetPool>(&mut m, set, json!({"pool": pool(), "is_new": true}));
    rpc::<GetPool>(&mut m, json!({"name": "python"}), pool());
    let page = json!({"limit": 10, "offset": 20});
    rpc::<ListPools>(&mut m, page, json!({"pools": [pool()], "total": 21}));
    rpc::<DeletePool>(&mut m, json!({"name": "python"}), json!({}));
    let health = json!({"database": true, "clusters": [{"name": "local", "driver": "containerd",
        "connected": true, "version": "2.0", "nodes": 1, "available_cpu_milli": 4000,
        "available_memory_bytes": 1024, "enforcement": {"storage": "measured",
        "image_volumes": "absent", "user_namespaces": "absent", "bandwidth": "delegated",
        "connections": "enforced", "block_io": "absent"}}]});
    rpc::<Health>(&mut m, json!({}), health);
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}

#[test]
fn auth_rpcs_match_snapshot() {
    use identity::rpc::{
        Authenticate, ChangePassword, CreateKey, CreateUser, DeleteUser, ForgetCredentials, GetKey,
        GetUser, IssueTicket, ListKeys, ListUsers, Login, Logout, PatchUser, PublicKeys, Ready,
        ReleaseLease, RenewLease, RevokeKey,
    };
    let mut m = Messages::new();
    rpc::<Authenticate>(&mut m, json!({"bearer": {"token": "secret"}}), principal());
    let ticket = json!({"ticket": {"ticket": "secret", "environment": ENV, "action": "logs"}});
    message::<identity::rpc::AuthenticateRequest>(&mut m, "auth.authenticate ticket", ticket);
    for (name, credential) in [
        ("credential login", json!({"login": {"id": LOGIN}})),
        ("credential api key", json!({"api_key": {"id": KEY}})),
    ] {
        message::<identity::Credential>(&mut m, name, credential);
    }
    message::<identity::Scope>(&mut m, "scope full", json!("full"));
    let login = json!({"token": "secret", "expires_at": AT, "user": user()});
    rpc::<Login>(
        &mut m,
        json!({"username": "ada", "password": "secret"}),
        login,
    );
    rpc::<Logout>(&mut m, json!({"principal": principal()}), json!({}));
    let change = json!({"user": USER, "current_password": "old", "new_password": "new",
        "revoke_keys": true});
    rpc::<ChangePassword>(&mut m, change, json!({}));
    rpc::<GetUser>(&mut m, json!({"id": USER}), user());
    let create = json!({"actor": USER, "username": "ada", "email": "ada@example.org",
        "password": "secret", "role": "user"});
    rpc::<CreateUser>(&mut m, create, user());
    let page = json!({"limit": 10, "offset": 20});
    rpc::<ListUsers>(&mut m, page, json!({"users": [user()], "total": 1}));
    let patch = json!({"actor": USER, "id": USER, "email": "new@example.org", "role": "admin",
        "password": "secret", "revoke_keys": true});
    rpc::<PatchUser>(&mut m, patch, user());
    rpc::<DeleteUser>(&mut m, json!({"actor": USER, "id": USER}), json!({}));
    let create = json!({"owner": USER, "description": "ci", "expires_in_days": 30,
        "permissions": [{"environment_id": ENV, "permission": "admin"}], "management": true,
        "creator": {"api_key": {"id": KEY}}});
    rpc::<CreateKey>(
        &mut m,
        create,
        json!({"api_key": api_key(), "key": "secret"}),
    );
    let list = json!({"owner": USER, "limit": 10, "offset": 20});
    rpc::<ListKeys>(&mut m, list, json!({"api_keys": [api_key()], "total": 1}));
    let key = json!({"owner": USER, "id": KEY});
    rpc::<GetKey>(&mut m, key, api_key());
    let revoke = json!({"owner": USER, "id": KEY, "creator": KEY});
    rpc::<RevokeKey>(&mut m, revoke, json!({}));
    let issue = json!({"principal": principal(), "environment": ENV, "action": "attach"});
    rpc::<IssueTicket>(&mut m, issue, json!({"ticket": "secret", "expires_at": AT}));
    rpc::<PublicKeys>(&mut m, json!({}), json!({"keys": [{"kty": "OKP"}]}));
    rpc::<Ready>(&mut m, json!({}), json!({}));
    let lease = json!({"gateway": "inst-0123456789abcdef"});
    rpc::<RenewLease>(&mut m, lease.clone(), json!({"revision": 7}));
    rpc::<ReleaseLease>(&mut m, lease, json!({}));
    instance_rpc::<ForgetCredentials>(&mut m, json!({"revision": 7}), json!({}));
    let list = json!({"user": USER, "action": "exec", "target": ENV, "since": AT, "until": AT,
        "limit": 10, "offset": 20});
    let chained = json!({"sequence": 7, "hash": "00ff", "entry": audit_entry()});
    let page = json!({"entries": [chained], "total": 21, "has_more": true});
    rpc::<audit::rpc::ListAudit>(&mut m, list, page);
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}

#[test]
fn preview_rpcs_match_snapshot() {
    use preview::rpc::{CreatePreview, DeletePreview, ListPreviews, OpenPreview, PreviewAccess};
    let mut m = Messages::new();
    let preview = json!({"id": PREVIEW, "environment": ENV, "port": 8080, "public": false,
        "creator": USER, "created_at": AT, "expires_at": AT});
    let create = json!({"principal": principal(), "environment": ENV, "port": 8080,
        "public": false, "expires_in_s": 3600});
    let created = json!({"preview": preview, "token": "secret", "link": "secret"});
    rpc::<CreatePreview>(&mut m, create, created);
    let list = json!({"environment": ENV, "limit": 10, "offset": 20});
    rpc::<ListPreviews>(&mut m, list, json!({"previews": [preview], "total": 21}));
    rpc::<DeletePreview>(
        &mut m,
        json!({"environment": ENV, "id": PREVIEW}),
        json!({}),
    );
    let open = json!({"id": PREVIEW, "access": {"token": "secret"}});
    let opened = json!({"preview": preview, "principal": principal(), "cookie": "secret"});
    rpc::<OpenPreview>(&mut m, open, opened);
    for (name, access) in [
        ("access none", json!("none")),
        ("access cookie", json!({"cookie": "secret"})),
        ("access link", json!({"link": "secret"})),
        ("access open", json!("open")),
    ] {
        message::<PreviewAccess>(&mut m, name, access);
    }
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}

#[test]
fn webhook_rpcs_match_snapshot() {
    use webhook::rpc::{
        CreateWebhook, DeleteWebhook, GetWebhook, ListDeliveries, ListWebhooks, Redeliver,
    };
    let mut m = Messages::new();
    let webhook = json!({"id": WEBHOOK, "url": "https://example.com/hook", "kinds": ["running"],
        "description": "billing", "created_at": AT});
    let create = json!({"owner": USER, "url": "https://example.com/hook", "kinds": ["running"],
        "description": "billing"});
    let created = json!({"webhook": webhook, "secret": "whsec_secret"});
    rpc::<CreateWebhook>(&mut m, create, created);
    let list = json!({"owner": USER, "limit": 10, "offset": 20});
    rpc::<ListWebhooks>(&mut m, list, json!({"webhooks": [webhook], "total": 21}));
    let one = json!({"owner": USER, "id": WEBHOOK});
    rpc::<GetWebhook>(&mut m, one.clone(), webhook);
    rpc::<DeleteWebhook>(&mut m, one, json!({}));
    let delivery = json!({"id": DELIVERY, "event": 4711, "environment": ENV, "kind": "running",
        "state": "dead", "attempts": 10, "created_at": AT, "next_attempt_at": AT, "ended_at": AT,
        "response_status": 500, "error": "the receiver answered 500"});
    let list = json!({"owner": USER, "id": WEBHOOK, "state": "dead", "limit": 10, "offset": 20});
    rpc::<ListDeliveries>(&mut m, list, json!({"deliveries": [delivery], "total": 21}));
    let again = json!({"owner": USER, "id": WEBHOOK, "delivery": DELIVERY});
    rpc::<Redeliver>(&mut m, again, delivery);
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}

#[test]
fn exec_rpcs_match_snapshot() {
    let mut m = Messages::new();
    let box_address = "10.0.0.2:10777";
    let usage = json!({"environment": ENV, "address": box_address});
    let used = json!({"cpu_milli": 250, "memory_bytes": 1024});
    cluster_rpc::<GetUsage>(&mut m, usage.clone(), used);
    cluster_rpc::<GetActivity>(&mut m, usage.clone(), json!({"idle_ms": 1500}));
    let executions = json!({"executions": [
        {"id": "exec-0123456789abcdef", "status": "exited", "exit_code": 3}]});
    cluster_rpc::<GetExecutions>(&mut m, usage, executions);
    let archive = json!({"environment": ENV, "address": box_address, "before_stop": true,
        "status_reason": "DELETED", "ended_at": AT});
    cluster_rpc::<ArchiveOutput>(&mut m, archive, json!({"entries": 12}));
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}

#[test]
fn events_routes_and_errors_match_snapshot() {
    let mut m = Messages::new();
    for kind in [
        "created",
        "updated",
        "running",
        "terminating",
        "terminated",
        "failed",
    ] {
        let event = json!({"environment_id": ENV, "owner": USER, "kind": kind,
            "status": "failed", "status_reason": "EXITED", "status_message": "exit code 1",
            "exit_code": 1, "pool": {"name": "python", "hit": true}, "at": AT});
        message::<EnvironmentEvent>(&mut m, &format!("event {kind}"), event);
    }
    for (kind, execution) in [
        (
            "execution_started",
            json!({"id": "exec-0123456789abcdef", "status": "running"}),
        ),
        (
            "execution_ended",
            json!({"id": "exec-0123456789abcdef", "status": "exited", "exit_code": 3}),
        ),
    ] {
        let event = json!({"environment_id": ENV, "owner": USER, "kind": kind,
            "status": "running", "status_reason": null, "status_message": null,
            "exit_code": null, "execution": execution, "at": AT});
        message::<EnvironmentEvent>(&mut m, &format!("event {kind}"), event);
    }
    let route = json!({"owner": USER, "status": "running", "cluster": "local",
        "address": "10.0.0.2:10777"});
    message::<Route>(&mut m, "route", route);
    message::<audit::AuditEntry>(&mut m, "audit entry", audit_entry());
    let head = json!({"sequence": 7, "hash": "00ff", "signature": "ff00", "at": AT});
    message::<audit::AuditHead>(&mut m, "audit head", head);
    let origin = json!({"user": USER, "key": KEY, "address": "2001:db8::1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"});
    message::<audit::Origin>(&mut m, "origin", origin);
    let error = json!({"code": "rate_limited", "message": "too many requests",
        "retry_after_s": 3});
    message::<error::Error>(&mut m, "error", error);
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(m) });
}

#[test]
fn subjects_match_snapshot() {
    let id = ENV.parse().unwrap();
    let owner = USER.parse().unwrap();
    let instance = "inst-0123456789abcdef".parse().unwrap();
    let command = subjects::command("local", "reconcile", &id);
    let built = [
        subjects::rpc("auth", "login"),
        subjects::exec_rpc("local", BoxSession::METHOD),
        subjects::instance_rpc("api-gateway", &instance, "forget-credentials"),
        command.clone(),
        subjects::event(&owner, &id, EventKind::Running),
        subjects::audit(audit::AuditAction::Exec),
        subjects::AUDIT_HEAD.to_owned(),
        subjects::dead_letter(&command),
        subjects::limit("user-1", "exec", 7),
        subjects::session("api-gateway", &instance, 9),
    ];
    let templates: BTreeMap<_, _> = built
        .into_iter()
        .map(|subject| {
            let template = subjects::Subject::parse(&subject).unwrap().template();
            (subject, template)
        })
        .collect();
    let table = json!({
        "subjects and their templates": templates,
        "wildcards": [
            subjects::ALL_COMMANDS, subjects::cluster_commands("local"),
            subjects::ALL_EVENTS, subjects::environment_events(&id), subjects::owner_events(&owner),
            subjects::process_sessions("api-gateway", &instance),
            subjects::ALL_DEAD_LETTERS, subjects::ALL_LIMITS, subjects::ALL_AUDIT,
        ],
        "streams and buckets": [
            subjects::COMMANDS_STREAM, subjects::EVENTS_STREAM, subjects::DEAD_LETTERS_STREAM,
            subjects::LIMITS_STREAM, subjects::ROUTES_BUCKET, subjects::OUTPUT_BUCKET,
            subjects::AUDIT_STREAM, subjects::AUDIT_HEADS_STREAM,
        ],
        "headers": [
            subjects::HEADER_DEADLINE, subjects::HEADER_ERROR, subjects::HEADER_EXPIRES_AT,
            subjects::HEADER_REASON, subjects::HEADER_ORIGIN, subjects::HEADER_OPEN_LENGTH,
        ],
    });
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(table) });
}

#[test]
fn enum_texts_are_their_json() {
    use strum::VariantArray as _;
    for status in environment::Status::VARIANTS {
        assert_eq!(json!(status), status.as_str());
        assert_eq!(status.as_str().parse(), Ok(*status));
    }
    for reason in environment::StatusReason::VARIANTS {
        assert_eq!(json!(reason), reason.as_str());
        assert_eq!(reason.as_str().parse(), Ok(*reason));
    }
    for kind in EventKind::VARIANTS {
        assert_eq!(json!(kind), kind.as_str());
        assert_eq!(kind.as_str().parse(), Ok(*kind));
    }
    for role in [identity::Role::User, identity::Role::Admin] {
        assert_eq!(json!(role), role.as_str());
        assert_eq!(role.as_str().parse(), Ok(role));
    }
    for permission in [
        identity::Permission::Read,
        identity::Permission::Write,
        identity::Permission::Admin,
    ] {
        assert_eq!(json!(permission), permission.as_str());
        assert_eq!(permission.as_str().parse(), Ok(permission));
    }
    for action in audit::AuditAction::VARIANTS {
        assert_eq!(json!(action), action.as_str());
        assert_eq!(action.as_str().parse(), Ok(*action));
    }
    for reason in pool::MissReason::VARIANTS {
        assert_eq!(json!(reason), reason.as_str());
        assert_eq!(reason.as_str().parse(), Ok(*reason));
    }
    for outcome in audit::AuditOutcome::VARIANTS {
        assert_eq!(json!(outcome), outcome.as_str());
        assert_eq!(outcome.as_str().parse(), Ok(*outcome));
    }
    for state in webhook::DeliveryState::VARIANTS {
        assert_eq!(json!(state), state.as_str());
        assert_eq!(state.as_str().parse(), Ok(*state));
    }
    for action in identity::TicketAction::VARIANTS {
        assert_eq!(json!(action), action.as_str());
        assert_eq!(action.as_str().parse(), Ok(*action));
    }
}
