//! What the process tests share: real binaries in folders of their own, waits with limits, and an independent witness.
