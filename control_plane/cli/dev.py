"""pointsman dev: a control plane, a gateway and an app on this machine, until Ctrl-C. A saved app file is released to staging."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from control_plane.cli.children import PLAIN, Child, ChildFailedError, running
from control_plane.cli.model import MODEL_PORT, free_port, told
from control_plane.cli.sample import ORDERS_PORT, SAMPLE_APP, order_service, sample_text
from control_plane.cli.saved import WatchedFile

FIRST_RELEASE = "v1.0.0"
LOOK_SECONDS = 0.2


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".pointsman"), show_default=True, help="Where state is kept.")
@click.option("--app-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Your own app file instead of the sample's.")
@click.option("--app", default=SAMPLE_APP, envvar="POINTSMAN_APP", show_default=True, help="The app's id.")
@click.option("--control-plane-port", type=click.IntRange(0, 65535), default=7400, show_default=True, help="gRPC of the control plane.")
@click.option("--control-plane-http-port", type=click.IntRange(0, 65535), default=7480, show_default=True, help="Its HTTP.")
@click.option("--gateway-port", type=click.IntRange(0, 65535), default=7500, show_default=True, help="gRPC of the gateway.")
@click.option("--gateway-http-port", type=click.IntRange(0, 65535), default=7580, show_default=True, help="Its HTTP.")
@click.option("--orders-port", type=click.IntRange(0, 65535), default=ORDERS_PORT, show_default=True, help="The sample's order service.")
@click.option("--model-port", type=click.IntRange(0, 65535), default=MODEL_PORT, show_default=True, help="The sample's model.")
def command(data_dir: Path, app_file: Path | None, app: str, **ports: int) -> None:
    """Run a control plane, a gateway and a sample app, until Ctrl-C. Whenever its file is saved, it is released, and deployed to staging.

    Example: pointsman dev --data-dir /tmp/try-pointsman
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with contextlib.ExitStack() as stack:
        try:
            orders_port = _serve_orders(stack, data_dir, ports["orders_port"])
            model = _serve_model(stack, data_dir, ports["model_port"])
            control_plane, gateway = _start(stack, data_dir, ports)
        except ChildFailedError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(error.strerror or str(error)) from error
        if app_file is None:
            file = data_dir / f"{app}.yaml"
            if not file.exists():
                file.write_text(sample_text(orders_port, int(model.http.rpartition(":")[2])))
        else:
            file = app_file
        run = _Commands(control_plane, app)
        watched = WatchedFile(file, data_dir / f"released-{app}")
        _fill(run, watched)
        _tell(control_plane, gateway, app, file, sample=app_file is None)
        died = _wait(ended, [control_plane, gateway, model], lambda: _release_when_saved(run, watched))
        if died is not None:
            code = died.stop()
            raise click.ClickException(f"{died.name} ended by itself (exit status {code}):\n{died.last_words}")
        click.echo("stopping")


def _serve_orders(stack: contextlib.ExitStack, data_dir: Path, port: int) -> int:
    """Port 0 is the one of the first start: the release that is stored calls it there, and never changes."""
    kept = data_dir / "orders-port"
    if port == 0 and kept.exists():
        port = int(kept.read_text())
    port = stack.enter_context(order_service(port))
    kept.write_text(str(port))
    return port


def _serve_model(stack: contextlib.ExitStack, data_dir: Path, port: int) -> Child:
    """As for orders, port 0 is the one of the first start."""
    kept = data_dir / "model-port"
    if port == 0 and kept.exists():
        port = int(kept.read_text())
    child = stack.enter_context(running("the model", "control_plane.cli.model", str(port)))
    kept.write_text(child.http.rpartition(":")[2])
    return child


def _start(stack: contextlib.ExitStack, data_dir: Path, ports: dict[str, int]) -> tuple[Child, Child]:
    def addresses(what: str) -> list[str]:
        return ["--listen", f"127.0.0.1:{ports[f'{what}_port']}", "--http", f"127.0.0.1:{ports[f'{what}_http_port']}"]

    store = f"sqlite:///{data_dir / 'pointsman.db'}"
    # The console is told where the gateway will be, which starts later.
    ports = ports | {"gateway_http_port": ports["gateway_http_port"] or free_port()}
    to_gateway = ("--gateway-url", f"http://127.0.0.1:{ports['gateway_http_port']}")
    control_plane = stack.enter_context(
        running("the control plane", "control_plane", "--store", store, *to_gateway, *addresses("control_plane"))
    )
    gateway = stack.enter_context(
        running(
            "the gateway",
            "data_plane",
            *("--control-plane", control_plane.grpc, "--gateway-id", "dev", "--state-dir", str(data_dir / "gateway")),
            *addresses("gateway"),
        )
    )
    gateway.wait_until_synced()
    return control_plane, gateway


