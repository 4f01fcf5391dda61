#!/usr/bin/env python3
"""A real single-node Kubernetes on this machine, for tests and for manual work. It needs only Linux, root, Go and Python;
`make cluster-up` and `make e2e` call it.

    cluster.py up                     start it, unless it runs
    cluster.py down                   stop it and remove all of it, also what a crash has left
    cluster.py env                    shell commands that make kubectl and helm work with it: eval "$(… env)"
    cluster.py run -- COMMAND…        run a command while it is up; stop it afterwards if this started it
    cluster.py tools -- COMMAND…      run a command with our kubectl and helm, on whatever cluster KUBECONFIG names
    cluster.py exec -- COMMAND…       run a command on the node
    cluster.py load ARCHIVE…          load image archives into the node
    cluster.py images                 build archives of the product's images from target/ci, and print their paths
    cluster.py build                  build the executables that it runs, and helm
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys

from testcluster import binaries, host, product
from testcluster.errors import ClusterError
from testcluster.layout import KUBECONFIG


def main():
    arguments = parse()
    # The exception lets what was begun clean up after itself.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return globals()[f"do_{arguments.verb}"](arguments)
    except (ClusterError, FileNotFoundError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down", "env", "images", "build"):
        verbs.add_parser(verb)
    for verb in ("run", "tools", "exec"):
        verbs.add_parser(verb).add_argument("command", nargs="+")
    verbs.add_parser("load").add_argument("archive", nargs="+")
    return parser.parse_args()


def do_up(_):
    host.up()
    print('`eval "$(python3 tests/cluster/cluster.py env)"` makes kubectl and helm work with it', file=sys.stderr)


def do_down(_):
    host.down()


def do_env(_):
    host.require_up()
    print(f"export KUBECONFIG={KUBECONFIG}\nexport PATH={tools()}:$PATH")


def tools():
    """Folders of kubectl and helm, in the form of PATH."""
    return f"{binaries.cluster()}:{binaries.helm().parent}"


def do_run(arguments):
    environment = {"KUBECONFIG": str(KUBECONFIG), "PATH": f"{tools()}:{os.environ['PATH']}"}
    with host.used():
        child = subprocess.Popen(arguments.command, env=os.environ | environment)
        try:
            status = child.wait()
            return status if status >= 0 else 128 - status
        finally:
            end(child)


def end(child):
    """Ends a child that still runs, first with SIGTERM."""
    for tell in (child.terminate, child.kill):
        if child.poll() is None:
            tell()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10)


def do_tools(arguments):
    os.environ["PATH"] = f"{tools()}:{os.environ['PATH']}"
    os.execvp(arguments.command[0], arguments.command)


def do_exec(arguments):
    command = host.enter(arguments.command)
    os.execvp(command[0], command)


def do_load(arguments):
    host.require_up()
    for archive in arguments.archive:
        host.load(archive)


def do_images(_):
    for archive in product.write_images():
        print(archive)


def do_build(_):
    print(binaries.cluster())
    print(binaries.helm())


if __name__ == "__main__":
    sys.exit(main())
