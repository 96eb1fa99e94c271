//! Power loss at every fsync.

mod model_disk;
mod model_store;
mod process;
mod same_calls;
