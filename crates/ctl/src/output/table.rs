//! Tables for people: columns two spaces apart, cut to the terminal where a column allows it, never wrapped.

use super::style::{Look, Style};

/// What a cell holds and how it looks.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    look: Look,
}

/// Somebody's text without control characters: it cannot move the cursor or break the line.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Somebody's text for a terminal: it may have lines and colours, and no other control character does anything.
pub(crate) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Colours end with their line: the next one is somebody else's.
    let (mut rest, mut is_coloured) = (text, false);
    while let Some(c) = rest.chars().next() {
        if let Some(colour) = colour(rest) {
            out.push_str(colour);
            (rest, is_coloured) = (&rest[colour.len()..], !matches!(colour, "\u{1b}[0m" | "\u{1b}[m"));
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' => {
                out.push_str(if is_coloured { "\u{1b}[0m\n" } else { "\n" });
                is_coloured = false;
            }
            '\r' if rest.starts_with('\n') => {}
            '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    if is_coloured {
        out.push_str("\u{1b}[0m");
    }
    out
}

/// The sequence that `text` begins with, if it sets colours and nothing else (ECMA-48, SGR).
fn colour(text: &str) -> Option<&str> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    numbers[end..].starts_with('m').then(|| &text[..end + 3])
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::looking(text, Look::Plain)
    }
}

impl Cell {
    /// A cell with a look of its own. Control characters of somebody's text never reach the terminal.
    pub(crate) fn looking(text: impl AsRef<str>, look: Look) -> Self {
        Self { text: plain(text.as_ref()), look }
    }

    /// A state's word in its colour.
    pub(crate) fn state(word: &str) -> Self {
        Self::looking(word, super::style::of_state(word))
    }

    fn width(&self) -> usize {
        console::measure_text_width(&self.text)
    }
}

/// How a column behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// Text to the left, never cut: what people copy.
    Key(&'static str),
    /// Numbers to the right, never cut.
    Number(&'static str),
    /// Text to the left, cut when the terminal is narrow.
    Text(&'static str),
}

impl Column {
    fn head(self) -> &'static str {
        match self {
            Self::Key(head) | Self::Number(head) | Self::Text(head) => head,
        }
    }
}

/// Rows under heads.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Cut columns keep this much: a few letters and the mark.
const NARROWEST: usize = 8;

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// One more row, a cell per column.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    /// The text, each line ended, at most `width` columns wide where that can be had.
    pub(crate) fn render(&self, style: Style, width: Option<usize>) -> String {
        let widths = self.widths(width);
        let mut out = String::new();
        let heads: Vec<_> = self.columns.iter().map(|column| Cell::looking(column.head(), Look::Head)).collect();
        for cells in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (n, ((column, cell), width)) in self.columns.iter().zip(cells).zip(&widths).enumerate() {
                let text = console::truncate_str(&cell.text, *width, "…");
                let pad = " ".repeat(width.saturating_sub(console::measure_text_width(&text)));
                let text = style.paint(cell.look, &text);
                let gap = if n == 0 { "" } else { "  " };
                match column {
                    Column::Number(_) => line.extend([gap, &pad, &text]),
                    Column::Key(_) | Column::Text(_) => line.extend([gap, &text, &pad]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// What each column needs, less what the terminal does not have, taken from the widest texts.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.head().chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let Some(limit) = limit else { return widths };
        let gaps = 2 * widths.len().saturating_sub(1);
        let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(limit);
        while over > 0 {
            let widest = self
                .columns
                .iter()
                .zip(&mut widths)
                .filter(|(column, width)| matches!(column, Column::Text(_)) && **width > NARROWEST)
                .max_by_key(|(_, width)| **width);
            let Some((_, width)) = widest else { break };
            *width -= 1;
            over -= 1;
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([Column::Key("ID"), Column::Text("NAME"), Column::Number("N")]);
        table.row(["1".into(), "census of the whole repository".into(), "12".into()]);
        table.row(["1234567".into(), Cell::state("failed"), "3".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        let text = table().render(Style::PLAIN, None);
        let wanted = "\
ID       NAME                             N
1        census of the whole repository  12
1234567  failed                           3
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_narrow_terminal_cuts_text_but_never_an_id() {
        let text = table().render(Style::PLAIN, Some(25));
        assert!(text.lines().all(|line| console::measure_text_width(line) <= 25), "{text}");
        assert!(text.contains("1234567"), "{text}");
        assert!(text.contains("census of t…"), "{text}");
        let mut table = table();
        table.row(["1234567.extract[1000000]".into(), "x".into(), "3".into()]);
        let text = table.render(Style::PLAIN, Some(3));
        assert!(text.contains("1234567.extract[1000000]") && text.contains("census …"), "{text}");
    }

    #[test]
    fn what_somebody_named_their_work_cannot_move_the_cursor() {
        let mut table = Table::new([Column::Text("NAME")]);
        table.row([Cell::from("a\x1b[2Jb\nc")]);
        assert_eq!(table.render(Style::PLAIN, None), "NAME\na [2Jb c\n");
    }

    #[test]
    fn colours_change_no_width() {
        let style = Style::stdout(super::super::style::When::Always);
        let plain: Vec<_> =
            table().render(style, None).lines().map(|l| console::strip_ansi_codes(l).into_owned()).collect();
        let wanted: Vec<_> = table().render(Style::PLAIN, None).lines().map(str::to_owned).collect();
        assert_eq!(plain.iter().map(|l| l.trim_end()).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn of_control_characters_only_lines_tabs_and_colours_do_anything() {
        let table = [
            ("plain\tüber\n", "plain\tüber\n"),
            ("\u{1b}[1;31mred\u{1b}[0m", "\u{1b}[1;31mred\u{1b}[0m"),
            // It would go on in what others wrote.
            ("\u{1b}[31mred\nnext", "\u{1b}[31mred\u{1b}[0m\nnext"),
            ("\u{1b}]52;c;aGk=\u{7}", "\\u{1b}]52;c;aGk=\\u{7}"),
            ("\u{1b}[2J\u{1b}[31", "\\u{1b}[2J\\u{1b}[31"),
            ("\u{9b}2J\u{8}\0", "\\u{9b}2J\\u{8}\\u{0}"),
            ("dos\r\nover\rwritten", "dos\nover\\rwritten"),
        ];
        for (text, wanted) in table {
            assert_eq!(harmless(text), wanted, "{text:?}");
        }
    }
}
