#!/usr/bin/env bash
# Make .venv with the pinned requirements, once; sourced by quickstart.sh and test.sh.
# PYTHON=... chooses the interpreter (3.11 or newer).
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PYTHON=${PYTHON:-python3}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $PYTHON is not Python 3.11 or newer: set PYTHON=..." >&2
    exit 1
fi
stamp=.venv/requirements.sha256
if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    echo "Installing the requirements into .venv (about 6 GB, some minutes, once)"
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --requirement requirements.txt
    sha256sum requirements.txt >"$stamp"
fi
# shellcheck disable=SC1091
source .venv/bin/activate
