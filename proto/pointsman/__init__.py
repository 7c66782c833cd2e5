"""What the control plane and the data plane must agree on: the wire contract, its errors, its rules, its expressions."""

from importlib.metadata import version

__version__ = version("pointsman")
