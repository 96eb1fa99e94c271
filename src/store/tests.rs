//! The store on `memory://` and `file://`, whole and with faults: one suite for both.

mod cuts;
mod durability;
mod faults;
mod faulty_store;
mod power;
mod process;
mod recovery;
mod sealing;
mod sim;
mod world;
