"""How a rollout is told: one line with the verdict, then who is behind, and who refused and why."""

from __future__ import annotations

import click

from control_plane.cli.output import harmless
from pointsman.v1.deployments_pb2 import Rollout


def tell_rollout(rollout: Rollout, release: str, environment: str) -> None:
    """E.g. `2/2 gateways serve v1.2.0 in staging, revision 57, 9 ms`."""
    milliseconds = rollout.duration.ToTimedelta().total_seconds() * 1000
    if not rollout.gateways_total:
        click.echo(f"no gateway is connected; those that come will serve {release} in {environment}, revision {rollout.revision}")
        return
    click.echo(
        f"{rollout.gateways_applied}/{rollout.gateways_total} gateways serve {release} in {environment}, "
        f"revision {rollout.revision}, {milliseconds:.0f} ms"
    )
    if rollout.gateways_pending:
        click.echo(f"  not yet: {', '.join(rollout.gateways_pending)} (they catch up by themselves)")
    for rejected in rollout.gateways_rejected:
        click.echo(f"  refused by {rejected.gateway_id}: {harmless(rejected.reason)}")
