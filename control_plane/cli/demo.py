"""pointsman demo: the whole workflow against real servers on free ports, each step verified as it goes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import shlex
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.testing import CliRunner

from control_plane.cli.children import PLAIN, Child, ChildFailedError, direct, free_port, running
from control_plane.cli.samples import SAMPLE_APP, SERVICES, sample_text
from control_plane.cli.samples.model import told
from control_plane.cli.samples.orders import order_service

FIRST, SECOND = "v1.0.0", "v1.1.0"
OLD_WORDS, NEW_WORDS = "'Hello. '", "'Hi, thanks for writing. '"
MESSAGE = {"message": "Where is my order 1234?"}
# Shown with the port of `pointsman dev`, where it can be pasted; the servers of the demo are gone when it ends.
CURL = "curl -sS -X POST http://localhost:7580/v1/trigger/chat -H 'Content-Type: application/json'"
STREAMED = "-H 'Accept: text/event-stream' -H 'X-Environment: staging'"
GRPCURL = "grpcurl -plaintext -d {} localhost:7500 pointsman.v1.TriggerService/Trigger"
BROKEN = """
endpoints:
  - {name: chat, pipeline: chatt}
pipelines:
  - name: chat
    stages:
      - {name: answer, gate: "inptu.vip", steps: [{name: reply, tool_call: {tool: find_oder}}]}
tools:
  - {name: find_order, http: {url: "http://127.0.0.1/{{ argumnts.id }}"}}
