"""What the control plane and the data plane must agree on: the wire contract, its errors, its rules, its expressions."""

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, once somebody asks: what looks it up takes a command as long to import as all its own modules."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("pointsman")
