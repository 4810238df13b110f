{{/*
What a platform needs, as YAML: where the kubelet's directory is, the runtime class, and how NVIDIA's library gets into a
container that asks for no GPU.

default           NVIDIA's runtime, by the runtime class nvidia where the cluster has it, else as the nodes' default
gpu-operator      the operator makes the runtime class nvidia
k0s, microk8s     as default, with their own kubelet directories
eks-bottlerocket  its runtime takes the wish for GPUs from a mount, not from the environment of an unprivileged container
gke               there is no NVIDIA runtime: the driver lies in a directory of the node, and its devices can only be opened
                  by a pod that asks for a GPU or is privileged
kind              no GPU, so no runtime; see agent.mockNvml
*/}}
{{- define "gpumon.platform" -}}
{{- $platform := .Values.agent.platform -}}
{{- $kubelets := dict "k0s" "/var/lib/k0s/kubelet" "microk8s" "/var/snap/microk8s/common/var/lib/kubelet" -}}
{{- $classes := dict "gpu-operator" "nvidia" "gke" "none" "eks-bottlerocket" "none" "kind" "none" -}}
kubeletRootDir: {{ get $kubelets $platform | default "/var/lib/kubelet" }}
runtimeClass: {{ get $classes $platform | default "look" }}
driverDirectory: {{ ternary "/home/kubernetes/bin/nvidia" "" (eq $platform "gke") | quote }}
privileged: {{ eq $platform "gke" }}
devicesByMount: {{ eq $platform "eks-bottlerocket" }}
{{- end }}

{{/* The runtime class, empty for none. */}}
{{- define "gpumon.runtimeClassName" -}}
{{- if .Values.agent.mockNvml.enabled }}
{{- else if ne .Values.agent.runtimeClassName "auto" }}{{ .Values.agent.runtimeClassName }}
{{- else }}
{{- $wanted := (include "gpumon.platform" . | fromYaml).runtimeClass }}
{{- if eq $wanted "nvidia" }}nvidia
{{- else if and (eq $wanted "look") (lookup "node.k8s.io/v1" "RuntimeClass" "" "nvidia") }}nvidia{{ end }}
{{- end }}
{{- end }}

{{- define "gpumon.kubeletRootDir" -}}
{{- .Values.agent.kubeletRootDir | default (include "gpumon.platform" . | fromYaml).kubeletRootDir | trimSuffix "/" }}
{{- end }}

{{/* Nodes with an NVIDIA GPU, by the label of whoever labels nodes there; one of them is enough. */}}
{{- define "gpumon.gpuNodes" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      {{- range $label := list "nvidia.com/gpu.present" "feature.node.kubernetes.io/pci-10de.present" "feature.node.kubernetes.io/pci-0302_10de.present" "feature.node.kubernetes.io/pci-0300_10de.present" }}
      - matchExpressions:
          - {key: {{ $label }}, operator: In, values: ["true"]}
      {{- end }}
      {{- range $label := list "cloud.google.com/gke-accelerator" "k8s.amazonaws.com/accelerator" }}
      - matchExpressions:
          - {key: {{ $label }}, operator: Exists}
      {{- end }}
      {{- range $label := list "kubernetes.azure.com/accelerator" "karpenter.k8s.aws/instance-gpu-manufacturer" "eks.amazonaws.com/instance-gpu-manufacturer" }}
      - matchExpressions:
          - {key: {{ $label }}, operator: In, values: [nvidia]}
      {{- end }}
{{- end }}
