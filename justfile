# Every command a developer needs. `just` alone lists them.

default:
    @just --list

# What CI runs.
check:
    bash .ci/run

# Format, lints, documentation: all with warnings as errors.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo check -p netstack --no-default-features
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# Licences, bans and sources of dependencies.
deny:
    cargo deny --config .deny.toml check bans licenses sources

# The hermetic tests: loopback only, Rust and a C compiler only.
test *ARGS:
    cargo test --workspace {{ ARGS }}

# The whole main path in one command; recordings are kept below ./tailtape-data.
demo:
    cargo run --release -- dev --once

# Stock peers: Go's tsnet, tailscaled and derper, joined to our devnet. Needs Go.
interop:
    cargo test --release --features interop --test interop -- --nocapture --test-threads=1

# What a thousand idle sessions cost in memory, journal objects and CPU; TAILTAPE_IDLE_SESSIONS=10000 for more of them.
idle:
    cargo test --features idle --test idle

# Hostile senders over the tunnel against `serve`, optimised, so that the endless line has 1 GiB. (The features are those of `interop`, to build once.)
hostile:
    cargo test --release --features interop --test spec storm:: -- --nocapture --test-threads=1

# Each fuzz target for a bounded time, in seconds.
fuzz SECONDS="20" *TARGETS:
    bash fuzz/run.sh {{ SECONDS }} {{ TARGETS }}

# The order of system calls of one commit to file://, read from strace.
strace:
    bash tests/strace_commit.sh

# Instructions per packet with 10, 1,000 and 5,000 connections, read from callgrind.
packet-cost:
    bash tests/packet_cost.sh

# A full, read-only and forbidden disk under `serve`, in mount namespaces of its own; part of `test`.
disk-full:
    cargo test --test disk_full -- --nocapture --test-threads=1

# What can be seen of `serve` on the wire, captured in a network namespace of its own.
wire-capture:
    bash tests/wire_capture.sh

# Side by side with what it is compared to, in one run; prints the table of docs/benchmarks.md.
bench *ARGS:
    cargo bench --bench ingest -- {{ ARGS }}

# The documentation, as docs.rs would show it.
docs:
    cargo doc --workspace --no-deps --open

# What is too long for CI: kills, seeds, idle sessions. Each part stops by itself; the closing lines go into docs/benchmarks.md.
soak KILLS="1000" SEEDS="10000" SESSIONS="10000":
    TAILTAPE_KILL_ROUNDS={{ KILLS }} cargo test --release --test kill -- --nocapture
    TAILTAPE_SIM_SEEDS={{ SEEDS }} cargo test --release --lib store::tests::sim -- --nocapture
    TAILTAPE_IDLE_SESSIONS={{ SESSIONS }} cargo test --release --features idle --test idle -- --nocapture
