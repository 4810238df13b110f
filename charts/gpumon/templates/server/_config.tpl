{{/* What the chart knows of the server's settings; server.config goes over it. */}}
{{- define "gpumon.server.config" -}}
server:
  host: "*"
  {{- if .Values.server.tls.existingSecret }}
  tls_cert_file: /var/run/secrets/gpumon-tls/tls.crt
  tls_key_file: /var/run/secrets/gpumon-tls/tls.key
  {{- end }}
auth:
  mode: {{ .Values.auth.mode }}
  {{- if eq .Values.auth.mode "token" }}
  token_file: /var/run/secrets/gpumon/token
  {{- else if eq .Values.auth.mode "serviceAccount" }}
  audience: {{ .Values.auth.audience | quote }}
  {{- $agent := printf "%s/%s" .Release.Namespace (include "gpumon.agent.serviceAccountName" .) }}
  service_accounts: {{ concat (list $agent) .Values.auth.serviceAccounts | join ", " | quote }}
  {{- end }}
  {{- if .Values.auth.read.enabled }}
  read_token_file: /var/run/secrets/gpumon-read/token
  {{- end }}
storage:
  output_directory: /data
  {{- if not (and .Values.server.persistence.enabled .Values.server.persistence.existingClaim) }}
  max_disk_mb: {{ include "gpumon.nineTenths" .Values.server.persistence.size }}
  {{- end }}
logging:
  log_file: ""
{{- end }}

{{/* The port that the container listens on; the Service has its own. */}}
{{- define "gpumon.server.port" -}}
{{- $given := (.Values.server.config.server | default dict).port }}
{{- $port := ternary 5000 $given (kindIs "invalid" $given) | int }}
{{- if lt $port 1 }}{{ fail "server.config.server.port must be a port from 1 on: the Service leads there" }}{{ end }}
{{- $port }}
{{- end }}
