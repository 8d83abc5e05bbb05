//! JSON (RFC 8259): a small walker that keeps the place of each key and value; what strings and numbers mean is asked
//! of `serde_json`.

use crate::jobfile::tree::{Entry, Fault, MAX_DEPTH, Node, Value, number, place, repeated};

pub(super) fn parse(text: &str) -> Result<Node, Vec<Fault>> {
    let mut walker = Walker { text, at: 0, faults: Vec::new() };
    let root = walker.document().map_err(|fault| vec![fault])?;
    if walker.faults.is_empty() { Ok(root) } else { Err(walker.faults) }
}

struct Walker<'a> {
    text: &'a str,
    at: usize,
    /// What does not stop the walk: keys that are there twice.
    faults: Vec<Fault>,
}

impl Walker<'_> {
    fn document(&mut self) -> Result<Node, Fault> {
        let root = self.value(0)?;
        match self.peek() {
            None => Ok(root),
            Some(_) => Err(self.unexpected("nothing after the first value")),
        }
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let skip = rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.at += skip;
        rest.get(skip).copied()
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        match self.text[self.at..].chars().next() {
            None => Fault::new(self.at, format!("the file ends here; JSON wants {wanted}")),
            Some(c) => Fault::new(self.at, format!("{c:?} is out of place; JSON wants {wanted}")),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, Fault> {
        let first = self.peek();
        let at = self.at;
        if depth > MAX_DEPTH {
            return Err(Fault::too_deep(at));
        }
        let value = match first {
            Some(b'{') => self.table(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'a'..=b'z') => self.word()?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node::new(at, value))
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        self.at += 1;
        let mut nodes = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::List(nodes));
        }
        loop {
            nodes.push(self.value(depth + 1)?);
            if self.ends(b']', "`,` or `]`")? {
                return Ok(Value::List(nodes));
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Value, Fault> {
        self.at += 1;
        let mut entries = Vec::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Table(entries));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("a key in quotes"));
            }
            let at = place(self.at);
            let key = self.string()?;
            if self.peek() != Some(b':') {
                return Err(self.unexpected("`:`"));
            }
            self.at += 1;
            entries.push(Entry { key, at, node: self.value(depth + 1)? });
            if self.ends(b'}', "`,` or `}`")? {
                self.faults.extend(repeated(&entries));
                return Ok(Value::Table(entries));
            }
        }
    }

    /// After one element: whether `end` follows, or a comma.
    fn ends(&mut self, end: u8, wanted: &str) -> Result<bool, Fault> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(false)
            }
            Some(byte) if byte == end => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.unexpected(wanted)),
        }
    }

    fn string(&mut self) -> Result<String, Fault> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(_) => end += 1,
                None => return Err(Fault::new(start, "this string is not closed; JSON wants `\"` at its end")),
            }
        }
        self.at = end + 1;
        serde_json::from_str(&self.text[start..self.at]).map_err(|error| bad_string(start, &error))
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        let rest = &self.text.as_bytes()[start..];
        let length = rest.iter().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count();
        self.at += length;
        let text = &self.text[start..self.at];
        // serde_json knows what JSON calls a number; it refuses `01`, `1.` and `+1`.
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        match number(text).filter(|_| is_json) {
            Some(value) => value.map_err(|message| Fault::new(start, message)),
            None => Err(Fault::new(start, format!("`{text}` is not a number of JSON"))),
        }
    }

    fn word(&mut self) -> Result<Value, Fault> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let value = match &rest[..end] {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            word => return Err(Fault::new(self.at, format!("`{word}` is not a value of JSON; text goes in quotes"))),
        };
        self.at += end;
        Ok(value)
    }
}

fn bad_string(start: usize, error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    Fault::new(start, format!("this string is not JSON: {reason}"))
}
