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


def average(metric, by="", where=""):
    """The mean of a histogram's samples."""
    return f"{rate(metric + '_sum', by, where)} / {rate(metric + '_count', by, where)}"


def quantiles(metric, where=""):
    return [(quantile(q, metric, where=where), f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)]


def panel(title, unit, *queries, text="", kind="timeseries", width=8, exemplars=False):
    return {
        "title": title, "unit": unit, "queries": queries, "text": text, "kind": kind,
        "width": width, "exemplars": exemplars,
    }


REQUESTS = "agentbox_http_request_duration_seconds"
RPC = "agentbox_rpc_duration_seconds"
SPANS = "traces_span_metrics_duration_seconds"
CREATE = '{method="POST",route="/api/v1/environments"}'
EXEC = '{method="POST",route="/api/v1/environments/{id}/exec"}'

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
        panel("Requests by status", "reqps", (rate(REQUESTS + "_count", "status"), "{{status}}")),
        panel("Requests by route", "reqps",
              (f"topk(10, {rate(REQUESTS + '_count', 'method, route')})", "{{method}} {{route}}")),
        panel("Answers with 5xx by route", "reqps",
              (rate(REQUESTS + "_count", "method, route", '{status=~"5.."}'), "{{method}} {{route}}")),
        panel("Time to the answer's head", "s", *quantiles(REQUESTS)),
        panel("p99 by route", "s",
              (f"topk(10, {quantile(0.99, REQUESTS, 'route')})", "{{route}}")),
        panel("p95 of creates and execs", "s", (quantile(0.95, REQUESTS, where=CREATE), "create"),
              (quantile(0.95, REQUESTS, where=EXEC), "exec")),
        panel("Server spans", "s",
              (quantile(0.95, SPANS, "span_name",
                        '{service_name="api-gateway",span_kind="SPAN_KIND_SERVER"}'), "{{span_name}}"),
              text="From the collector. A point is an exemplar: it leads to its trace.",
              width=16, exemplars=True),
        panel("Requests refused with 429", "reqps", (rate("agentbox_rate_limited_total", "category"), "{{category}}")),
    ]),
    ("Connections and limits", [
        panel("Open client connections", "short", ("sum by (instance) (agentbox_http_connections)", "{{instance}}")),
        panel("Open streams", "short", ("sum by (kind) (agentbox_streams)", "{{kind}}")),
        panel("Limits reached", "ops", (rate("agentbox_limits_reached_total", "limit"), "{{limit}}")),
        panel("Requests counted by one replica alone", "reqps",
              (rate("agentbox_rate_limit_counted_locally_total"), "requests"),
              text="NATS did not count them, so limits are exact on each replica only."),
        panel("Credentials checked", "ops",
              (rate("agentbox_auth_authentications_total", "kind, outcome"), "{{kind}} {{outcome}}")),
        panel("Logins", "ops", (rate("agentbox_auth_logins_total", "outcome"), "{{outcome}}")),
        panel("Password hashes", "s", *quantiles("agentbox_auth_password_hash_seconds")),
        panel("Logins refused, the queue was full", "ops",
              (rate("agentbox_auth_password_queue_full_total"), "logins")),
        panel("Replicas that answer", "short", ('sum by (job) (up{job=~"agentbox-.+"})', "{{job}}")),
    ]),
]

ENVIRONMENTS = [
    ("Life of environments", [
        panel("Status changes", "ops",
              (rate("agentbox_environment_transitions_total", "status"), "{{status}}")),
        panel("Failures by reason", "ops",
              (rate("agentbox_environment_transitions_total", "reason", '{status="failed"}'), "{{reason}}")),
        panel("Create to running", "s", *quantiles("agentbox_environment_start_seconds")),
    ]),
    ("Reconciles", [
        panel("Reconciles", "ops", (rate("agentbox_reconcile_seconds_count"), "reconciles")),
        panel("Time of a reconcile", "s", *quantiles("agentbox_reconcile_seconds")),
        panel("Failed steps", "ops", (rate("agentbox_reconcile_failures_total", "step"), "{{step}}")),
        panel("Orphans removed", "ops", (rate("agentbox_orphans_removed_total"), "boxes"),
              text="Boxes without an environment."),
        panel("Ended without an archive", "ops", (rate("agentbox_archives_given_up_total"), "environments"),
              text="Their last output is lost."),
        panel("Rows that were not readable", "ops", (rate("agentbox_rows_unreadable_total"), "rows")),
    ]),
    ("Drivers", [
        panel("Calls of a cluster", "ops",
              (rate("agentbox_runtime_call_seconds_count", "cluster, call"), "{{cluster}} {{call}}")),
        panel("p95 of a call", "s",
              (quantile(0.95, "agentbox_runtime_call_seconds", "cluster, call"), "{{cluster}} {{call}}")),
        panel("Connections to boxes", "short",
              ("sum by (cluster) (agentbox_exec_box_connections)", "{{cluster}}")),
        panel("File system of images", "bytes",
              ("sum by (state) (agentbox_image_filesystem_bytes)", "{{state}}")),
        panel("Images removed", "ops", (rate("agentbox_images_removed_total"), "images")),
        panel("Pulls refused", "ops", (rate("agentbox_image_pulls_refused_total", "cause"), "{{cause}}")),
    ]),
    ("Canary", [
        panel("Runs", "ops", (rate("agentbox_canary_steps_total", "step, outcome"), "{{step}} {{outcome}}")),
        panel("p95 of a step", "s",
              (quantile(0.95, "agentbox_canary_step_duration_seconds", "step"), "{{step}}")),
        panel("Clock of the API against the canary's", "s", ("agentbox_canary_clock_offset_seconds", "offset")),
    ]),
]

