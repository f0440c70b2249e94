#!/usr/bin/env bash
# Everything a change must pass: formatting, lint, types, tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

ruff format --check .
ruff check .
mypy
pytest -q --numprocesses=2 --dist=loadfile "$@"
