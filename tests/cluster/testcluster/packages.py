"""The Debian packages that the node needs.

Where systemd runs, containerd's package starts a daemon. The node uses neither that daemon nor its socket.
"""

import os
import shutil
import subprocess
import sys

from .errors import ClusterError

# Package → a file or command that it installs.
NEEDED = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "openssl": "openssl",
    "util-linux": "unshare",
}


def missing():
    return [package for package, proof in NEEDED.items() if not (os.path.exists(proof) or shutil.which(proof))]


def ensure():
    """Installs what is missing with apt-get."""
    packages = missing()
    if not packages:
        return
    names = " ".join(packages)
    if not shutil.which("apt-get"):
        raise ClusterError(f"the test cluster needs these packages (names as in Debian): {names}. Install them")
    print(f"installing {names}", file=sys.stderr, flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "--quiet", *packages]
    for command in (["apt-get", "update", "--quiet"], install):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(done.stdout, file=sys.stderr)
            raise ClusterError(f"`{' '.join(command)}` failed; install these packages yourself: {names}")
    if packages := missing():
        raise ClusterError(f"installed, and still not found: {' '.join(packages)}")
