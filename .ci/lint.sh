#!/usr/bin/env bash
# Checks the rules of this repository that the compiler does not check. `make check-fast` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0

# refuse PATTERN RULE: prints each line of Rust that matches, except comments, and fails.
refuse() {
  local found
  found=$(git grep -nP "$1" -- '*.rs' | grep -vP '^[^:]+:\d+:\s*//' || true)
  if [ -n "$found" ]; then
    printf '%s\n  %s\n' "$found" "$2" >&2
    status=1
  fi
}

# A log line contains an error with its causes. `%error` omits the causes.
error_rule='log an error as `error = %ErrorChain(&error)` (agentbox_contracts), which writes its causes'
refuse '(^\s*|[(,]\s*|=\s*)[%?](error|err|e)\b' "$error_rule"
refuse '(^\s*|[(,]\s*)error = (?!%ErrorChain\()[^;]*,' "$error_rule"
refuse 'as &\(?dyn (std::error::)?Error\b' "$error_rule"

# One attribute has one name in all services (docs/traces.md).
refuse '(^\s*|[(,]\s*)environment = [%?]' 'name the attribute of an environment `environment.id`'

# docs/configuration.md lists the variables of the sources, and no others.
names() { grep -oE 'AGENTBOX_[A-Z0-9_]*[A-Z0-9]\b' | grep -vE '^AGENTBOX_(EXAMPLE|RATE_LIMIT$)' | sort -u; }
in_code=$(git grep -hE 'AGENTBOX_' -- '*.rs' '*.sh' '*.py' '*.yaml' '*.tpl' Makefile | names)
on_page=$(names < docs/configuration.md)
if ! difference=$(diff <(echo "$in_code") <(echo "$on_page")); then
  printf '%s\n  %s\n' "$difference" \
    'docs/configuration.md does not list the AGENTBOX_ variables of the sources (<: missing, >: unknown)' >&2
  status=1
fi

# The dashboards, and the chart's copies of them and of the rules, are generated.
if ! python3 deploy/observability/dashboards.py --check; then
  status=1
fi

# Each alert names a runbook that exists, and each runbook belongs to an alert.
runbooks=$(sed -nE 's|^ +runbook_url: https://runbooks\.agentbox\.dev/([a-z-]+)$|\1|p' \
  deploy/observability/prometheus/rules.yaml | sort -u)
pages=$(cd docs/runbooks && printf '%s\n' *.md | sed 's/\.md$//' | sort)
if ! difference=$(diff <(echo "$runbooks") <(echo "$pages")); then
  printf '%s\n  %s\n' "$difference" 'docs/runbooks must have a page for each alert (<: missing, >: unknown)' >&2
  status=1
fi

# Each alert has a case for promtool, and a row in the table that says how it is fired.
alerts=$(sed -nE 's/^ +- alert: ([A-Za-z]+)$/\1/p' deploy/observability/prometheus/rules.yaml | sort -u)
cases=$(sed -nE 's/^ +alertname: ([A-Za-z]+)$/\1/p' deploy/observability/prometheus/tests/alerts.yaml | sort -u)
rows=$(sed -nE 's/^\| \[([A-Za-z]+)\]\(runbooks.*/\1/p' docs/observability.md | sort -u)
for listed in cases rows; do
  if ! difference=$(diff <(echo "$alerts") <(echo "${!listed}")); then
    printf '%s\n  %s\n' "$difference" \
      "prometheus/tests/alerts.yaml and docs/observability.md must name each alert ($listed: < missing, > unknown)" >&2
    status=1
  fi
done

# docs/metrics.md lists the metrics of the sources, and no others.
defined=$(git grep -hoE '"agentbox_[a-z0-9_]+"' -- '*metrics.rs' ':!*/tests/*' | tr -d '"' | sort -u)
described=$(sed -nE 's/^\| `(agentbox_[a-z0-9_]+)`.*/\1/p' docs/metrics.md | sort -u)
if ! difference=$(diff <(echo "$defined") <(echo "$described")); then
  printf '%s\n  %s\n' "$difference" \
    'docs/metrics.md does not list the metrics of the sources (<: missing, >: unknown): UPDATE_METRICS=1 cargo test metrics_reference' >&2
  status=1
fi

# A dashboard, a rule, a runbook or another page names no metric that does not exist. The names of crates
# begin like those of metrics.
known=$(
  echo "$described"
  sed -nE 's/^\| `(agentbox_[a-z0-9_]+)` \| histogram .*/\1_bucket\n\1_sum\n\1_count/p' docs/metrics.md
  git grep -hoE '^name = "agentbox-[a-z-]+"' -- '*Cargo.toml' | sed -E 's/^name = "(.*)"$/\1/; s/-/_/g'
)
used=$(git grep -noP '(?<![\w:.])agentbox_[a-z0-9_]*[a-z0-9]\b(?!:)' -- deploy/observability deploy/helm 'docs/*.md' ':!docs/metrics.md' ':!docs/decisions')
unknown=$(known=$known awk -F: '
  BEGIN { split(ENVIRON["known"], names, "\n"); for (i in names) is_known[names[i]] }
  NF && !($NF in is_known)' <<< "$used")
if [ -n "$unknown" ]; then
  printf '%s\n  %s\n' "$unknown" 'docs/metrics.md has no such metric' >&2
  status=1
fi

exit "$status"
