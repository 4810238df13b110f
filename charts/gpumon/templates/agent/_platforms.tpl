{{/*
What a platform needs, as YAML: where the kubelet's directory is, the runtime class, and how NVIDIA's library gets into a
container that asks for no GPU.

default           NVIDIA's runtime, by the runtime class nvidia where the cluster has it, else as the nodes' default
gpu-operator      the operator makes the runtime class nvidia; where no cluster can be looked at, it is taken for granted
k0s, microk8s     as default, with their own kubelet directories
eks-bottlerocket  its runtime takes the wish for GPUs from a mount, not from the environment of an unprivileged container
gke               there is no NVIDIA runtime: the driver lies in a directory of the node, and its devices can only be opened
                  by a pod that asks for a GPU or is privileged
kind              no GPU, so no runtime; see agent.mockNvml
*/}}
{{- define "gpumon.platform" -}}
{{- $platform := .Values.agent.platform -}}
{{- $kubelets := dict "k0s" "/var/lib/k0s/kubelet" "microk8s" "/var/snap/microk8s/common/var/lib/kubelet" -}}
{{- $classes := dict "gke" "none" "eks-bottlerocket" "none" "kind" "none" -}}
kubeletRootDir: {{ get $kubelets $platform | default "/var/lib/kubelet" }}
runtimeClass: {{ get $classes $platform | default "look" }}
driverDirectory: {{ ternary "/home/kubernetes/bin/nvidia" "" (eq $platform "gke") | quote }}
privileged: {{ eq $platform "gke" }}
devicesByMount: {{ eq $platform "eks-bottlerocket" }}
{{- end }}

{{/* The runtime class, empty for none. Not looked for without podMetadata, as who may not make a ClusterRole may not look. */}}
{{- define "gpumon.runtimeClassName" -}}
{{- if .Values.agent.mockNvml.enabled }}
{{- else if ne .Values.agent.runtimeClassName "auto" }}{{ .Values.agent.runtimeClassName }}
{{- else if eq (include "gpumon.platform" . | fromYaml).runtimeClass "look" }}
{{- $looks := and .Values.agent.podMetadata.enabled (lookup "v1" "Namespace" "" "kube-system") }}
{{- if and $looks (lookup "node.k8s.io/v1" "RuntimeClass" "" "nvidia") }}nvidia
{{- else if and (not $looks) (eq .Values.agent.platform "gpu-operator") }}nvidia{{ end }}
{{- end }}
{{- end }}

{{- define "gpumon.kubeletRootDir" -}}
{{- .Values.agent.kubeletRootDir | default (include "gpumon.platform" . | fromYaml).kubeletRootDir | trimSuffix "/" }}
{{- end }}

{{/* Labels by which a node is known to have an NVIDIA GPU: label → the value it must have, empty for any. */}}
{{- define "gpumon.gpuLabels" -}}
nvidia.com/gpu.present: "true" # GPU feature discovery, gpu-operator, and by hand
feature.node.kubernetes.io/pci-10de.present: "true" # node feature discovery, as gpu-operator sets it up
feature.node.kubernetes.io/pci-0302_10de.present: "true" # node feature discovery by itself: 3D controllers,
feature.node.kubernetes.io/pci-0300_10de.present: "true" # and cards with a display
cloud.google.com/gke-accelerator: ""
k8s.amazonaws.com/accelerator: ""
karpenter.k8s.aws/instance-gpu-manufacturer: nvidia
eks.amazonaws.com/instance-gpu-manufacturer: nvidia
kubernetes.azure.com/accelerator: nvidia
{{- end }}

{{/* "yes" where nodes can be looked at and none has one of these labels or GPUs to give; else empty. */}}
{{- define "gpumon.noGpuNodes" -}}
{{- if .Values.agent.podMetadata.enabled -}}
{{- $labels := include "gpumon.gpuLabels" . | fromYaml -}}
{{- $nodes := (lookup "v1" "Node" "" "").items -}}
{{- $found := not (empty (include "gpumon.unlabelledGpuNodes" . | fromJsonArray)) -}}
{{- range $nodes -}}
{{- $its := .metadata.labels | default dict -}}
{{- range $label, $value := $labels }}{{ if and (hasKey $its $label) (or (not $value) (eq (get $its $label) $value)) }}{{ $found = true }}{{ end }}{{ end -}}
{{- end -}}
{{- if and $nodes (not $found) }}yes{{ end -}}
{{- end -}}
{{- end }}

{{/* Names of nodes that have GPUs to give and none of these labels, as where NVIDIA's device plugin was installed by its
plain manifest. A lookup: it sees what is there at an install or upgrade, and nothing in `helm template`. Not without
podMetadata, as who may not make a ClusterRole may not list nodes. */}}
{{- define "gpumon.unlabelledGpuNodes" -}}
{{- $labels := include "gpumon.gpuLabels" . | fromYaml | keys -}}
{{- $names := list -}}
{{- if .Values.agent.podMetadata.enabled -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- $its := .metadata.labels | default dict -}}
{{- $known := false -}}
{{- range $labels }}{{ if hasKey $its . }}{{ $known = true }}{{ end }}{{ end -}}
{{- if and (not $known) (ne (dig "status" "allocatable" "nvidia.com/gpu" "0" . | toString) "0") -}}
{{- $names = append $names .metadata.name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names | sortAlpha | toJson -}}
{{- end }}

{{/* Nodes with an NVIDIA GPU; one of the terms is enough. */}}
{{- define "gpumon.gpuNodes" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      {{- range $label, $value := include "gpumon.gpuLabels" . | fromYaml }}
      - matchExpressions:
          - key: {{ $label }}
            {{- if $value }}
            operator: In
            values: [{{ $value | quote }}]
            {{- else }}
            operator: Exists
            {{- end }}
      {{- end }}
      {{- range include "gpumon.unlabelledGpuNodes" . | fromJsonArray }}
      - matchFields:
          - key: metadata.name
            operator: In
            values: [{{ . }}]
      {{- end }}
{{- end }}
