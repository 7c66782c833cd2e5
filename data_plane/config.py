"""The settings of a gateway."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import click

from pointsman.settings import Address, setting


@dataclass(frozen=True)
class Settings:
    """Read once, at the start."""

    control_plane: str = setting("127.0.0.1:7400", "Address of the control plane; several, separated by commas, are tried in turn.")
    listen: Address = setting(Address("127.0.0.1", 7500), "Address of gRPC; port 0 picks a free one.")
    http: Address = setting(Address("127.0.0.1", 7580), "Address of HTTP; port 0 picks a free one.")
    state_dir: Path | None = setting(
        None, "Folder for the last good state, to start without a control plane; absent: nothing is kept.", kind=click.Path(path_type=Path)
    )
    gateway_id: str = setting(socket.gethostname(), "Name of this gateway in rollouts and answers; absent: the host's name.")
    app: tuple[str, ...] = setting((), "Serve only this app; may be repeated; absent: all.")
    environment: tuple[str, ...] = setting((), "Serve only this environment; may be repeated; absent: all.")
    default_environment: str = setting("production", "Environment of a trigger that names none.")
    secrets_dir: Path | None = setting(
        None,
        "Folder with a file for each secret that is not in a variable POINTSMAN_SECRET_<NAME>.",
        kind=click.Path(exists=True, file_okay=False, path_type=Path),
    )
    drain_delay_seconds: float = setting(
        0.0, "How long to go on serving after SIGTERM, unready, so that load balancers notice.", kind=click.FloatRange(0, 3600)
    )
    drain_seconds: float = setting(30.0, "How long running triggers may go on after that.", kind=click.FloatRange(0, 3600))

    def control_planes(self) -> list[Address]:
        """Raises ValueError when one of them is not host:port."""
        return [Address.parse(part) for part in self.control_plane.split(",")]
