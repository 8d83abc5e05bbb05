//! The order of things, seen from outside.
