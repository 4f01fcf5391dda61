"""The product's images, from the executables that cargo built in profile `ci`."""

import os

from .images import Image, write
from .layout import ROOT

TARGET = ROOT / "target" / "ci"
# Where the archives go.
ARCHIVES = ROOT / "target" / "images"

# Repository → executable.
EXECUTABLES = {
    "localhost/disagg-worker": "disagg-worker",
    "localhost/disagg-router": "disagg-router",
    "localhost/disagg-operator": "disagg-operator",
}
TAG = os.environ.get("DISAGG_IMAGE_TAG", "e2e")


def write_images():
    """Paths of the archives."""
    archives = []
    for repository, executable in EXECUTABLES.items():
        archive = ARCHIVES / f"{executable}.tar"
        write(Image(f"{repository}:{TAG}", (TARGET / executable,), (f"/usr/local/bin/{executable}",)), archive)
        archives.append(archive)
    return archives
