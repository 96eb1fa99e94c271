#!/usr/bin/env bash
# Builds the fuzz targets for libFuzzer on the stable toolchain and runs each for SECONDS, as many at once as there are
# processors (or $JOBS).
# usage: fuzz/run.sh SECONDS [TARGET…]          exit status 0: no target broke a promise, hung or outgrew its memory
# New inputs stay in fuzz/target/corpus; one that breaks its target goes to fuzz/artifacts/TARGET/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET…]}
shift
[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed -n 's/\.rs$//p')
jobs_max=${JOBS:-$(nproc)}
host=$(rustc -vV | sed -n 's/^host: //p')

# What cargo-fuzz sets on nightly, in flags that stable has; --target keeps them off build scripts.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
bins=()
for target; do
    bins+=(--bin "$target")
done
RUSTFLAGS="--cfg fuzzing $coverage" cargo build --quiet --locked --release "${bins[@]}" --target "$host" --target-dir target
echo "fuzz: built in $SECONDS s"

run_one() {
    local target=$1 new="target/corpus/$1" log="target/$1.log" max_len=4096 status=0 runs edges
    mkdir -p "$new" "artifacts/$target"
    case $target in
        *_json | asciicast | control_map | node) max_len=16384 ;;
    esac
    "target/$host/release/$target" -max_total_time="$seconds" -max_len="$max_len" -rss_limit_mb=512 -timeout=10 \
        -print_final_stats=1 -artifact_prefix="artifacts/$target/" "$new" "corpus/$target" >"$log" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    if [ "$status" -eq 0 ]; then
        echo "fuzz: $target ok, ${runs:-0} runs in $seconds s, ${edges:-0} edges"
    else
        tail -n 40 "$log" >&2
        echo "fuzz: $target FAILED with status $status after ${runs:-?} runs, see fuzz/$log and fuzz/artifacts/$target"
        return 1
    fi
}

running=0 failed=0
for target; do
    if [ "$running" -ge "$jobs_max" ]; then
        wait -n || failed=$((failed + 1))
        running=$((running - 1))
    fi
    run_one "$target" &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
done
echo "fuzz: $# targets in $SECONDS s"
echo "$(($# - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
