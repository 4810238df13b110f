{{/* Names. Cut so far that the longest suffix still fits into 63 characters. */}}
{{- define "gpumon.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "gpumon.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "gpumon.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gpumon.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gpumon.agent.fullname" -}}{{ include "gpumon.fullname" . }}-agent{{- end }}
{{- define "gpumon.server.fullname" -}}{{ include "gpumon.fullname" . }}-server{{- end }}
{{- define "gpumon.auth.fullname" -}}{{ include "gpumon.fullname" . }}-auth{{- end }}
{{- define "gpumon.mock.fullname" -}}{{ include "gpumon.fullname" . }}-mock-nvml{{- end }}
{{- define "gpumon.devicePlugin.fullname" -}}{{ include "gpumon.fullname" . }}-fake-device-plugin{{- end }}

{{/* Cluster-wide objects: two releases of one name in two namespaces must not meet. */}}
{{- define "gpumon.clusterName" -}}{{ .Release.Namespace }}:{{ include "gpumon.fullname" . }}{{- end }}

{{- define "gpumon.agent.serviceAccountName" -}}
{{- if .Values.agent.serviceAccount.create }}{{ default (include "gpumon.agent.fullname" .) .Values.agent.serviceAccount.name }}
{{- else }}{{ required "agent.serviceAccount.create is false: set agent.serviceAccount.name to yours" .Values.agent.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "gpumon.server.serviceAccountName" -}}
{{- if .Values.server.serviceAccount.create }}{{ default (include "gpumon.server.fullname" .) .Values.server.serviceAccount.name }}
{{- else }}{{ required "server.serviceAccount.create is false: set server.serviceAccount.name to yours" .Values.server.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Labels. Selectors are immutable, so they stand apart and have nothing that a user or a version may change. Both take
(list root component). */}}
{{- define "gpumon.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "gpumon.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "gpumon.labels" -}}
{{- $root := index . 0 -}}
{{ include "gpumon.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of a pod: (list root component podLabels). No version among them: pods are replaced when what they run changes. */}}
{{- define "gpumon.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "gpumon.selectorLabels" . }}
{{- with merge (dict) (index . 2) $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (list root image) */}}
{{- define "gpumon.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* An INI file from section → key → value. null leaves a key at its default; a text of several lines is indented, as the
format has it; numbers as JSON, for Go would write a million as 1e+06. */}}
{{- define "gpumon.ini" -}}
{{- range $section, $keys := . }}
[{{ upper $section }}]
{{- range $key, $value := $keys }}
{{- if kindIs "string" $value }}
{{ printf "%s = %s" $key ($value | trim | replace "\n" "\n    ") | trim }}
{{- else if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end }}

{{/* Where the server is for those in the cluster. */}}
{{- define "gpumon.scheme" -}}{{ if .Values.server.tls.existingSecret }}https{{ else }}http{{ end }}{{- end }}
{{- define "gpumon.server.host" -}}{{ include "gpumon.server.fullname" . }}.{{ .Release.Namespace }}.svc{{- end }}
{{- define "gpumon.caSecret" -}}{{ default .Values.server.tls.existingSecret .Values.server.tls.caSecret }}{{- end }}

{{/* Secret and key of the token for sending, and of that for reading. */}}
{{- define "gpumon.tokenSecret" -}}{{ default (include "gpumon.auth.fullname" .) .Values.auth.existingSecret }}{{- end }}
{{- define "gpumon.tokenKey" -}}{{ if .Values.auth.existingSecret }}{{ .Values.auth.existingSecretKey }}{{ else }}token{{ end }}{{- end }}
{{- define "gpumon.readSecret" -}}{{ default (include "gpumon.auth.fullname" .) .Values.auth.read.existingSecret }}{{- end }}
{{- define "gpumon.readKey" -}}{{ if .Values.auth.read.existingSecret }}{{ .Values.auth.read.existingSecretKey }}{{ else }}read-token{{ end }}{{- end }}

{{/* Nine tenths, in MB, of a quantity such as 20Gi: what is written there stops before it is full. */}}
{{- define "gpumon.nineTenths" -}}
{{- $unit := regexFind "[A-Za-z]*$" . -}}
{{- $factors := dict "Mi" 1.048576 "Gi" 1073.741824 "Ti" 1099511.627776 "M" 1.0 "G" 1000.0 "T" 1000000.0 -}}
{{- mulf (trimSuffix $unit . | float64) (get $factors $unit) 0.9 | floor | int64 }}
{{- end }}

{{/* Environment variables: (list chart's user's), both lists. A variable that the user has takes the place of the chart's, as
a name may stand there only once. */}}
{{- define "gpumon.env" -}}
{{- $names := list -}}
{{- range index . 1 }}{{ $names = append $names .name }}{{ end -}}
{{- $kept := list -}}
{{- range index . 0 }}{{ if not (has .name $names) }}{{ $kept = append $kept . }}{{ end }}{{ end -}}
{{- concat $kept (index . 1) | toYaml }}
{{- end }}

{{/* An egress rule to the Kubernetes API. Where it is, no selector can say; policies are judged by its own port, behind the
Service: 6443 of most, 443 in clouds, 16443 of MicroK8s, 8443 of minikube. */}}
{{- define "gpumon.toKubernetes" -}}
- ports:
    - port: 443
    - port: 6443
    - port: 8443
    - port: 16443
{{- end }}

{{/* Egress rules to the server and to the DNS that knows where it is. Policies are judged by the port of the pod behind the
Service: OpenShift's DNS listens on 5353. */}}
{{- define "gpumon.toServer" -}}
- ports:
    {{- range list 53 5353 }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
- ports:
    - port: {{ include "gpumon.server.port" . }}
  to:
    - podSelector:
        matchLabels:
          {{- include "gpumon.selectorLabels" (list . "server") | nindent 10 }}
{{- end }}
