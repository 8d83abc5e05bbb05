//! Logs and traces as a collector and a person see them.
