//! Everything that is proved on the tree itself and on the real binaries.

mod tidy;
