//! The doors as their users see them.
