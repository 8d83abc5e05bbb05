//! What an agent says to its keeper in one message.

use super::{
    message::{Down, Said, WORDS, Word},
    orders::Orders,
};

/// One message in the making.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) orders: Orders,
    pub(super) words: Vec<Said>,
}

impl Draft {
    pub(super) fn say(&mut self, word: Word) {
        self.words.push(Said { word: Some(word) });
    }

    /// Whether more should go with the next message.
    pub(super) fn is_enough(&self) -> bool {
        self.words.len() >= WORDS || self.orders.are_enough()
    }

    pub(super) fn finish(self) -> Down {
        Down { hello: None, orders: self.orders.finish(), words: self.words }
    }
}
