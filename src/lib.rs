//! The open session recorder for tailnets: durable before acknowledged.

pub mod capture;
pub mod cli;
pub mod dev;
pub mod shutdown;
pub mod telemetry;
