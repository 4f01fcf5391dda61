"""Configuration files and command lines of the node's components."""

import json
from dataclasses import asdict

from .layout import (
    AUDIT_LOG, CGROUP, CLUSTER_DOMAIN, CONTAINERD_SOCKET, NODE, NODE_IP, NODE_POD_RANGE, POD_IMAGE,
    POD_RANGE, SERVICE_RANGE, STATE,
)  # fmt: skip

PKI = STATE / "pki"
CNI_CONFIG = STATE / "cni"
# Values that the kubelet would set for the whole machine. The node sees files with these values instead.
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def write_all(machine, binaries):
    """Writes every file that the components read, and what `node.py` needs to know."""
    for folder in ("cni", "log", "kubelet", "etcd", "podlogs", "sysctl"):
        (STATE / folder).mkdir(parents=True)
    (CNI_CONFIG / "10-bridge.conflist").write_text(json.dumps(cni()))
    (STATE / "containerd.toml").write_text(containerd(machine))
    (STATE / "kubelet.yaml").write_text(json.dumps(kubelet(machine), indent=1))
    (STATE / "kube-proxy.yaml").write_text(json.dumps(kube_proxy(), indent=1))
    (STATE / "audit-policy.yaml").write_text(json.dumps(audit_policy(), indent=1))
    (STATE / "resolv.conf").write_text(f"nameserver {NODE_IP}\n")
    for name, value in SYSCTLS.items():
        (STATE / "sysctl" / name.replace("/", "_")).write_text(f"{value}\n")
    facts = {"machine": asdict(machine) | {"cgroup_roots": [str(root) for root in machine.cgroup_roots]}}
    (STATE / "node.json").write_text(json.dumps(facts | {"binaries": str(binaries)}))


def cni():
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        # The host has a route to the pods, so nothing needs to be masqueraded.
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "dataDir": str(STATE / "cni-addresses"), "ranges": [[{"subnet": NODE_POD_RANGE}]]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


def containerd(machine):
    # Where root may not lower an oom_score_adj, no sandbox would start without `restrict_oom_score_adj`.
    return f"""\
version = 2
root = "{STATE}/containerd"
state = "/run/containerd-state"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{POD_IMAGE}"
  enable_unprivileged_ports = true
  restrict_oom_score_adj = {"false" if machine.may_lower_oom_score else "true"}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{machine.snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{CNI_CONFIG}"
"""


def kubelet(machine):
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        # From 1.35 on a kubelet refuses cgroup v1 unless told not to.
        "failCgroupV1": False,
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [NODE_IP],
        "resolvConf": f"{STATE}/resolv.conf",
        "podLogsDir": f"{STATE}/podlogs",
        "volumePluginDir": f"{STATE}/kubelet-plugins",
        # The tests are not about a full disk of this machine.
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # A ConfigMap reaches its volumes, and a failed container is restarted, soon enough for a test to wait.
        "syncFrequency": "5s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "nodeStatusUpdateFrequency": "4s",
        "oomScoreAdj": 0,
        "maxPods": 250,
    }  # fmt: skip


def kube_proxy():
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{STATE}/kube-proxy.kubeconfig"},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE,
        "mode": "iptables",
        "oomScoreAdj": 0,
        # These are limits of the whole machine; zero leaves them alone.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def audit_policy():
    """An audit policy that records the requests of ServiceAccounts outside kube-system, whose rights the tests check."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    }


ETCD = ["etcd", f"--data-dir={STATE}/etcd"]
CONTAINERD = ["containerd", "--config", f"{STATE}/containerd.toml"]
API_SERVER = [
    "kube-apiserver",
    "--etcd-servers=http://127.0.0.1:2379",
    f"--advertise-address={NODE_IP}",
    "--secure-port=6443",
    f"--service-cluster-ip-range={SERVICE_RANGE}",
    "--authorization-mode=Node,RBAC",
    "--enable-admission-plugins=NodeRestriction",
    "--allow-privileged=true",
    "--endpoint-reconciler-type=lease",
    f"--client-ca-file={PKI}/ca.crt",
    f"--tls-cert-file={PKI}/apiserver.crt",
    f"--tls-private-key-file={PKI}/apiserver.key",
    f"--kubelet-client-certificate={PKI}/apiserver-kubelet.crt",
    f"--kubelet-client-key={PKI}/apiserver-kubelet.key",
    f"--kubelet-certificate-authority={PKI}/ca.crt",
    "--kubelet-preferred-address-types=InternalIP",
    f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
    f"--service-account-key-file={PKI}/service-accounts.pub",
    f"--service-account-signing-key-file={PKI}/service-accounts.key",
    f"--requestheader-client-ca-file={PKI}/ca.crt",
    "--requestheader-allowed-names=front-proxy-client",
    "--requestheader-username-headers=X-Remote-User",
    "--requestheader-group-headers=X-Remote-Group",
    "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    f"--proxy-client-cert-file={PKI}/front-proxy.crt",
    f"--proxy-client-key-file={PKI}/front-proxy.key",
    f"--audit-policy-file={STATE}/audit-policy.yaml",
    f"--audit-log-path={AUDIT_LOG}",
]
CONTROLLER_MANAGER = [
    "kube-controller-manager",
    f"--kubeconfig={STATE}/kube-controller-manager.kubeconfig",
    "--use-service-account-credentials=true",
    "--leader-elect=false",
    "--bind-address=127.0.0.1",
    f"--root-ca-file={PKI}/ca.crt",
    f"--service-account-private-key-file={PKI}/service-accounts.key",
    f"--cluster-signing-cert-file={PKI}/ca.crt",
    f"--cluster-signing-key-file={PKI}/ca.key",
]
SCHEDULER = [
    "kube-scheduler",
    f"--kubeconfig={STATE}/kube-scheduler.kubeconfig",
    "--leader-elect=false",
    "--bind-address=127.0.0.1",
]
KUBELET = [
    "kubelet",
    f"--config={STATE}/kubelet.yaml",
    f"--kubeconfig={STATE}/kubelet.kubeconfig",
    f"--hostname-override={NODE}",
    f"--node-ip={NODE_IP}",
    f"--cert-dir={STATE}/kubelet-pki",
]
PROXY = ["kube-proxy", f"--config={STATE}/kube-proxy.yaml"]
DNS = ["dns", f"--kubeconfig={STATE}/admin.kubeconfig", f"--listen={NODE_IP}:53"]
