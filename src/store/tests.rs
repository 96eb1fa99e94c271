//! The store on `memory://` and `file://`, whole and with faults: one suite for both.

mod compaction;
mod durability;
mod events;
mod faults;
mod faulty_store;
mod sealing;
mod stall;
mod world;
