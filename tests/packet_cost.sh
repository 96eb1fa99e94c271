#!/usr/bin/env bash
# What one packet costs with 10, 1,000 and 5,000 connections open: instructions, counted by callgrind, and TCP stacks polled, counted
# by the core. Fails if the most and the least instructions differ by 5 % or more, or if a packet polls anything but one stack.
# Prints `N passed, M failed`; exit status 0: M is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
PACKETS=2000
CONNECTIONS=(10 1000 5000)
RUN_MAX=300 # seconds; the longest run takes about ten

cargo build --quiet --release -p netstack --no-default-features --example packet_cost
example="${CARGO_TARGET_DIR:-target}/release/examples/packet_cost"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

passed=0 failed=0
check() { # what, whether (0 or 1)
    if [ "$2" = 1 ]; then
        echo "ok     $1" && passed=$((passed + 1))
    else
        echo "FAILED $1" && failed=$((failed + 1))
    fi
}

least=0 most=0
for count in "${CONNECTIONS[@]}"; do
    # Only what the receiver does for packets is counted: the example puts it into a function of that name.
    timeout "$RUN_MAX" valgrind --quiet --tool=callgrind --toggle-collect='*measured*' --callgrind-out-file="$work/$count.callgrind" \
        "$example" "$count" "$PACKETS" >"$work/$count.stdout"
    read -r _ open _ packets _ polls _ timers <"$work/$count.stdout"
    polls=$((polls - timers)) # the counter has both
    total=$(sed -n 's/^\(totals\|summary\): *\([0-9]*\).*/\2/p' "$work/$count.callgrind" | head -n 1)
    each=$((total / packets))
    echo "$open connections: $packets packets, $total instructions, $each a packet; $polls stacks polled for packets, $timers for timers"
    check "$count connections are open and $PACKETS packets came" "$((open == count && packets == PACKETS))"
    check "with $count connections one stack is polled per packet" "$((polls == packets))"
    check "with $count connections instructions were counted" "$((each > 0))"
    least=$((least == 0 || total < least ? total : least))
    most=$((total > most ? total : most))
done
check "instructions per packet differ by less than 5 %: the most are $(((most - least) * 1000 / least)) per mille above the least" \
    "$(((most - least) * 100 < least * 5))"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
