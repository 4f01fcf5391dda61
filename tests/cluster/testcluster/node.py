"""The first process of the node's namespaces: sets them up, starts the components, and ends when one of them does.

    python3 -m testcluster.node [--with-stdin]

With `--with-stdin` it also ends with its standard input, and so with whoever holds the other end.
"""

import json
import os
import pathlib
import selectors
import signal
import ssl
import subprocess
import sys
import time
import urllib.request

from . import config
from .layout import HOST_IP, NODE, NODE_IP, NODE_LINK, STATE

# Touched when every component has been started.
STARTED = STATE / "started"
# Why the node ended, if it was not told to.
ENDED = STATE / "ended"
START_DEADLINE_S = 120


def main():
    try:
        node = Node(pathlib.Path(json.loads((STATE / "node.json").read_text())["binaries"]))
        isolate()
        join_network()
        node.start_all()
        STARTED.touch()
        node.watch(with_stdin="--with-stdin" in sys.argv)
    except NodeEnded as reason:
        ENDED.write_text(str(reason))
        sys.exit(str(reason))


class NodeEnded(Exception):
    """An error after which the node cannot continue."""


def isolate():
    """Mounts that must belong to the node alone. Nothing that it mounts later reaches the host."""
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    # The kubelet needs mounts that are shared with those of its pods.
    run("mount", "--make-rshared", "/")
    run("hostname", NODE)
    for name in config.SYSCTLS:
        target = f"/proc/sys/{name}"
        if os.path.exists(target):
            run("mount", "--bind", str(STATE / "sysctl" / name.replace("/", "_")), target)
    # Sockets of shims, network namespaces and the lock of iptables lie in /run.
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    for folder in ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers"):
        own = STATE / folder.strip("/").replace("/", "-")
        own.mkdir(exist_ok=True)
        os.makedirs(folder, exist_ok=True)
        run("mount", "--bind", str(own), folder)


def join_network():
    """Waits for the link that the host puts into this namespace."""
    deadline = time.monotonic() + START_DEADLINE_S
    while not os.path.exists(f"/proc/sys/net/ipv4/conf/{NODE_LINK}"):
        if time.monotonic() > deadline:
            raise NodeEnded(f"the host made no link {NODE_LINK}")
        time.sleep(0.02)
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{NODE_IP}/24", "dev", NODE_LINK)
    run("ip", "link", "set", NODE_LINK, "up")
    run("ip", "route", "add", "default", "via", HOST_IP)
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


class Node:
    def __init__(self, binaries):
        self.binaries = binaries
        # Process id → name.
        self.components = {}

    def start_all(self):
        self.start(config.CONTAINERD)
        self.start(config.ETCD)
        self.start(config.API_SERVER)
        self.wait_for_api_server()
        for command in (config.CONTROLLER_MANAGER, config.SCHEDULER, config.KUBELET, config.PROXY, config.DNS):
            self.start(command)

    def start(self, command):
        name = command[0]
        own = self.binaries / name
        with open(STATE / "log" / f"{name}.log", "wb") as log:
            child = subprocess.Popen(
                [str(own) if own.exists() else name, *command[1:]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.components[child.pid] = name

    def wait_for_api_server(self):
        tls = ssl.create_default_context(cafile=config.PKI / "ca.crt")
        tls.load_cert_chain(config.PKI / "admin.crt", config.PKI / "admin.key")
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            self.reap()
            try:
                # urllib would take a proxy from the environment.
                opener = urllib.request.build_opener(
                    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
                )
                with opener.open("https://127.0.0.1:6443/readyz", timeout=5):
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise NodeEnded(f"the API server is not ready after {START_DEADLINE_S} s: {error}") from error
            time.sleep(0.1)

    def reap(self):
        """Reaps ended processes, including those of containers. When a component ends, so does the node."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self.components.get(pid):
                code = os.waitstatus_to_exitcode(status)
                raise NodeEnded(f"{name} ended with {code}; see {STATE}/log/{name}.log")

    def watch(self, with_stdin):
        """Waits for the end of a component, of standard input, or for SIGTERM."""
        wakes, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        selector = selectors.DefaultSelector()
        selector.register(wakes, selectors.EVENT_READ)
        if with_stdin:
            selector.register(0, selectors.EVENT_READ)
        while True:
            self.reap()
            for key, _ in selector.select():
                read = os.read(key.fd, 4096)
                if key.fd == 0 and not read or signal.SIGTERM in read:
                    return


def run(*command):
    """Runs a command of the set-up. (`subprocess.run` reaps by pid, so it does not conflict with `reap`.)"""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise NodeEnded(f"`{' '.join(command)}`: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