EXECUTIONS = [
    ("Sessions", [
        panel("Sessions begun", "ops", (rate("agentbox_exec_sessions_total", "kind"), "{{kind}}")),
        panel("Open sessions", "short", ("sum by (kind) (agentbox_exec_sessions_open)", "{{kind}}")),
        panel("Failures", "ops", (rate("agentbox_exec_failures_total", "kind, code"), "{{kind}} {{code}}")),
        panel("Duration of an exec", "s", *quantiles("agentbox_exec_duration_seconds"),
              text="It contains the run of the user's command."),
        panel("Bytes of users", "Bps", (rate("agentbox_exec_bytes_total", "direction"), "{{direction}}")),
        panel("Limits of exec-proxy reached", "ops",
              (rate("agentbox_exec_limits_reached_total", "limit"), "{{limit}}")),
    ]),
    ("Streams", [
        panel("Open sessions by process", "short", ("sum by (job) (agentbox_sessions_open)", "{{job}}")),
        panel("Frames sent again", "ops", (rate("agentbox_session_retransmits_total", "job"), "{{job}}")),
        panel("Frames dropped, the inbox was full", "ops",
              (rate("agentbox_session_dropped_frames_total", "job"), "{{job}}")),
        panel("Frames from another process", "ops",
              (rate("agentbox_session_foreign_frames_total", "job"), "{{job}}")),
        panel("Malformed frames", "ops", (rate("agentbox_session_malformed_frames_total", "job"), "{{job}}")),
        panel("Sessions not accepted in time", "ops", (rate("agentbox_session_expired_total", "job"), "{{job}}")),
        panel("Resumed after a lost connection", "ops", (rate("agentbox_exec_resumes_total"), "operations")),
        panel("Spans of boxes refused", "ops", (rate("agentbox_exec_box_spans_refused_total"), "spans")),
        panel("Spans in exec-proxy and boxd", "s",
              (quantile(0.95, SPANS, "service_name, span_name", '{service_name=~"exec-proxy|boxd"}'),
               "{{service_name}} {{span_name}}"),
              text="From the collector. A point is an exemplar: it leads to its trace.", exemplars=True),
    ]),
]

STORES = [
    ("NATS: requests", [
        panel("Requests by method", "reqps", (rate(RPC + "_count", "method"), "{{method}}")),
        panel("Requests that failed", "reqps",
              (rate(RPC + "_count", "method, outcome", '{outcome!="ok"}'), "{{method}} {{outcome}}")),
        panel("p95 by method", "s", (quantile(0.95, RPC, "method"), "{{method}}")),
        panel("Refused, the server was at its limit", "reqps", (rate("agentbox_rpc_refused_total", "job"), "{{job}}")),
        panel("Not processed, the deadline had passed", "reqps",
              (rate("agentbox_rpc_expired_total", "job"), "{{job}}")),
        panel("Messages dropped, a subscription was full", "ops",
              (rate("agentbox_bus_slow_consumer_total", "job"), "{{job}}")),
    ]),
    ("NATS: streams", [
        panel("Published from the outbox", "ops", (rate("agentbox_outbox_published_total", "kind"), "{{kind}}")),
        panel("Attempts to publish that failed", "ops", (rate("agentbox_outbox_failures_total"), "attempts")),
        panel("Dead letters", "short", ("sum by (job) (increase(agentbox_dead_letters_total[$__range]))", "{{job}}"),
              kind="stat"),
        panel("Commands that expired", "ops", (rate("agentbox_commands_expired_total"), "commands")),
        panel("Audit entries delivered again", "ops", (rate("agentbox_audit_entries_deferred_total"), "entries")),
        panel("Audit entries chained", "ops", (rate("agentbox_auth_audit_entries_chained_total"), "entries")),
    ]),
    ("Postgres", [
        panel("Statements", "ops",
              (rate("traces_span_metrics_calls_total", "service_name, span_name",
                    '{span_name=~"(SELECT|INSERT|UPDATE|DELETE) .+"}'), "{{service_name}} {{span_name}}"),
              text="From the spans of sampled requests."),
        panel("p95 of a statement", "s",
              (quantile(0.95, SPANS, "span_name", '{span_name=~"(SELECT|INSERT|UPDATE|DELETE) .+"}'),
               "{{span_name}}"), exemplars=True),
        panel("Rows removed after their retention", "ops", (rate("agentbox_rows_purged_total"), "scheduler"),
              (rate("agentbox_auth_rows_purged_total", "table"), "auth {{table}}")),
    ]),
    ("Telemetry", [
        panel("Spans dropped", "ops", (rate("agentbox_spans_dropped_total", "job, reason"), "{{job}} {{reason}}")),
        panel("Versions", "short", ("count by (exported_service, version) (agentbox_build_info)",
                                    "{{exported_service}} {{version}}"), kind="stat", width=16),
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


def defaults(unit, kind):
    field = {"unit": unit, "min": 0}
    if unit == "percentunit":
        field["decimals"] = 3
    if kind == "timeseries":
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
                "fieldConfig": {"defaults": defaults(member["unit"], member["kind"]), "overrides": []},
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
