{{- define "text-classifier.image" -}}
{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end }}

{{- define "text-classifier.settings" -}}
{{- if and .Values.prometheus.enabled .Values.podMonitor.enabled }}
{{- fail "prometheus and podMonitor read the same metrics: switch one of them off" }}
{{- end }}
{{- $settings := deepCopy .Values.settings }}
{{- if .Values.apiKeys.enabled }}
{{- $_ := set $settings "WHETSTONE_API_KEYS_FILE" "/etc/whetstone/api-keys" }}
{{- end }}
{{- if .Values.tracing.enabled }}
{{- $_ := set $settings "WHETSTONE_TRACING_SAMPLE_RATE" .Values.tracing.sampleRate }}
{{- end }}
{{- if .Values.tracing.enabled }}
{{- $_ := set $settings "WHETSTONE_TRACING_URL" .Values.tracing.url }}
{{- end }}
{{- if .Values.capture.enabled }}
{{- $_ := set $settings "WHETSTONE_CAPTURE" .Values.capture.address }}
{{- end }}
{{- if .Values.capture.enabled }}
{{- $_ := set $settings "WHETSTONE_CAPTURE_RATE" .Values.capture.rate }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{- /* A changed setting is a new ConfigMap, and so a rollout. */}}
{{- define "text-classifier.settingsName" -}}
text-classifier-{{ include "text-classifier.settings" . | sha256sum | trunc 10 }}
{{- end }}
