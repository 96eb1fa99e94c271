//! The tokio shell around the pure core.

pub mod control_conn;
pub mod keystore;
