"""The error that is shown to a person as one line."""


class ClusterError(Exception):
    """Something about this machine or the cluster that a person has to know, and what to do about it."""
