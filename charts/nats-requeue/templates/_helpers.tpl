{{- define "nats-requeue.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Objects of the cluster carry the release's namespace: two releases of one name don't meet. */}}
{{- define "nats-requeue.clusterName" -}}
{{- printf "%s-%s" (include "nats-requeue.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "nats-requeue.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "nats-requeue.fullname" .) -}}
{{- end -}}

{{- define "nats-requeue.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "nats-requeue.labels" -}}
{{ include "nats-requeue.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of an object: (list . own), where `own` are annotations that it has by itself. Nothing where there are none. */}}
{{- define "nats-requeue.annotations" -}}
{{- with merge (dict) (index . 1) (index . 0).Values.annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels of what is not the operator: (list . component). */}}
{{- define "nats-requeue.labelsOf" -}}
{{- $labels := include "nats-requeue.labels" (index . 0) | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/component" (index . 1) -}}
{{- toYaml $labels -}}
{{- end -}}

{{- define "nats-requeue.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "nats-requeue.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Whether the cluster knows the kinds of the Prometheus operator. */}}
{{- define "nats-requeue.hasMonitoring" -}}
{{- if .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}yes{{ end -}}
{{- end -}}

{{- define "nats-requeue.image" -}}
{{- $where := required "image.repository: say where the image lies, like --set image.repository=registry.example/nats-requeue" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $where .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $where (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* JSON: {"namespaces": [...]}, empty for all of them. */}}
{{- define "nats-requeue.watched" -}}
{{- if and .Values.watchAllNamespaces .Values.watchNamespaces -}}
{{- fail "watchAllNamespaces and watchNamespaces: give one of them" -}}
{{- end -}}
{{- $some := .Values.watchNamespaces | default (list .Release.Namespace) -}}
{{- dict "namespaces" (ternary (list) $some .Values.watchAllNamespaces) | toJson -}}
{{- end -}}
