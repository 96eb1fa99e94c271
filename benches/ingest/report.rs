//! The table: rows, the machine they belong to, and the place in docs/benchmarks.md.
//!
//! The invariant: `--write` replaces what is between the two markers and nothing else. `main` fills it.

use std::fmt;
use std::time::Duration;

use anyhow::Context;

use super::latency::Delays;
use super::numbers::{median, milliseconds, rank, ratio};
use super::traffic::Goodput;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md");
const BEGIN: &str = "<!-- bench:ingest begin -->\n";
const END: &str = "<!-- bench:ingest end -->\n";

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    tunnel: f64,
    plain: Option<f64>,
}

impl Row {
    /// A figure with nothing to compare it to.
    pub(crate) fn alone(what: &str, value: f64) -> Self {
        Self {
            what: what.to_owned(),
            tunnel: value,
            plain: None,
        }
    }

    fn beside(what: String, tunnel: f64, plain: f64) -> Self {
        Self {
            what,
            tunnel,
            plain: Some(plain),
        }
    }
}

/// All lines, and what was run.
#[derive(Debug)]
pub(crate) struct Report {
    command: String,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(command: String) -> Self {
        Self {
            command,
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("{row}");
        self.rows.push(row);
    }

    pub(crate) fn add_loads(&mut self, what: &str, (tunnel, plain): &(Vec<Goodput>, Vec<Goodput>)) {
        let of = |side: &[Goodput], figure: fn(&Goodput) -> f64| {
            median(&mut side.iter().map(figure).collect::<Vec<_>>())
        };
        let rate = |goodput: &Goodput| goodput.gigabits_a_second;
        let cost = |goodput: &Goodput| goodput.gigabits_a_cpu_second;
        self.add(Row::beside(
            format!("{what}, Gbit/s"),
            of(tunnel, rate),
            of(plain, rate),
        ));
        self.add(Row::beside(
            format!("{what}, Gbit per CPU-second of both ends"),
            of(tunnel, cost),
            of(plain, cost),
        ));
    }

    pub(crate) fn add_delays(&mut self, what: &str, (tunnel, plain): &(Vec<Delays>, Vec<Delays>)) {
        let of = |side: &[Delays], figure: fn(&Delays) -> f64| {
            median(&mut side.iter().map(figure).collect::<Vec<_>>())
        };
        let p50 = |delays: &Delays| milliseconds(delays.p50);
        let p99 = |delays: &Delays| milliseconds(delays.p99);
        for (name, figure) in [("p50", p50 as fn(&Delays) -> f64), ("p99", p99)] {
            self.add(Row::beside(
                format!("{what}, {name} ms"),
                of(tunnel, figure),
                of(plain, figure),
            ));
        }
    }

    /// The most creates of journal objects in an interval that any round has seen.
    pub(crate) fn add_puts(&mut self, what: &str, (tunnel, plain): &(Vec<Delays>, Vec<Delays>)) {
        let most = |side: &[Delays]| {
            let puts = side.iter().map(|delays| delays.puts_per_interval);
            puts.fold(0.0, f64::max)
        };
        let what = format!("{what}, journal PUTs an interval");
        self.add(Row::beside(what, most(tunnel), most(plain)));
    }

    pub(crate) fn add_disk(&mut self, what: &str, sorted: &[Duration]) {
        for percent in [50, 99] {
            self.add(Row::alone(
                &format!("this disk: {what}, p{percent} ms"),
                milliseconds(rank(sorted, percent)),
            ));
        }
    }

    /// Puts the table into docs/benchmarks.md.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(DOCUMENT).with_context(|| DOCUMENT.to_owned())?;
        let (before, rest) = text.split_once(BEGIN).context("no begin marker")?;
        let (_, after) = rest.split_once(END).context("no end marker")?;
        let text = format!("{before}{BEGIN}\n{self}\n{END}{after}");
        std::fs::write(DOCUMENT, text).with_context(|| DOCUMENT.to_owned())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, tunnel) = (&self.what, figure(self.tunnel));
        match self.plain {
            Some(plain) => write!(
                f,
                "| {what} | {tunnel} | {} | {:.2} |",
                figure(plain),
                ratio(self.tunnel, plain)
            ),
            None => write!(f, "| {what} | {tunnel} | | |"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "`{}`, {}\n", self.command, machine())?;
        writeln!(f, "| what | tunnel | plain loopback | tunnel / plain |")?;
        writeln!(f, "|---|---:|---:|---:|")?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}

/// Three significant digits.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let rustc = std::process::Command::new("rustc")
        .arg("--version")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    let date = jiff::Timestamp::now().to_string();
    format!(
        "{}: {cores} cores ({model}), Linux {}, {rustc}, load average at the end {}",
        date.split('T').next().unwrap_or_default(),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}
