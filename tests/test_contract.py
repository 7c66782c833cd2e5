"""The contract and what is made from it agree: stubs, servicers, reasons, the API manual."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import control_plane.rpc
import data_plane
import pointsman.v1
from pointsman.errors import PointsmanError, Reason, all_errors

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
CODES = (
    "INVALID_ARGUMENT UNAUTHENTICATED PERMISSION_DENIED NOT_FOUND ALREADY_EXISTS ABORTED FAILED_PRECONDITION RESOURCE_EXHAUSTED UNAVAILABLE"
)


def files() -> list[ModuleType]:
    """Every generated module of messages."""
    names = [module.name for module in pkgutil.iter_modules(pointsman.v1.__path__) if module.name.endswith("_pb2")]
    return [importlib.import_module(f"pointsman.v1.{name}") for name in names]


SERVICES = {service.full_name: service for file in files() for service in file.DESCRIPTOR.services_by_name.values()}


def servicers() -> dict[str, type]:
    """The class that implements each service, by the service's full name."""
    found: dict[str, type] = {}
    modules = [f"control_plane.rpc.{m.name}" for m in pkgutil.iter_modules(control_plane.rpc.__path__)]
    modules += [f"data_plane.{m.name}" for m in pkgutil.iter_modules(data_plane.__path__) if m.name.startswith("rpc")]
    for name in modules:
        for _, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            for base in cls.__bases__:
                if base.__module__.endswith("_pb2_grpc") and cls.__module__ == name:
                    found[f"pointsman.v1.{base.__name__.removesuffix('Servicer')}"] = cls
    return found


def test_the_committed_stubs_are_what_the_generator_makes(tmp_path):
    made = subprocess.run([sys.executable, PROTO / "generate.py", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    new = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.py*")}
    committed = {path.relative_to(PROTO): path.read_bytes() for path in PROTO.rglob("*_pb2*.py*") if "__pycache__" not in path.parts}
    assert new, "the generator made nothing"
    assert sorted(new) == sorted(committed), "run `make proto`"
    assert [str(path) for path in sorted(new) if new[path] != committed[path]] == [], "run `make proto`"


def test_every_service_has_a_servicer():
    assert sorted(servicers()) == sorted(SERVICES)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_method_is_a_coroutine_of_its_servicer(service):
    servicer = servicers()[service]
    for method in SERVICES[service].methods:
        function = vars(servicer).get(method.name)
        assert function is not None, f"{servicer.__name__} does not implement {method.name}"
        # A plain def would silently run on a thread.
        coroutine = inspect.isasyncgenfunction(function) if method.server_streaming else inspect.iscoroutinefunction(function)
        assert coroutine, f"{servicer.__name__}.{method.name} must be `async def`{' with yield' if method.server_streaming else ''}"


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_method_has_messages_of_its_own(service):
    for method in SERVICES[service].methods:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"


def test_every_reason_has_one_class_and_every_class_its_reason():
    of_classes = [error.reason for error in all_errors()]
    not_sent = {value.number for value in Reason.DESCRIPTOR.values if value.GetOptions().deprecated}
    assert sorted(of_classes) == sorted(set(Reason.values()) - {Reason.REASON_UNSPECIFIED} - not_sent)
    for error in all_errors():
        assert Reason.Name(error.reason).replace("_", "").lower() == error.__name__.lower()


def documented_reasons() -> dict[str, tuple[str, int]]:
    """reason -> (gRPC code, HTTP status), from the comments in errors.proto."""
    text = (PROTO / "pointsman/v1/errors.proto").read_text()
    found = re.findall(r"// ([A-Z_]+), (\d{3})\..*?\n\s+([A-Z_]+) = \d+;", text, re.DOTALL)
    return {reason: (code, int(status)) for code, status, reason in found}


def table_of_reasons() -> dict[str, tuple[str, int]]:
    """The same, from the table in proto/README.md."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| (\d{3}) \|", (PROTO / "README.md").read_text(), re.MULTILINE)
    return {reason: (code, int(status)) for reason, code, status in rows}


@pytest.mark.parametrize("told", [documented_reasons, table_of_reasons])
def test_what_is_documented_about_reasons_is_what_the_classes_say(told):
    said: dict[str, tuple[str, int]] = {Reason.Name(error.reason): (error.grpc_code, error.http_status) for error in all_errors()}
    assert told() == said


def test_errors_know_nothing_of_grpc():
    code = "import sys, pointsman.errors; sys.exit(any(name.split('.')[0] == 'grpc' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
    assert issubclass(PointsmanError, Exception)


def test_the_manual_names_every_service_and_method():
    manual = (PROTO / "README.md").read_text()
    missing = [f"{name}/{method.name}" for name, service in SERVICES.items() for method in service.methods if method.name not in manual]
    missing += [name for name in SERVICES if name.rpartition(".")[2] not in manual]
    assert missing == []


def test_no_message_inside_another_is_called_as_one_of_the_contract():
    """Tools that know messages by their short names would take one for the other."""
    names = [module.name for module in pkgutil.iter_modules(pointsman.v1.__path__) if module.name.endswith("_pb2")]
    files = [importlib.import_module(f"pointsman.v1.{name}").DESCRIPTOR for name in names]
    alone = [message for file in files for message in file.message_types_by_name.values()]
    assert len(alone) > 50
    inside = [nested for message in alone for nested in message.nested_types if not nested.GetOptions().map_entry]
    assert {message.name for message in inside} & {message.name for message in alone} == set()
