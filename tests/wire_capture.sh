#!/usr/bin/env bash
# What anybody on the wire can see of a recorder at work: everything on the loopback of a network namespace of its own is captured while
# `tailtape serve` records a session over each endpoint. No 8 bytes in a row of what was recorded are in it, over 95 % of the packets are
# WireGuard, disco or control, and serve listens on nothing but its Unix socket. The same uploads with WireGuard bypassed are found.
# The judge is shown bent captures first. Prints `N passed, M failed`; exit status 0: M is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN_MAX=120 # seconds; a run takes about fifteen

cargo build --quiet --bin tailtape --example devnet_sender
built="$(realpath "${CARGO_TARGET_DIR:-target}")/debug"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONDONTWRITEBYTECODE=1

# A user namespace gives the right to make the other one; root without the right to make user namespaces needs none.
if unshare -Urn true 2>"$work/refused"; then
    namespace=(unshare -Urn)
elif unshare -n true 2>>"$work/refused"; then
    namespace=(unshare -n)
else
    sed 's/^/no network namespace can be made here: /' "$work/refused"
    echo "0 passed, 1 failed"
    exit 1
fi

python3 tests/wire_capture/judge.py --self-test >"$work/self-test" || true
# The last line that python prints is its closing line, or the error that ended it.
timeout "$RUN_MAX" "${namespace[@]}" python3 tests/wire_capture/run.py \
    "$built/tailtape" "$built/examples/devnet_sender" >"$work/run" 2>&1 || true

passed=0 failed=0
for verdict in "$work/self-test" "$work/run"; do
    echo "== $(basename "$verdict")"
    cat "$verdict"
    read -r good _ bad _ < <(tail -n 1 "$verdict" | grep -E '^[0-9]+ passed, [0-9]+ failed$' || echo "0 passed, 1 failed")
    passed=$((passed + good)) failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
