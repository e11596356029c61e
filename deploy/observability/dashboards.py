#!/usr/bin/env python3
"""Writes the Grafana dashboards from the tables in this file.

  python3 dashboards.py           write dashboards/*.json, and copy them and the rules into the chart
  python3 dashboards.py --check   fail if a written file differs

A row is a title and its panels. A panel is a title, a unit and its queries; each query is an expression
and the legend of its series. The chart has copies, because Helm reads files of its own directory only.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE.parent / "helm" / "files" / "observability"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
# Grafana's grid has 24 columns.
COLUMNS, HEIGHT = 24, 8


def rate(metric, by="", where=""):
    """The per-second rate of a counter."""
    selected = f"rate({metric}{where}[$__rate_interval])"
    return f"sum by ({by}) ({selected})" if by else f"sum({selected})"


def quantile(q, metric, by="", where=""):
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', labels, where)})"


def quantiles(metric, where=""):
    return [(quantile(q, metric, where=where), f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)]


def panel(title, unit, *queries, text="", kind="timeseries", width=8, exemplars=False, floor=0):
    return {
        "title": title, "unit": unit, "queries": queries, "text": text, "kind": kind,
        "width": width, "exemplars": exemplars, "floor": floor,
    }


REQUESTS = "agentbox_http_server_request_duration_seconds"
SERVED = "agentbox_rpc_server_call_duration_seconds"
SENT = "agentbox_rpc_client_call_duration_seconds"
STORED = "agentbox_messaging_client_operation_duration_seconds"
PROCESSED = "agentbox_messaging_process_duration_seconds"
STATEMENTS = "agentbox_db_client_operation_duration_seconds"
STAGES = "agentbox_environment_stage_duration_seconds"
CALLS = "agentbox_runtime_call_duration_seconds"
ATTEMPTS = "agentbox_webhooks_attempt_duration_seconds"
SPANS = "traces_span_metrics_duration_seconds"
CREATE = '{http_request_method="POST",http_route="/api/v1/environments"}'
EXEC = '{http_request_method="POST",http_route="/api/v1/environments/{id}/exec"}'
ROUTE = "{{http_request_method}} {{http_route}}"
EXEMPLARS = "From the collector's metrics of spans. A point is an exemplar: it leads to its trace."
# Every replica reports the same number.
SHARED = "Each replica sees the same; the panel shows the highest."

API = [
    ("Objectives", [
        panel("Failed creates, last hour", "percentunit", ("agentbox:create_errors:ratio_rate1h", "creates"),
              kind="stat", width=6, text="Part of `POST /environments` that was answered with 5xx."),
        panel("Failed execs, last hour", "percentunit", ("agentbox:exec_errors:ratio_rate1h", "execs"),
              kind="stat", width=6, text="Part of the execs that were answered with 5xx."),
        panel("Slow creates, last hour", "percentunit", ("agentbox:create_slow:ratio_rate1h", "creates"),
              kind="stat", width=6, text="Part of the environments that ran later than 5 s after their request."),
        panel("Slow execs, last hour", "percentunit", ("agentbox:exec_slow:ratio_rate1h", "execs"),
              kind="stat", width=6, text="Part of the canary's execs of `true` that took longer than 0.5 s."),
    ]),
    ("Requests", [
        panel("Requests by status", "reqps",
              (rate(REQUESTS + "_count", "http_response_status_code"), "{{http_response_status_code}}")),
        panel("Requests by route", "reqps",
              (f"topk(10, {rate(REQUESTS + '_count', 'http_request_method, http_route')})", ROUTE)),
        panel("Answers with 5xx by route", "reqps",
              (rate(REQUESTS + "_count", "http_request_method, http_route", '{http_response_status_code=~"5.."}'),
               ROUTE)),
        panel("Time to the answer's head", "s", *quantiles(REQUESTS)),
        panel("p99 by route", "s",
              (f"topk(10, {quantile(0.99, REQUESTS, 'http_request_method, http_route')})", ROUTE)),
        panel("p95 of creates and execs", "s", (quantile(0.95, REQUESTS, where=CREATE), "create"),
              (quantile(0.95, REQUESTS, where=EXEC), "exec")),
        panel("p95 of the gateway's spans", "s",
              (quantile(0.95, SPANS, "span_name",
                        '{service_name="agentbox-api-gateway",span_kind="SPAN_KIND_SERVER"}'), "{{span_name}}"),
              text=EXEMPLARS, width=16, exemplars=True),
        panel("Requests refused with 429", "reqps",
              (rate("agentbox_rate_limited_total", "category"), "{{category}}")),
    ]),
    ("Connections and limits", [
        panel("Requests in progress", "short",
              ("sum by (http_request_method) (agentbox_http_server_active_requests)", "{{http_request_method}}")),
        panel("Open client connections", "short", ("sum by (instance) (agentbox_http_connections)", "{{instance}}")),
        panel("Open streams", "short", ("sum by (kind) (agentbox_streams)", "{{kind}}")),
        panel("Limits reached", "ops", (rate("agentbox_limits_reached_total", "limit"), "{{limit}}")),
        panel("Requests counted by one replica alone", "reqps",
              (rate("agentbox_rate_limit_counted_locally_total"), "requests"),
              text="NATS did not count them, so limits are exact on each replica only."),
        panel("p95 of a stream", "s", (quantile(0.95, "agentbox_stream_duration_seconds", "kind"), "{{kind}}")),
    ]),
    ("Accounts", [
        panel("Credentials checked", "ops",
              (rate("agentbox_auth_authentications_total", "kind, outcome"), "{{kind}} {{outcome}}")),
        panel("Logins", "ops", (rate("agentbox_auth_logins_total", "outcome"), "{{outcome}}")),
        panel("Password hashes", "s", *quantiles("agentbox_auth_password_hash_duration_seconds")),
        panel("Logins refused, the queue was full", "ops",
              (rate("agentbox_auth_password_queue_full_total"), "logins")),
        panel("Uses of API keys not recorded", "ops", (rate("agentbox_auth_key_uses_dropped_total"), "uses")),
        panel("Deleted users, the scheduler notified", "ops",
              (rate("agentbox_auth_user_deletions_notified_total", "outcome"), "{{outcome}}")),
        panel("Replicas that answer", "short", ('sum by (job) (up{job=~"agentbox-.+"})', "{{job}}")),
    ]),
    ("Webhooks", [
        panel("Attempts of deliveries", "ops", (rate(ATTEMPTS + "_count", "outcome"), "{{outcome}}")),
        panel("p95 of an attempt", "s", (quantile(0.95, ATTEMPTS, "outcome"), "{{outcome}}")),
        panel("Events, and deliveries given up", "ops", (rate("agentbox_webhooks_events_total"), "events"),
              (rate("agentbox_webhooks_dead_deliveries_total"), "deliveries given up"),
              text="A delivery that is given up is kept, and sent again only on request."),
    ]),
]

ENVIRONMENTS = [
    ("Environments", [
        panel("Environments", "short",
              ("sum by (status) (max by (cluster, status) (agentbox_environments))", "{{status}}"), text=SHARED),
        panel("Status changes", "ops",
              (rate("agentbox_environment_transitions_total", "status"), "{{status}}")),
        panel("Failures by reason", "ops",
              (rate("agentbox_environment_transitions_total", "reason", '{status="failed"}'), "{{reason}}")),
        panel("Create to running", "s", *quantiles(STAGES, '{stage="running"}')),
        panel("p95 of the stages of a create", "s", (quantile(0.95, STAGES, "stage"), "{{stage}}"),
              text="queued, admitted and running begin with the request, the others with the stage before."),
        panel("Environments of users", "short",
              ("topk(10, max by (owner) (agentbox_owner_environments))", "{{owner}}"), text=SHARED),
        panel("Cores reserved by users", "short",
              ("topk(10, max by (owner) (agentbox_owner_cpu_cores))", "{{owner}}"), text=SHARED),
        panel("Memory reserved by users", "bytes",
              ("topk(10, max by (owner) (agentbox_owner_memory_bytes))", "{{owner}}"), text=SHARED),
        panel("Storage reserved by users", "bytes",
              ("topk(10, max by (owner) (agentbox_owner_storage_bytes))", "{{owner}}"), text=SHARED),
    ]),
    ("Reconciles", [
        panel("Reconciles", "ops", (rate("agentbox_reconcile_duration_seconds_count"), "reconciles")),
        panel("Duration of a reconcile", "s", *quantiles("agentbox_reconcile_duration_seconds")),
        panel("Failed steps", "ops", (rate("agentbox_reconcile_failures_total", "step"), "{{step}}")),
        panel("Age of the oldest due environment", "s",
              ("max by (cluster) (agentbox_reconcile_oldest_due_age_seconds)", "{{cluster}}"), text=SHARED),
        panel("Due environments", "short",
              ("max by (cluster) (agentbox_reconcile_due_environments)", "{{cluster}}"), text=SHARED),
        panel("Since the last comparison of boxes and rows", "s",
              ("time() - max by (cluster) (agentbox_reconcile_last_comparison_timestamp_seconds)", "{{cluster}}")),
        panel("Orphans removed", "ops", (rate("agentbox_orphans_removed_total"), "boxes"),
              text="Boxes without an environment."),
        panel("Ended without an archive", "ops", (rate("agentbox_archives_given_up_total"), "environments"),
              text="Their last output is lost."),
        panel("Rows that were not readable", "ops", (rate("agentbox_rows_unreadable_total"), "rows")),
    ]),
    ("Pools", [
        panel("Boxes of pools", "short",
              ("max by (pool, status) (agentbox_pool_boxes)", "{{pool}} {{status}}"),
              ("max by (pool) (agentbox_pool_target_boxes)", "{{pool}} wanted")),
        panel("Creates that match a pool", "ops",
              (rate("agentbox_pool_requests_total", "pool, outcome"), "{{pool}} {{outcome}}"),
              text="hit: a ready box was claimed. Otherwise the reason of the miss."),
        panel("Failed starts of boxes for a pool", "ops",
              (rate("agentbox_pool_start_failures_total", "pool"), "{{pool}}")),
    ]),
    ("Clusters and drivers", [
        panel("Reachable clusters", "short", ("min by (cluster) (agentbox_cluster_reachable)", "{{cluster}}")),
        panel("Free cores", "short",
              ('min by (cluster) (agentbox_cluster_cpu_cores{state="available"})', "{{cluster}}")),
        panel("Free memory", "bytes",
              ('min by (cluster) (agentbox_cluster_memory_bytes{state="available"})', "{{cluster}}")),
        panel("Calls of a driver", "ops",
              (rate(CALLS + "_count", "cluster, call, outcome"), "{{cluster}} {{call}} {{outcome}}")),
        panel("p95 of a call", "s", (quantile(0.95, CALLS, "cluster, call"), "{{cluster}} {{call}}")),
        panel("Connections to boxes", "short",
              ("sum by (cluster) (agentbox_exec_box_connections)", "{{cluster}}")),
        panel("File system of images", "bytes",
              ("sum by (state) (agentbox_image_filesystem_bytes)", "{{state}}")),
        panel("Images removed", "ops", (rate("agentbox_images_removed_total"), "images")),
        panel("Pulls refused", "ops", (rate("agentbox_image_pulls_refused_total", "cause"), "{{cause}}")),
    ]),
    ("Canary", [
        panel("Steps", "ops", (rate("agentbox_canary_steps_total", "step, outcome"), "{{step}} {{outcome}}")),
        panel("p95 of a step", "s",
              (quantile(0.95, "agentbox_canary_step_duration_seconds", "step"), "{{step}}")),
        panel("Clock of the API against the canary's", "s", ("agentbox_canary_clock_offset_seconds", "offset"),
              floor=None),
    ]),
]

EXECUTIONS = [
    ("Sessions", [
        panel("Sessions begun", "ops", (rate("agentbox_exec_sessions_total", "kind"), "{{kind}}")),
        panel("Open sessions", "short", ("sum by (kind) (agentbox_exec_sessions_open)", "{{kind}}")),
        panel("Failures", "ops", (rate("agentbox_exec_failures_total", "kind, code"), "{{kind}} {{code}}")),
        panel("Duration of an exec", "s", *quantiles("agentbox_exec_duration_seconds"),
              text="It contains the run of the user's command."),
        panel("p95 of a session", "s",
              (quantile(0.95, "agentbox_exec_session_duration_seconds", "kind, outcome"), "{{kind}} {{outcome}}")),
        panel("Limits of exec-proxy reached", "ops",
              (rate("agentbox_exec_limits_reached_total", "limit"), "{{limit}}")),
    ]),
    ("Executions and files", [
        panel("Executions", "ops", (rate("agentbox_executions_started_total"), "started"),
              (rate("agentbox_executions_ended_total", "status"), "{{status}}")),
        panel("Running executions", "short", ("sum(agentbox_executions_running)", "executions")),
        panel("Output of executions", "Bps",
              (rate("agentbox_execution_output_bytes_total", "stream"), "{{stream}}"),
              (rate("agentbox_execution_output_gap_bytes_total", "stream"), "{{stream}}, no longer kept")),
        panel("Gaps in the output", "ops", (rate("agentbox_execution_output_gaps_total", "stream"), "{{stream}}")),
        panel("Operations on executions", "ops",
              (rate("agentbox_execution_operation_duration_seconds_count", "operation, error_type"),
               "{{operation}} {{error_type}}")),
        panel("Operations on files", "ops",
              (rate("agentbox_file_operation_duration_seconds_count", "operation, error_type"),
               "{{operation}} {{error_type}}")),
        panel("p95 of an operation on files", "s",
              (quantile(0.95, "agentbox_file_operation_duration_seconds", "operation"), "{{operation}}")),
        panel("Bytes of users", "Bps",
              (rate("agentbox_exec_bytes_total", "kind, direction"), "{{kind}} {{direction}}"), width=16),
    ]),
    ("Streams", [
        panel("Open sessions by process", "short", ("sum by (job) (agentbox_sessions_open)", "{{job}}")),
        panel("Bytes of sessions", "Bps",
              (rate("agentbox_session_bytes_total", "job, direction"), "{{job}} {{direction}}")),
        panel("p95 of the waits for a window", "s",
              (quantile(0.95, "agentbox_session_window_wait_seconds", "job"), "{{job}}"),
              text="The reader was slower than the writer."),
        panel("Frames sent again", "ops", (rate("agentbox_session_retransmits_total", "job"), "{{job}}")),
        panel("Frames ignored", "ops",
              (rate("agentbox_session_ignored_frames_total", "job, reason"), "{{job}} {{reason}}")),
        panel("Sessions not accepted in time", "ops", (rate("agentbox_session_expired_total", "job"), "{{job}}")),
        panel("Resumed after a lost connection", "ops", (rate("agentbox_exec_resumes_total"), "operations")),
        panel("Spans of boxes refused", "ops", (rate("agentbox_exec_box_spans_refused_total"), "spans")),
        panel("p95 of the spans in exec-proxy and boxd", "s",
              (quantile(0.95, SPANS, "service_name, span_name", '{service_name=~"agentbox-(exec-proxy|boxd)"}'),
               "{{service_name}} {{span_name}}"), text=EXEMPLARS, exemplars=True),
    ]),
]

STORES = [
    ("NATS: requests", [
        panel("Requests served", "reqps", (rate(SERVED + "_count", "rpc_method"), "{{rpc_method}}")),
        panel("Requests that failed", "reqps",
              (rate(SENT + "_count", "rpc_method, rpc_response_status_code", '{rpc_response_status_code!="ok"}'),
               "{{rpc_method}} {{rpc_response_status_code}}"),
              text="As the process that sent them saw it."),
        panel("p95 by method", "s", (quantile(0.95, SERVED, "rpc_method"), "{{rpc_method}}")),
        panel("Requests refused", "reqps",
              (rate("agentbox_rpc_server_refused_calls_total", "job, reason"), "{{job}} {{reason}}")),
        panel("Messages dropped, a subscription was full", "ops",
              (rate("agentbox_bus_slow_consumer_total", "job"), "{{job}}")),
        panel("Components that are not ready", "short",
              ("max by (job, component) (agentbox_unready)", "{{job}} {{component}}"),
              text="No data: every component of every process is ready."),
    ]),
    ("NATS: streams", [
        panel("Messages stored", "ops",
              (rate(STORED + "_count", "messaging_destination_template, error_type"),
               "{{messaging_destination_template}} {{error_type}}")),
        panel("p95 until a message is stored", "s",
              (quantile(0.95, STORED, "messaging_destination_template"), "{{messaging_destination_template}}")),
        panel("Commands processed", "ops",
              (rate(PROCESSED + "_count", "messaging_destination_template, error_type"),
               "{{messaging_destination_template}} {{error_type}}")),
        panel("Messages that wait for a consumer", "short",
              ("max by (messaging_consumer_group_name) (agentbox_messaging_consumer_pending_messages)",
               "{{messaging_consumer_group_name}}"), text=SHARED),
        panel("Messages not acknowledged yet", "short",
              ("max by (messaging_consumer_group_name) (agentbox_messaging_consumer_unacknowledged_messages)",
               "{{messaging_consumer_group_name}}"), text=SHARED),
        panel("Age of the oldest row of the outbox", "s", ("max(agentbox_outbox_oldest_age_seconds)", "outbox"),
              text=SHARED),
        panel("Published from the outbox", "ops", (rate("agentbox_outbox_published_total", "kind"), "{{kind}}"),
              (rate("agentbox_outbox_failures_total"), "failed attempts")),
        panel("Rows in the outbox", "short", ("max(agentbox_outbox_pending_rows)", "rows"), text=SHARED),
        panel("Dead letters", "short", ("sum by (job) (increase(agentbox_dead_letters_total[$__range]))", "{{job}}"),
              kind="stat"),
        panel("Commands that expired", "ops", (rate("agentbox_commands_expired_total"), "commands")),
        panel("Audit entries", "ops", (rate("agentbox_auth_audit_entries_chained_total"), "chained"),
              (rate("agentbox_audit_entries_deferred_total"), "delivered again")),
    ]),
    ("Postgres", [
        panel("Statements", "ops",
              (rate(STATEMENTS + "_count", "db_operation_name, db_collection_name"),
               "{{db_operation_name}} {{db_collection_name}}")),
        panel("p95 of a statement", "s",
              (f"topk(10, {quantile(0.95, STATEMENTS, 'db_operation_name, db_collection_name')})",
               "{{db_operation_name}} {{db_collection_name}}")),
        panel("Statements by service", "s", (quantile(0.99, STATEMENTS, "job"), "{{job}} p99")),
        panel("Connections", "short",
              ("sum by (job, db_client_connection_state) (agentbox_db_client_connection_count)",
               "{{job}} {{db_client_connection_state}}"),
              ("sum by (job) (agentbox_db_client_connection_max)", "{{job}} at most")),
        panel("Requests that failed because of Postgres", "ops",
              (rate("agentbox_db_client_errors_total", "job, error_type"), "{{job}} {{error_type}}")),
        panel("Rows removed after their retention", "ops", (rate("agentbox_rows_purged_total"), "scheduler"),
              (rate("agentbox_auth_rows_purged_total", "table"), "auth {{table}}")),
    ]),
    ("Processes", [
        panel("Memory", "bytes", ("sum by (job, instance) (agentbox_process_memory_usage_bytes)",
                                  "{{job}} {{instance}}")),
        panel("Processors", "short", (rate("agentbox_process_cpu_time_seconds", "job, instance"),
                                      "{{job}} {{instance}}")),
        panel("Open file descriptors", "short",
              ("sum by (job, instance) (agentbox_process_open_file_descriptor_count)", "{{job}} {{instance}}")),
        panel("Spans", "ops", (rate("agentbox_spans_exported_total", "job"), "{{job}}"),
              (rate("agentbox_spans_dropped_total", "job, reason"), "{{job}} dropped: {{reason}}")),
        panel("Versions", "short", ("count by (service, version) (agentbox_build_info)", "{{service}} {{version}}"),
              kind="stat", width=16),
    ]),
]

DASHBOARDS = {
    "api": ("AgentBox: API", API),
    "environments": ("AgentBox: environments, pools and drivers", ENVIRONMENTS),
    "executions": ("AgentBox: executions and streams", EXECUTIONS),
    "stores": ("AgentBox: NATS and Postgres", STORES),
}


def target(reference, expression, legend, exemplars):
    query = {
        "refId": reference, "datasource": PROMETHEUS, "expr": expression, "legendFormat": legend,
        "range": True, "instant": False,
    }
    if exemplars:
        query["exemplar"] = True
    return query


def defaults(member):
    field = {"unit": member["unit"]}
    if member["floor"] is not None:
        field["min"] = member["floor"]
    if member["unit"] == "percentunit":
        field["decimals"] = 3
    if member["kind"] == "timeseries":
        field["custom"] = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"}
    return field


def options(kind):
    if kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
            "textMode": "value_and_name", "colorMode": "none", "graphMode": "none",
            "justifyMode": "auto", "wideLayout": True, "showPercentChange": False, "orientation": "auto",
            "percentChangeColorMode": "standard",
        }
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def dashboard(uid, title, rows):
    panels, number, top = [], 1, 0
    for row, members in rows:
        panels.append({
            "id": number, "type": "row", "title": row, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        })
        number, top, left = number + 1, top + 1, 0
        for member in members:
            if left + member["width"] > COLUMNS:
                top, left = top + HEIGHT, 0
            made = {
                "id": number, "type": member["kind"], "title": member["title"], "datasource": PROMETHEUS,
                "gridPos": {"x": left, "y": top, "w": member["width"], "h": HEIGHT},
                "targets": [
                    target(chr(ord("A") + index), expression, legend, member["exemplars"])
                    for index, (expression, legend) in enumerate(member["queries"])
                ],
                "fieldConfig": {"defaults": defaults(member), "overrides": []},
                "options": options(member["kind"]),
            }
            if member["text"]:
                made["description"] = member["text"]
            panels.append(made)
            number, left = number + 1, left + member["width"]
        top += HEIGHT
    links = [
        {
            "title": name, "type": "link", "icon": "dashboard", "tooltip": "", "tags": [], "url": f"/d/agentbox-{other}",
            "asDropdown": False, "targetBlank": False, "includeVars": True, "keepTime": True,
        }
        for other, (name, _) in DASHBOARDS.items() if other != uid
    ]
    return {
        "uid": f"agentbox-{uid}", "title": title, "tags": ["agentbox"], "schemaVersion": 42,
        "editable": True, "graphTooltip": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"}, "fiscalYearStartMonth": 0,
        "links": links, "annotations": {"list": []},
        "templating": {"list": [{
            "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus",
            "skipUrlSync": False, "multi": False, "includeAll": False,
        }]},
        "panels": panels,
    }


def files():
    """Each written file and its content."""
    for uid, (title, rows) in DASHBOARDS.items():
        text = json.dumps(dashboard(uid, title, rows), indent=2) + "\n"
        yield HERE / "dashboards" / f"{uid}.json", text
        yield CHART / "dashboards" / f"{uid}.json", text
    yield CHART / "rules.yaml", (HERE / "prometheus" / "rules.yaml").read_text()


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = []
    for path, text in files():
        if path.is_file() and path.read_text() == text:
            continue
        if check:
            stale.append(str(path.relative_to(HERE.parent.parent)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit("run `python3 deploy/observability/dashboards.py`; these files differ: " + ", ".join(stale))


if __name__ == "__main__":
    main()
