#!/bin/sh
# Builds the fuzz targets for libFuzzer on the stable toolchain and runs each for SECONDS.
# usage: fuzz/run.sh SECONDS [TARGET…]          exit status 0: no target crashed, hung or outgrew its memory
# New inputs stay in fuzz/target/corpus; a crashing one goes to fuzz/artifacts/TARGET/.
set -eu
cd "$(dirname "$0")"
seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET…]}
shift
host=$(rustc -vV | sed -n 's/^host: //p')

# What cargo-fuzz sets on nightly, in flags that stable has; --target keeps them off build scripts.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
RUSTFLAGS="--cfg fuzzing $coverage" cargo build --quiet --locked --release --bins --target "$host" --target-dir target

[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed -n 's/\.rs$//p')
failed=0
for target; do
    new="target/corpus/$target"
    log="target/$target.log"
    mkdir -p "$new" "artifacts/$target"
    case $target in
        *_json) max_len=65536 ;;
        *) max_len=4096 ;;
    esac
    status=0
    "target/$host/release/$target" -max_total_time="$seconds" -max_len="$max_len" -rss_limit_mb=512 -timeout=5 \
        -print_final_stats=1 -artifact_prefix="artifacts/$target/" "$new" "corpus/$target" >"$log" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    if [ "$status" -eq 0 ]; then
        echo "fuzz $target: ok, ${runs:-0} runs in $seconds s, ${edges:-0} edges"
    else
        tail -n 40 "$log" >&2
        echo "fuzz $target: FAILED with status $status after ${runs:-?} runs, see fuzz/$log and fuzz/artifacts/$target"
        failed=1
    fi
done
exit "$failed"
