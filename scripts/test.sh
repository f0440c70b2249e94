#!/usr/bin/env bash
# Everything a change must pass: formatting, lint, types, tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

ruff format --check .
ruff check .
mypy
if command -v shellcheck >/dev/null; then
    shellcheck -x -P SCRIPTDIR .ci/run scripts/*.sh scripts/slurm/*
fi
pytest -q --numprocesses=2 --dist=loadfile "$@"
