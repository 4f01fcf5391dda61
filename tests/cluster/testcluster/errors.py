"""The error that is shown to a person as one line."""


class ClusterError(Exception):
    """A problem of this machine or the cluster that a person must know, and what to do about it."""
