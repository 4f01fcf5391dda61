"""Keys, certificates and kubeconfigs of the cluster, made with openssl at each start."""

import base64
import json
import subprocess

from .errors import ClusterError
from .layout import API_SERVICE_IP, CLUSTER_DOMAIN, NODE, NODE_IP

DAYS = "30"

# Name of the files → subject. The groups and names are those that Kubernetes' built-in roles are bound to.
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kube-proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE}",
}
API_NAMES = [
    "DNS:localhost", "DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc",
    f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}", f"IP:{API_SERVICE_IP}", f"IP:{NODE_IP}", "IP:127.0.0.1",
]  # fmt: skip


def make(folder, kubeconfigs):
    """Writes everything into `folder`, and `NAME.kubeconfig` for each client into `kubeconfigs`."""
    folder.mkdir(parents=True)
    new_key(folder / "ca.key")
    openssl("req", "-x509", "-new", "-key", folder / "ca.key", "-subj", "/CN=test-cluster", "-days", DAYS, "-out", folder / "ca.crt")
    openssl("genrsa", "-out", folder / "service-accounts.key", "2048")
    openssl("rsa", "-in", folder / "service-accounts.key", "-pubout", "-out", folder / "service-accounts.pub")
    certificate(folder, "apiserver", "/CN=kube-apiserver", API_NAMES)
    certificate(folder, "apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    certificate(folder, "front-proxy", "/CN=front-proxy-client")
    for name, subject in CLIENTS.items():
        certificate(folder, name, subject, [f"DNS:{NODE}", f"IP:{NODE_IP}"] if name == "kubelet" else ())
        (kubeconfigs / f"{name}.kubeconfig").write_text(kubeconfig(folder, name))


def certificate(folder, name, subject, names=()):
    new_key(folder / f"{name}.key")
    extensions = folder / f"{name}.extensions"
    lines = ["extendedKeyUsage=clientAuth,serverAuth"]
    if names:
        lines.append("subjectAltName=" + ",".join(names))
    extensions.write_text("\n".join(lines))
    request = folder / f"{name}.csr"
    openssl("req", "-new", "-key", folder / f"{name}.key", "-subj", subject, "-out", request)
    openssl(
        "x509", "-req", "-in", request, "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial",
        "-days", DAYS, "-extfile", extensions, "-out", folder / f"{name}.crt",
    )  # fmt: skip


def new_key(path):
    openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", path)


def kubeconfig(folder, name):
    """JSON, which is YAML too."""
    data = lambda file: base64.b64encode((folder / file).read_bytes()).decode()  # noqa: E731
    server = {"server": f"https://{NODE_IP}:6443", "certificate-authority-data": data("ca.crt")}
    user = {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "current-context": "test",
    }
    return json.dumps(config, indent=1)


def openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
