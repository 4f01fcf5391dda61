"""Where things are, and the addresses of the cluster."""

import os
import pathlib

# tests/cluster
SOURCES = pathlib.Path(__file__).resolve().parents[1]
ROOT = SOURCES.parents[1]

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "disagg"

# One cluster per machine, whatever the checkout. The path is short, since it holds unix sockets.
STATE = pathlib.Path("/var/lib/disagg-cluster")
# Beside the state folder and not in it, since these outlive it.
CHANGE_LOCK = pathlib.Path("/var/lib/disagg-cluster.change.lock")
USE_LOCK = pathlib.Path("/var/lib/disagg-cluster.use.lock")

KUBECONFIG = STATE / "admin.kubeconfig"
CONTAINERD_SOCKET = STATE / "containerd.sock"
AUDIT_LOG = STATE / "log" / "audit.log"

NODE = "node0"
# A link between the host and the node.
HOST_IP = "10.89.0.2"
NODE_IP = "10.89.0.1"
HOST_LINK = "disagg0"
NODE_LINK = "disagg0n"
POD_RANGE = "10.244.0.0/16"
NODE_POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"
CGROUP = "disagg-cluster"
POD_IMAGE = "localhost/pod:1"
