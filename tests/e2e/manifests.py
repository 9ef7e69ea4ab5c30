"""The settings of a node's parts, as texts to be formatted, and what every cluster has from the start."""

from __future__ import annotations

from typing import Final

CONTAINERD: Final = """\
version = 3
root = "{directory}/images"
state = "{directory}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{directory}/runc"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
"""

CNI: Final = """\
{{"cniVersion": "1.0.0", "name": "{bridge}", "plugins": [
  {{"type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {{"type": "host-local", "dataDir": "{directory}/addresses", "routes": [{{"dst": "0.0.0.0/0"}}],
            "ranges": [[{{"subnet": "{net}.0/24", "rangeStart": "{net}.10"}}]]}}}}]}}
"""

# The kubelet looks at ConfigMaps and Secrets every `syncFrequency`: ten seconds, for tests wait for it.
KUBELET: Final = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{socket}
address: {address}
port: 10250
readOnlyPort: 0
healthzPort: 0
tlsCertFile: {key}
tlsPrivateKeyFile: {key}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {ca}}}}}
authorization: {{mode: Webhook}}
clusterDNS: [{address}]
clusterDomain: cluster.local
resolvConf: {directory}/resolv.conf
podLogsDir: {directory}/pod-logs
volumePluginDir: {directory}/plugins
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
protectKernelDefaults: false
kubeAPIQPS: 100
kubeAPIBurst: 200
syncFrequency: 10s
nodeStatusUpdateFrequency: 5s
serializeImagePulls: false
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}}
imageGCHighThresholdPercent: 100
"""

KUBE_PROXY: Final = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: {kubeconfig}}}
hostnameOverride: {node}
clusterCIDR: {net}.0/24
detectLocalMode: ClusterCIDR
nodePortAddresses: ["{address}/32"]
healthzBindAddress: 127.0.0.1:20256
metricsBindAddress: 127.0.0.1:20249
oomScoreAdj: 0
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
nftables: {{minSyncPeriod: 100ms, syncPeriod: 30s}}
"""

# Two blocks: in one, `template` would answer before `kubernetes`.
COREFILE: Final = """\
cluster.local:53 {reverse}.in-addr.arpa:53 {{
  bind {address}
  errors
  kubernetes cluster.local {reverse}.in-addr.arpa {{
    kubeconfig {kubeconfig}
    pods insecure
    ttl 1
  }}
}}
.:53 {{
  bind {address}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""

BOOTSTRAP: Final = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: requeue.dev/loop
reclaimPolicy: Delete
volumeBindingMode: Immediate
allowVolumeExpansion: true
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: e2e-coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: e2e-coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "e2e:coredns"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: e2e-provisioner}
rules:
- {apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, create, update, delete]}
- {apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [persistentvolumeclaims/status], verbs: [update]}
- {apiGroups: [storage.k8s.io], resources: [storageclasses], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: e2e-provisioner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-provisioner}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "e2e:provisioner"}]
"""
