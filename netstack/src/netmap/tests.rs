//! The merge rules, routes and identities, as tables.
