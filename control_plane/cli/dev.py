"""pointsman dev: a control plane, a gateway and an app on this machine, until Ctrl-C. A saved app file is released to staging."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.testing import CliRunner

from control_plane.cli.children import PLAIN, Child, ChildFailedError, free_port, running
from control_plane.cli.samples import SAMPLE_APP, SAMPLES, SERVICES, Sample, sample_text
from control_plane.cli.samples.model import told
from control_plane.cli.saved import WatchedFile
from pointsman.errors import did_you_mean

FIRST_RELEASE = "v1.0.0"
SAMPLES_HELP = f"Which app: {'; '.join(f'{sample.name} ({sample.shows})' for sample in SAMPLES.values())}."
LOOK_SECONDS = 0.2
ANOTHER_RUNS = "If another `pointsman dev` runs, end it, or give this one other ports (0: a free one) and a --data-dir; see --help."


class _SampleName(click.Choice[str]):
    """A sample by its name; near ones are named."""

    def __init__(self) -> None:
        super().__init__(list(SAMPLES))

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        return super().get_invalid_choice_message(value, ctx) + did_you_mean(str(value), SAMPLES)


def _service_port(service: str) -> Callable[[Any], Any]:
    what = f"{SERVICES[service].title.removeprefix('the ').capitalize()}, if the sample has it."
    return click.option(f"--{service}-port", type=click.IntRange(0, 65535), default=SERVICES[service].port, show_default=True, help=what)


@click.command()
@click.option("--sample", type=_SampleName(), default=SAMPLE_APP, show_default=True, help=SAMPLES_HELP)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".pointsman"), show_default=True, help="Where state is kept.")
@click.option("--app-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Your own app file instead of the sample's.")
@click.option("--app", envvar="POINTSMAN_APP", show_default="the sample's name", help="The app's id.")
@click.option("--control-plane-port", type=click.IntRange(0, 65535), default=7400, show_default=True, help="gRPC of the control plane.")
@click.option("--control-plane-http-port", type=click.IntRange(0, 65535), default=7480, show_default=True, help="Its HTTP.")
@click.option("--gateway-port", type=click.IntRange(0, 65535), default=7500, show_default=True, help="gRPC of the gateway.")
@click.option("--gateway-http-port", type=click.IntRange(0, 65535), default=7580, show_default=True, help="Its HTTP.")
@_service_port("orders")
@_service_port("model")
@_service_port("tools")
@_service_port("caller")
def command(sample: str, data_dir: Path, app_file: Path | None, app: str | None, **ports: int) -> None:
    """Run a control plane, a gateway and a sample app, until Ctrl-C. Whenever its file is saved, it is released, and deployed to staging.

    Example: pointsman dev --sample extraction --data-dir /tmp/try-pointsman
    """
    chosen, app = SAMPLES[sample], _app(sample, app)
    if chosen.extra and importlib.util.find_spec(chosen.extra) is None:
        raise click.ClickException(f"the sample {sample} needs the extra {chosen.extra}: pip install 'pointsman[{chosen.extra}]'")
    data_dir.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with contextlib.ExitStack() as stack:
        try:
            services = {name: _serve(stack, data_dir, name, ports[f"{name}_port"]) for name in chosen.services}
            control_plane, gateway = _start(stack, data_dir, ports)
        except (ChildFailedError, OSError) as error:
            raise click.ClickException(f"{error}\n{ANOTHER_RUNS}") from error
        if app_file is None:
            file = data_dir / f"{app}.yaml"
            if not file.exists():
                file.write_text(sample_text(sample, **{name: _port(child) for name, child in services.items()}))
        else:
            file = app_file
        run = _Commands(control_plane, app)
        watched = WatchedFile(file, data_dir / f"released-{app}")
        _fill(run, watched)
        _tell(control_plane, gateway, app, file, chosen if app_file is None else None)
        died = _wait(ended, [control_plane, gateway, *services.values()], lambda: _release_when_saved(run, watched))
        if died is not None:
            code = died.stop()
            raise click.ClickException(f"{died.name} ended by itself (exit status {code}):\n{died.last_words}")
        click.echo("stopping")


def _app(sample: str, app: str | None) -> str:
    """A variable that is exported for commands does not give its name to a sample that is asked for."""
    given = click.get_current_context().get_parameter_source
    other = given("sample") is ParameterSource.COMMANDLINE and given("app") is ParameterSource.ENVIRONMENT
    return sample if app is None or other else app


def _serve(stack: contextlib.ExitStack, data_dir: Path, service: str, port: int) -> Child:
    """Port 0 is the one of the first start: the release that is stored calls it there, and never changes."""
    kept = data_dir / f"{service}-port"
    if port == 0 and kept.exists():
        port = int(kept.read_text())
    child = stack.enter_context(running(SERVICES[service].title, SERVICES[service].module, str(port)))
    kept.write_text(str(_port(child)))
    return child


def _port(child: Child) -> int:
    return int(child.http.rpartition(":")[2])


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
        if watched.is_gone:
            click.echo(f"{watched.path} is gone, or cannot be read; what is live stays. It is looked at again once it is back.")
        return
    # To the millisecond: who saves twice in a second has two releases.
    tag = f"dev-{datetime.now().astimezone().strftime('%Y%m%d-%H%M%S.%f')[:-3]}"
    for arguments in (("app", "push", str(watched.path)), ("release", "create", tag, "--description", "Saved", "--deploy-to", "staging")):
        result = run(*arguments)
        if result.exit_code:
            click.echo(f"{watched.path} was saved and cannot be released; what is live stays:\n{result.output.strip()}")
            return
    click.echo(f"{watched.path} was saved: {result.output.strip()}")


def _tell(control_plane: Child, gateway: Child, app: str, file: Path, sample: Sample | None) -> None:
    click.echo(f"ready: dev grpc={control_plane.grpc} http={control_plane.http} gateway-grpc={gateway.grpc} gateway-http={gateway.http}")
    lines = [f"{app} began with {FIRST_RELEASE} in staging and production. Try it from another terminal:", ""]
    settings = [f"POINTSMAN_APP={app}"]
    if (control_plane.grpc, gateway.grpc) != ("127.0.0.1:7400", "127.0.0.1:7500"):
        settings += [f"POINTSMAN_SERVER={control_plane.grpc}", f"POINTSMAN_GATEWAY={gateway.grpc}"]
    lines += [f"  export {' '.join(settings)}", "  pointsman status"]
    if sample:
        lines += _tries(sample, app, gateway)
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


def _tries(sample: Sample, app: str, gateway: Child) -> list[str]:
    """Every example of the sample by our own command, the first of them by curl and grpcurl too."""
    lines = []
    for endpoint, given, what in sample.tries:
        stream = " --stream" if endpoint in sample.streams else ""
        lines.append(f"  pointsman trigger {endpoint}{stream} -e staging -d '{given}'    # {what}")
    endpoint, given, _ = sample.tries[0]
    headers = f"-H 'Content-Type: application/json' -H 'X-App: {app}' -H 'X-Environment: staging'"
    request = f'{{"app": "{app}", "environment": "staging", "endpoint": "{endpoint}", "input": {given}}}'
    return [
        *lines,
        f"  curl -sS -i -X POST http://{gateway.http}/v1/trigger/{endpoint} {headers} -d '{given}'",
        f"  grpcurl -plaintext -d '{request}' {gateway.grpc} pointsman.v1.TriggerService/Trigger",
    ]


def _wait(ended: threading.Event, children: list[Child], look: Callable[[], None]) -> Child | None:
    """Until Ctrl-C, or until a child ends: that one. Looks for what was saved meanwhile."""
    while not ended.wait(LOOK_SECONDS):
        look()
        for child in children:
            if child.process.poll() is not None:
                return child
    return None
