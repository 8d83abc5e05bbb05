//! What tasks wrote.
