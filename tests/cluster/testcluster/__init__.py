"""A real single-node Kubernetes for tests, without Docker and without an image registry.

The whole node lives in one set of Linux namespaces. Its first process (`node.py`) starts etcd, the API server, the
controller manager, the scheduler, containerd, the kubelet and kube-proxy; when that process ends, the kernel ends
everything else: every component, shim and container, and every mount. What the node leaves on the host is a network
interface, cgroups, and a state folder, which `host.py` removes.
"""
