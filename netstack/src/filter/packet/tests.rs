//! The bytes of packets, bent and unbent.
