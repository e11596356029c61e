{{- define "agentbox.name" -}}
{{- ternary .Release.Name (printf "%s-agentbox" .Release.Name) (contains "agentbox" .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The labels of every object of the release. */}}
{{- define "agentbox.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: agentbox
{{ include "agentbox.selector" . }}
{{- end }}

{{- define "agentbox.selector" -}}
app.kubernetes.io/name: agentbox
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The deployment's name, which labels the boxes of this release. */}}
{{- define "agentbox.deployment" -}}
{{- $name := .Values.cluster.deployment | default (printf "%s-%s" .Release.Namespace .Release.Name) -}}
{{- if gt (len $name) 40 }}{{ fail (printf "cluster.deployment: `%s` is longer than 40 characters" $name) }}{{ end -}}
{{- $name -}}
{{- end }}

{{- define "agentbox.image" -}}
{{- $image := index . 1 -}}
{{- with (index . 0) -}}
{{- $registry := ternary "" (printf "%s/" .Values.image.registry) (empty .Values.image.registry) -}}
{{- if $image.digest -}}
{{- printf "%s%s@%s" $registry $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s%s:%s" $registry $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The values of each service by its name, as JSON. */}}
{{- define "agentbox.services" -}}
{{- $services := dict -}}
{{- range $key, $name := dict "apiGateway" "api-gateway" "auth" "auth" "scheduler" "scheduler" "execProxy" "exec-proxy" "webhooks" "webhooks" "provisioner" "provisioner" -}}
{{- $_ := set $services $name (mergeOverwrite (deepCopy $.Values.defaults) (deepCopy (index $.Values.services $key))) -}}
{{- end -}}
{{- $services | toJson -}}
{{- end }}

{{/* The name of a service's Secret: (list $ service). */}}
{{- define "agentbox.secret" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- $values := index (include "agentbox.services" $root | fromJson) $service -}}
{{- $values.existingSecret | default (printf "%s-%s" (include "agentbox.name" $root) $service) -}}
{{- end }}

{{/* The name of the Secret of an event consumer: (list $ consumer). */}}
{{- define "agentbox.eventConsumerSecret" -}}
{{- $consumer := index . 1 -}}
{{- $consumer.existingSecret | default (printf "%s-events-%s" (include "agentbox.name" (index . 0)) $consumer.name) -}}
{{- end }}

{{- define "agentbox.postgresSecret" -}}
{{- .Values.postgres.existingSecret | default (printf "%s-postgres" (include "agentbox.name" .)) -}}
{{- end }}

{{/* The name of the Secret with the certificate of a store: (list $ "nats"). Empty: there is none. */}}
{{- define "agentbox.tlsSecret" -}}
{{- $root := index . 0 -}}
{{- $store := index . 1 -}}
{{- $values := index $root.Values $store -}}
{{- if $values.tlsSecret -}}
{{- $values.tlsSecret -}}
{{- else if $values.enabled -}}
{{- printf "%s-%s-tls" (include "agentbox.name" $root) $store -}}
{{- end -}}
{{- end }}

{{/* The volume with the certificate and the key of a store's server: (list $ "nats"). The process gets
     them by its group. Postgres refuses a key that others can read. */}}
{{- define "agentbox.serverTls" -}}
- name: tls
  secret:
    secretName: {{ include "agentbox.tlsSecret" . }}
    defaultMode: 0440
    items:
      - { key: tls.crt, path: tls.crt }
      - { key: tls.key, path: tls.key }
{{- end }}

{{- define "agentbox.natsUrl" -}}
{{- if .Values.nats.enabled -}}
tls://{{ include "agentbox.name" . }}-nats:4222
{{- else -}}
{{- required "nats.url is needed when nats.enabled is false" .Values.nats.url -}}
{{- end -}}
{{- end }}

{{/* The security context of every container: no rights beyond those of an ordinary user. */}}
{{- define "agentbox.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* The scheduling fields of a Pod: (list $ values component). */}}
{{- define "agentbox.placement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- $component := index . 2 -}}
{{- with $values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with $values.affinity }}
affinity: {{ toJson . }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "agentbox.selector" $root | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
{{- end }}

{{/* The clusters file. */}}
{{- define "agentbox.clusters" -}}
{{- $own := dict
      "deployment" (include "agentbox.deployment" .)
      "boxd_image" (include "agentbox.image" (list . .Values.boxdImage))
      "cluster_cidrs" .Values.cluster.cidrs
      "system_namespace" .Release.Namespace
      "image_pull_secrets" .Values.image.pullSecrets
      "shared_pull_secrets" .Values.image.sharedPullSecrets }}
{{- $settings := mergeOverwrite $own (deepCopy .Values.cluster.settings) }}
{{- $cluster := dict "name" .Values.cluster.name "labels" .Values.cluster.labels "driver" "kubernetes" "kubernetes" $settings }}
{{- with .Values.cluster.allowedRegistries }}
{{- $_ := set $cluster "allowed_registries" . }}
{{- end }}
{{- dict "clusters" (list $cluster) | toPrettyJson }}
{{- end }}

{{/* The pools file. The values may have large numbers, which toJson would write as 1e+06. */}}
{{- define "agentbox.pools" -}}
{{- $pools := dict }}
{{- range $name, $pool := .Values.pools }}
{{- $sizes := dict "min_ready" (int64 $pool.min_ready) "max_ready" (int64 $pool.max_ready) }}
{{- $_ := set $pools $name (mergeOverwrite (deepCopy $pool) $sizes) }}
{{- end }}
{{- dict "pools" $pools | toPrettyJson }}
{{- end }}

{{/* The configuration of the NATS server. */}}
{{- define "agentbox.natsConfig" }}
server_name: {{ include "agentbox.name" . }}-nats
port: 4222
# Without a monitoring port: its answers name subjects, users and addresses, and it has no login.
tls {
  cert_file: /etc/nats-tls/tls.crt
  key_file: /etc/nats-tls/tls.key
  # Seconds for a handshake, on a busy node too.
  timeout: 5
}
max_payload: 1MB
lame_duck_duration: 30s
lame_duck_grace_period: 5s
jetstream {
  store_dir: /data
  max_file_store: {{ .Values.nats.fileStore }}
  max_memory_store: {{ .Values.nats.memoryStore }}
  # An acknowledged message is on the disk.
  sync_interval: always
}
# A user for each service and for the provisioner, with its permissions. The permissions of an event
# consumer are those of `event-reader` under its own name.
authorization {
  users: [
    {{- $all := .Files.Get "files/nats-permissions.json" | fromJson }}
    {{- range $service, $permissions := omit $all "event-reader" }}
    {
      user: {{ $service | quote }}
      password: {{ printf "$PASSWORD_%s" ($service | upper | replace "-" "_") }}
      permissions: {{ toRawJson $permissions }}
    }
    {{- end }}
    {{- range .Values.eventConsumers }}
    {
      user: {{ .name | quote }}
      password: {{ printf "$PASSWORD_EVENTS_%s" (.name | upper | replace "-" "_") }}
      permissions: {{ index $all "event-reader" | toRawJson | replace "event-reader" .name }}
    }
    {{- end }}
  ]
}
{{- end }}

{{/* The volume claim of a StatefulSet: (list $ storage component). */}}
{{- define "agentbox.claim" -}}
{{- $root := index . 0 -}}
{{- $storage := index . 1 -}}
- metadata:
    name: data
    labels:
      {{- include "agentbox.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ index . 2 }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with $storage.className }}
    storageClassName: {{ . }}
    {{- end }}
    resources: { requests: { storage: {{ $storage.size }} } }
{{- end }}