class _Commands:
    """Runs commands here, against the control plane."""

    def __init__(self, control_plane: Child, app: str) -> None:
        self._environment = PLAIN | {"POINTSMAN_SERVER": control_plane.grpc, "POINTSMAN_APP": app}

    def __call__(self, *arguments: str) -> Any:
        """Its exit_code and output."""
        from control_plane.cli import main

        return CliRunner().invoke(main, list(arguments), env=self._environment, prog_name="pointsman")


def _fill(run: _Commands, watched: WatchedFile) -> None:
    """On the first start: the app, its first release, live in staging and production. Later starts leave alone what is there.

    Expected revision 0 is "nothing is bound": a start that was cut off half-way is completed, a binding is never changed.
    """
    commands: list[tuple[str, ...]] = []
    if run("release", "show", FIRST_RELEASE).exit_code:
        commands = [("app", "push", str(watched.path)), ("release", "create", FIRST_RELEASE, "--description", "The first one")]
    if commands or not watched.is_known:
        watched.use()
    commands += [("deploy", FIRST_RELEASE, "--to", where, "--expected-revision", "0") for where in ("staging", "production")]
    for arguments in commands:
        result = run(*arguments)
        if result.exit_code and "REVISION_CONFLICT" not in result.output:
            raise click.ClickException(f"pointsman {' '.join(arguments)}: {result.output.strip()}")


def _release_when_saved(run: _Commands, watched: WatchedFile) -> None:
    """A file that says something new is released and deployed to staging; or the reason why not is told, and what is live stays."""
    if not watched.has_news():
        return
    tag = f"dev-{time.strftime('%Y%m%d-%H%M%S')}"
    for arguments in (("app", "push", str(watched.path)), ("release", "create", tag, "--description", "Saved", "--deploy-to", "staging")):
        result = run(*arguments)
        if result.exit_code:
            click.echo(f"{watched.path} was saved and cannot be released; what is live stays:\n{result.output.strip()}")
            return
    click.echo(f"{watched.path} was saved: {result.output.strip()}")


def _tell(control_plane: Child, gateway: Child, app: str, file: Path, *, sample: bool) -> None:
    click.echo(f"ready: dev grpc={control_plane.grpc} http={control_plane.http} gateway-grpc={gateway.grpc} gateway-http={gateway.http}")
    lines = [f"{app} began with {FIRST_RELEASE} in staging and production. Try it from another terminal:", ""]
    if (control_plane.grpc, gateway.grpc) != ("127.0.0.1:7400", "127.0.0.1:7500"):
        lines.append(f"  export POINTSMAN_SERVER={control_plane.grpc} POINTSMAN_GATEWAY={gateway.grpc}")
    lines.append("  pointsman status")
    if sample:
        message = '{"message": "Where is order 1234?"}'
        curl = f"curl -sS -i -X POST http://{gateway.http}/v1/trigger/chat"
        request = f'{{"app": "{app}", "environment": "staging", "endpoint": "chat", "input": {message}}}'
        lines += [
            f"  pointsman trigger chat -e staging -d '{message}'",
            f"  pointsman trigger compose --stream -e staging -d '{message}'    # in a model's words, as they come",
            f"  {curl} -H 'Content-Type: application/json' -H 'X-Environment: staging' -d '{message}'",
            f"  grpcurl -plaintext -d '{request}' {gateway.grpc} pointsman.v1.TriggerService/Trigger",
        ]
    lines += [
        f"  edit {file}: whenever it is saved, it is released and live in staging; or, as anywhere else,",
        "  pointsman app draft > app.yaml    # edit it, then",
        '  pointsman app push app.yaml && pointsman release create v1.1.0 --description "what changed" --deploy-to staging',
        "  pointsman promote --from staging --to production",
        "  pointsman rollback production",
        f"  grpcurl -plaintext {control_plane.grpc} list",
        "",
        *([told()] if sample else []),
        "Ctrl-C ends it.",
    ]
    click.echo("\n".join(lines))


def _wait(ended: threading.Event, children: list[Child], look: Callable[[], None]) -> Child | None:
    """Until Ctrl-C, or until a child ends: that one. Looks for what was saved meanwhile."""
    while not ended.wait(LOOK_SECONDS):
        look()
        for child in children:
            if child.process.poll() is not None:
                return child
    return None
