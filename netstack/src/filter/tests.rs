//! Verdicts, as tables: packet and rules in, verdict out.
