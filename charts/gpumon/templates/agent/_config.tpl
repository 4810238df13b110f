{{/* What the chart knows of the agent's settings; agent.config goes over it. */}}
{{- define "gpumon.agent.config" -}}
{{- $mode := .Values.auth.mode -}}
authentication:
  {{- if ne $mode "none" }}
  token_file: /var/run/secrets/gpumon/token
  {{- end }}
server:
  server_host: {{ include "gpumon.scheme" . }}://{{ include "gpumon.server.host" . }}
  server_port: {{ .Values.server.service.port }}
  {{- if .Values.server.tls.existingSecret }}
  ca_file: /var/run/secrets/gpumon-ca/ca.crt
  {{- end }}
spool:
  directory: /var/spool/gpumon
  disk_mb: {{ include "gpumon.nineTenths" .Values.agent.spool.sizeLimit }}
status:
  host: "*"
kubernetes:
  pod_metadata: {{ ternary "on" "off" .Values.agent.podMetadata.enabled | quote }}
  dynamic_resources: {{ .Values.agent.podMetadata.dynamicResources }}
{{- if not .Values.agent.hostPID }}
gpu_metrics:
  include_processes: false
{{- end }}
{{- if .Values.agent.mockNvml.enabled }}
monitoring:
  fake_nvml: /etc/gpumon-mock/scenario.toml
{{- end }}
logging:
  log_file: ""
{{- end }}

{{/* The port of /healthz, /readyz and /metrics. */}}
{{- define "gpumon.agent.statusPort" -}}
{{- $given := (.Values.agent.config.status | default dict).port }}
{{- $port := ternary 9435 $given (kindIs "invalid" $given) | int }}
{{- if lt $port 1 }}{{ fail "agent.config.status.port must be a port from 1 on: the kubelet's probes ask there" }}{{ end }}
{{- $port }}
{{- end }}

{{/* The agent's environment. A simulated GPU needs no runtime of NVIDIA's; else it brings the library and every GPU, without
taking one from the scheduler, as a request for nvidia.com/gpu would. */}}
{{- define "gpumon.agent.env" -}}
{{- $platform := include "gpumon.platform" . | fromYaml -}}
- name: GPUMON_CONFIG
  value: /etc/gpumon/client_config.ini
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if .Values.agent.mockNvml.enabled }}
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- else }}
- name: NVIDIA_VISIBLE_DEVICES
  value: {{ ternary "/var/run/nvidia-container-devices" "all" $platform.devicesByMount }}
- name: NVIDIA_DRIVER_CAPABILITIES
  value: utility
{{- if $platform.driverDirectory }}
- name: LD_LIBRARY_PATH
  value: /usr/local/nvidia/lib64
{{- end }}
{{- end }}
{{- end }}
