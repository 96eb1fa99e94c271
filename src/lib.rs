//! The open session recorder for tailnets: durable before acknowledged.

pub mod capture;
