//! From text to tree, for each format.

mod json;
mod toml;
mod yaml;

use super::{
    Format,
    tree::{Fault, Node},
};

/// The tree of `text`, or everything that keeps it from being one.
pub(super) fn parse(text: &str, format: Format) -> Result<Node, Vec<Fault>> {
    match format {
        Format::Toml => toml::parse(text),
        Format::Yaml => yaml::parse(text),
        Format::Json => json::parse(text),
    }
}
