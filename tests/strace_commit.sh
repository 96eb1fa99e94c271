#!/usr/bin/env bash
# The order of system calls of commits to file://, read from strace: no ack leaves before its bytes, their file's name and every
# directory on the way to it are on the disk. Two lives on one store, because the second finds the directories made.
# The judge is shown bent traces first. Prints `N passed, M failed`; exit status 0: M is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
LIFE_MAX=60 # seconds; a life takes about two
CALLS=mkdir,mkdirat,openat,write,writev,pwrite64,fsync,fdatasync,link,linkat,rename,renameat,renameat2,sendto,sendmsg

cargo build --quiet --example ingest_loopback
example="${CARGO_TARGET_DIR:-target}/debug/examples/ingest_loopback"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

judged=()
python3 tests/strace_commit.py --self-test tests/strace/good.trace tests/strace/good.writes >"$work/self-test" || true
judged+=("$work/self-test")
for life in first second; do
    # 4096: a journal object of these uploads is shown whole.
    timeout "$LIFE_MAX" strace -f -y -s 4096 -e trace="$CALLS" -o "$work/$life.trace" \
        "$example" "file://$work/store" >"$work/$life.writes"
    python3 tests/strace_commit.py "$work/$life.trace" "$work/$life.writes" >"$work/$life" || true
    judged+=("$work/$life")
done

# Each verdict ends in its own closing line; a judge that stopped early has none, and counts as failed.
passed=0 failed=0
for verdict in "${judged[@]}"; do
    echo "== $(basename "$verdict")"
    cat "$verdict"
    read -r good _ bad _ < <(tail -n 1 "$verdict" | grep -E '^[0-9]+ passed, [0-9]+ failed$' || echo "0 passed, 1 failed")
    passed=$((passed + good)) failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
