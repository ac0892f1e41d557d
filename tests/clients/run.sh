#!/usr/bin/env bash
# Drives a server with the official openai package.
#   tests/clients/run.sh URL [API_KEY]    against a running server (URL ends with /v1)
#   tests/clients/run.sh                  starts target/*/pallium (or $PALLIUM_BIN) with its bundled model
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${PALLIUM_CLIENTS_VENV:-$root/target/clients-venv}
if ! "$venv/bin/python" -c 'import openai' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet 'openai>=2,<3'
fi
if [ $# -gt 0 ]; then
  exec "$venv/bin/python" "$here/openai_client.py" "$@"
fi
bin=${PALLIUM_BIN:-}
for built in "$root/target/release/pallium" "$root/target/debug/pallium"; do
  [ -n "$bin" ] || { [ -x "$built" ] && bin=$built; } || true
done
[ -n "$bin" ] || { echo "build pallium first, or give a URL" >&2; exit 1; }
log=$(mktemp)
"$bin" serve --host 127.0.0.1 --port 0 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
url=
for _ in $(seq 600); do
  url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$log" | head -1 || true)
  [ -n "$url" ] && "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$url/ready')" 2>/dev/null && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { echo "the server did not name its address" >&2; cat "$log" >&2; exit 1; }
"$venv/bin/python" "$here/openai_client.py" "$url/v1"
