//! The store on `memory://` and `file://`, whole and with faults: one suite for both.

mod compaction;
mod cuts;
mod durability;
mod events;
mod faults;
mod faulty_store;
mod fence;
mod hashing;
mod obstructed;
mod power;
mod process;
mod recovery;
mod replaced;
mod sealing;
mod sim;
mod stall;
mod store_id;
mod world;