"""


class DemoFailedError(Exception):
    """Reality differs from what the step says."""


class Answered(NamedTuple):
    """What a gateway answered over HTTP."""

    status: int
    release: str
    body: Any
    milliseconds: float


@click.command()
def command() -> None:
    """Walk the whole release workflow against real servers: one control plane, two gateways, free ports, a temporary folder.

    Example: pointsman demo
    """
    started = time.monotonic()
    # As Ctrl-C does: by an exception, so that the servers are stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        with contextlib.ExitStack() as stack:
            _Demo(stack).walk()
    except (DemoFailedError, ChildFailedError) as error:
        raise click.ClickException(str(error)) from error
    click.secho(f"\nDone in {time.monotonic() - started:.1f} s. Now try it yourself: pointsman dev", bold=True)


class _Demo:
    """The servers and the steps."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-demo-")))
        self._orders_port = stack.enter_context(order_service(0))
        self._stack = stack
        self._model_port = free_port()
        # It loads while the other steps are walked.
        self._model = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1)).submit(self._start_model)
        any_port = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        store = f"sqlite:///{self._folder / 'pointsman.db'}"
        self._control_plane = stack.enter_context(running("the control plane", "control_plane", "--store", store, *any_port))
        self._gateways = [self._start_gateway(name) for name in ("east", "west")]
        for gateway in self._gateways:
            gateway.wait_until_synced()
        self._number = 0
        click.echo(
            f"One control plane ({self._control_plane.grpc}) and two gateways ({', '.join(child.grpc for child in self._gateways)}) run.\n"
            "curl and grpcurl lines have the ports of `pointsman dev`: they work when pasted while it runs."
        )

    def _start_gateway(self, name: str) -> Child:
        state = ("--state-dir", str(self._folder / name))
        arguments = ("--control-plane", self._control_plane.grpc, "--gateway-id", name, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        return self._stack.enter_context(running(f"gateway {name}", "data_plane", *arguments, *state))

    def _start_model(self) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        self._stack.enter_context(running(SERVICES["model"].title, SERVICES["model"].module, str(self._model_port)))
        return time.monotonic() - started

    def walk(self) -> None:
        """Every step of the workflow, in order."""
        self._create_and_deploy()
        self._verify_and_promote()
        self._second_release()
        self._roll_back()
        self._refusals()
        self._outage()
        self._stream()

    def _create_and_deploy(self) -> None:
        self._title("Edit the app's draft, create a release, deploy it to staging")
        self._file("app.yaml", sample_text(orders=self._orders_port, model=self._model_port))
        self._run("app", "push", "app.yaml")
        self._run("release", "create", FIRST, "--description", "The first one")
        self._expect("2/2 gateways", self._run("deploy", FIRST, "--to", "staging"))

    def _verify_and_promote(self) -> None:
        self._title("Verify on staging; nothing is in production yet")
        answered = self._curl("staging")
        self._check("staging answers with the first release", answered.status == 200 and answered.release == FIRST)
        self._check("the order was looked up by the tool", answered.body["order"]["id"] == "1234")
        self._check("production has no release", self._curl("production").body["error"] == "NO_RELEASE_DEPLOYED")
        trigger = ("trigger", "chat", "-e", "staging", "-d", json.dumps({"message": "I want my money back"}))
        self._expect("30 days", self._run(*trigger))
        request = {"app": SAMPLE_APP, "environment": "staging", "endpoint": "chat", "input": MESSAGE}
        click.echo("  the same RPC from any language, and from a shell:")
        click.secho(f"$ {GRPCURL.format(shlex.quote(json.dumps(request)))}", fg="cyan")
        self._title("Promote the same release to production")
        self._run("promote", "--from", "staging", "--to", "production", "--reason", "verified on staging")
        self._check("production answers with it", self._curl("production").release == FIRST)

    def _second_release(self) -> None:
        self._title("Edit again; create and deploy in one call; production is not touched")
        text = sample_text(orders=self._orders_port, model=self._model_port)
        self._check("the sample has the words to change", OLD_WORDS in text)
        self._file("app.yaml", text.replace(OLD_WORDS, NEW_WORDS))
        self._run("app", "push", "app.yaml")
        self._run("release", "diff", FIRST)
        self._run("release", "create", SECOND, "--description", "A kinder answer", "--deploy-to", "staging")
        self._check("staging has the new one", self._curl("staging").release == SECOND)
        self._check("production the old one", self._curl("production", shown=False).release == FIRST)
        self._run("promote", "--from", "staging", "--to", "production", "--reason", "kinder")
        self._check("now production has the new one too", self._curl("production").release == SECOND)

    def _roll_back(self) -> None:
        self._title("Roll back production: instant, nothing lost, and never forward again")
        self._run("rollback", "production", "--reason", "too kind")
        self._check("production has the first release again", self._curl("production").release == FIRST)
        self._run("rollback", "production", refused="NOTHING_TO_ROLL_BACK")
        self._run("status")
        self._run("history", "production")

    def _refusals(self) -> None:
        self._title("What is wrong is refused whole, and says what to do")
        self._file("broken.yaml", BROKEN)
        self._run("app", "push", "broken.yaml", refused="INVALID_FIELD")
        self._run("release", "create", FIRST, refused="RELEASE_CONFLICT")
        self._run("deploy", "v1.1.O", "--to", "staging", refused="RELEASE_NOT_FOUND")

    def _outage(self) -> None:
        self._title("Kill the control plane: gateways go on serving, and start from their own disk")
        self._control_plane.kill()
        self._check("east goes on serving", self._curl("production").release == FIRST)
        self._gateways[0].stop()
        self._gateways[0] = self._start_gateway("east")
        self._gateways[0].wait_until_synced()
        self._check("east, started anew without a control plane, serves too", self._curl("staging").release == SECOND)

    def _stream(self) -> None:
        self._title("Ask a model, and read its words as they come")
        seconds = self._model.result()
        click.echo(f"  {told()} It was ready {seconds:.1f} s after its start.")
        url = f"http://{self._gateways[0].http}/v1/trigger/compose"
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "X-Environment": "staging"}
        click.secho(f"$ {CURL.replace('-sS', '-sSN').replace('chat', 'compose')} {STREAMED} -d '{json.dumps(MESSAGE)}'", fg="cyan")
        request = urllib.request.Request(url, json.dumps(MESSAGE).encode(), headers, method="POST")
        event, pieces, first, started, answer = "", 0, 0.0, time.monotonic(), {}
        click.echo("  ", nl=False)
        with direct.open(request, timeout=60) as response:
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                event = value if name == "event" else event
                if name == "data" and event == "output.delta":
                    first = first or time.monotonic()
                    pieces += 1
                    click.echo(json.loads(value)["text"].replace("\n", "\n  "), nl=False)
                elif name == "data" and event == "execution.completed":
                    answer = json.loads(value)["output"]
        click.echo(
            f"\n  the first of {pieces} pieces after {(first - started) * 1000:.0f} ms, the last after {time.monotonic() - started:.1f} s"
        )
        self._check("it came in pieces, and ended well", pieces > 1 and event == "execution.completed")
        found, reply = answer["order"] or {}, answer["reply"].strip()
        self._check(f"the reply that counts says what the tool knew: {reply}", found.get("status", "its status") in reply)

    def _title(self, text: str) -> None:
        self._number += 1
        click.secho(f"\n{self._number}. {text}", bold=True)

    def _file(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def _run(self, *arguments: str, refused: str = "") -> str:
        """Runs the real command; it must succeed, or be refused with this reason."""
        from control_plane.cli import main

        shown = " ".join(_quoted(argument) for argument in arguments)
        click.secho(f"$ pointsman {shown}", fg="cyan")
        environment = PLAIN | {
            "POINTSMAN_SERVER": self._control_plane.grpc,
            "POINTSMAN_GATEWAY": self._gateways[0].grpc,
            "POINTSMAN_APP": SAMPLE_APP,
        }
        paths = [str(self._folder / argument) if argument.endswith(".yaml") else argument for argument in arguments]
        result = CliRunner().invoke(main, paths, env=environment, prog_name="pointsman")
        output: str = result.output.replace(f"{self._folder}/", "")
        click.echo("".join(f"  {line}\n" for line in output.splitlines()), nl=False)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if bool(refused) != bool(result.exit_code) or refused not in output:
            raise DemoFailedError(f"expected {refused or 'success'}, but `pointsman {shown}` ended with {result.exit_code}")
        return output

    def _curl(self, environment: str, *, shown: bool = True) -> Answered:
        """A trigger of `chat` over HTTP, on the first gateway."""
        url = f"http://{self._gateways[0].http}/v1/trigger/chat"
        headers = {"Content-Type": "application/json", "X-Environment": environment}
        request = urllib.request.Request(url, json.dumps(MESSAGE).encode(), headers, method="POST")
        started = time.monotonic()
        try:
            response = direct.open(request, timeout=10)
        except urllib.error.HTTPError as error:
            response = error
        except urllib.error.URLError as error:
            self._gateways[0].stop()
            raise DemoFailedError(f"{url}: {error.reason}; the gateway's last words:\n{self._gateways[0].last_words}") from error
        with response:
            body = json.loads(response.read())
            answered = Answered(response.status, response.headers.get("X-Release", ""), body, (time.monotonic() - started) * 1000)
        if shown:
            click.secho(f"$ {CURL} -H 'X-Environment: {environment}' -d '{json.dumps(MESSAGE)}'", fg="cyan")
            told = body.get("reply") or f"{body.get('error')}: {body.get('message')}"
            click.echo(f"  {answered.status}, X-Release: {answered.release or '-'}, {answered.milliseconds:.0f} ms: {told}")
        return answered

    def _expect(self, words: str, output: str) -> None:
        if words not in output:
            raise DemoFailedError(f"expected {words!r} in the output above")

    def _check(self, what: str, held: bool) -> None:
        if not held:
            raise DemoFailedError(f"expected: {what}; see the output above")
        click.secho(f"  ok: {what}", fg="green")


def _quoted(argument: str) -> str:
    """As a person would write it in a shell."""
    return f'"{argument}"' if " " in argument and not set(argument) & set('"$`\\') else shlex.quote(argument)
