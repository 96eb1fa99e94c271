//! What "durable" means here.
