"""Regenerates the committed stubs: `python proto/generate.py [OUTPUT_DIRECTORY]` (`make proto`).

Without a directory the stubs go beside their .proto files; the drift test gives a temporary one and compares.
Needs the pinned grpcio-tools and mypy-protobuf of the development dependencies.
"""

import os
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent


def generate(output: Path) -> None:
    """Writes *_pb2.py, *_pb2.pyi for every .proto, and *_pb2_grpc.py, .pyi for those that declare a service.

    Raises:
        SystemExit: when protoc refuses a file; it has said why on stderr.
    """
    output.mkdir(parents=True, exist_ok=True)
    # protoc looks for its plugins on the PATH; ours are installed beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    protos = sorted(ROOT.glob("*/**/*.proto"))
    services = [path for path in protos if "\nservice " in path.read_text()]
    well_known = Path(protoc.__file__).parent / "_proto"
    for files, kinds in ((protos, ("python", "mypy")), (services, ("grpc_python", "mypy_grpc"))):
        arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}"]
        arguments += [f"--{kind}_out={'quiet:' if 'mypy' in kind else ''}{output}" for kind in kinds]
        arguments += [str(path.relative_to(ROOT)) for path in files]
        if protoc.main(arguments):
            sys.exit("protoc refused the files above; nothing after them was generated")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
