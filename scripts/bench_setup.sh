#!/bin/sh
# Installs what bench compares with: the other libraries into .venv, and the servers that the tests use too.
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || scripts/venv.sh
.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[bench]'
.venv/bin/python -m tests.servers --install postgres nats rabbitmq redis kafka
