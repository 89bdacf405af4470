//! Tables whose columns are as wide as what stands in them, and which give way in a chosen order where that is too much:
//! nothing is cut in the middle of a word by chance. Pure.

use crate::tone::Tone;

/// One field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    /// What stands there when room is short.
    pub(crate) short: Option<String>,
    pub(crate) tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub(crate) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    pub(crate) fn short(self, short: impl Into<String>) -> Self {
        Self { short: Some(short.into()), ..self }
    }
}

/// One column.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    is_right: bool,
    least: usize,
    cells: Vec<Cell>,
}

impl Column {
    pub(crate) fn left(title: &'static str, cells: impl IntoIterator<Item = Cell>) -> Self {
        Self { title, is_right: false, least: 0, cells: cells.into_iter().collect() }
    }

    pub(crate) fn right(title: &'static str, cells: impl IntoIterator<Item = Cell>) -> Self {
        Self { is_right: true, ..Self::left(title, cells) }
    }

    /// At least so wide, and there when nothing stands in it: what is looked at for long does not move about.
    pub(crate) fn least(self, least: usize) -> Self {
        Self { least, ..self }
    }

    /// Nothing stands in it.
    fn is_empty(&self) -> bool {
        self.least == 0 && self.cells.iter().all(|cell| cell.text.is_empty())
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| cell.text.chars().count());
        cells.chain([self.title.chars().count(), self.least]).max().unwrap_or(0)
    }
}

/// One way to need less room.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GiveWay {
    /// The column of this title shows its short words.
    Short(&'static str),
    /// One blank between columns, not two.
    Closer,
    /// The column goes.
    Drop(&'static str),
    /// The column's texts are cut to so many characters, as far as needed.
    Cut(&'static str, usize),
}

/// A table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    columns: Vec<Column>,
    gap: usize,
}

impl Table {
    /// Columns in which nothing stands are left out.
    pub(crate) fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        let columns = columns.into_iter().filter(|column| !column.is_empty());
        Self { columns: columns.collect(), gap: 2 }
    }

    /// Of all of it.
    pub(crate) fn width(&self) -> usize {
        let columns: usize = self.columns.iter().map(Column::width).sum();
        columns + self.gap * self.columns.len().saturating_sub(1)
    }

    fn named(&mut self, title: &str) -> Option<&mut Column> {
        self.columns.iter_mut().find(|column| column.title == title)
    }

    /// Makes a column wider; answers where it begins.
    pub(crate) fn widen(&mut self, title: &str, by: usize) -> Option<usize> {
        let index = self.columns.iter().position(|column| column.title == title)?;
        let before: usize = self.columns[..index].iter().map(|column| column.width() + self.gap).sum();
        let column = &mut self.columns[index];
        column.least = column.width() + by;
        Some(before)
    }

    /// Gives way, in this order, until it fits.
    pub(crate) fn fit(mut self, room: usize, order: &[GiveWay]) -> Self {
        for &step in order {
            let too_much = self.width().saturating_sub(room);
            if too_much == 0 {
                break;
            }
            match step {
                GiveWay::Closer => self.gap = 1,
                GiveWay::Drop(title) => self.columns.retain(|column| column.title != title),
                GiveWay::Short(title) => {
                    for cell in self.named(title).into_iter().flat_map(|column| &mut column.cells) {
                        if let Some(short) = cell.short.take() {
                            cell.text = short;
                        }
                    }
                }
                GiveWay::Cut(title, least) => {
                    let Some(column) = self.named(title) else { continue };
                    let width = column.width().saturating_sub(too_much).max(least);
                    for cell in &mut column.cells {
                        cell.text = cut(&cell.text, width);
                    }
                }
            }
        }
        self
    }

    /// The titles, then a line a row; each a list of padded texts and blanks between them.
    pub(crate) fn lines(&self) -> Vec<Vec<(String, Tone)>> {
        let height = self.columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
        let mut lines = vec![Vec::new(); height + 1];
        for (index, column) in self.columns.iter().enumerate() {
            let gap = if index == 0 { 0 } else { self.gap };
            let width = column.width();
            let blank = Cell::default();
            let title = Cell::new(column.title).tone(Tone::Faint);
            for (line, row) in lines.iter_mut().zip(0..) {
                let cell = if row == 0 { &title } else { column.cells.get(row - 1).unwrap_or(&blank) };
                let padding = " ".repeat(width - cell.text.chars().count().min(width));
                let (before, behind) =
                    if column.is_right { (padding, String::new()) } else { (String::new(), padding) };
                line.push((" ".repeat(gap) + &before, Tone::Plain));
                line.push((cell.text.clone(), cell.tone));
                line.push((behind, Tone::Plain));
            }
        }
        lines
    }

    /// Lines of text.
    pub(crate) fn text(&self, is_coloured: bool) -> String {
        let mut text = String::new();
        for line in self.lines() {
            let parts: String = line.iter().map(|(part, tone)| tone.paint(part, is_coloured)).collect();
            text.push_str(parts.trim_end());
            text.push('\n');
        }
        text
    }
}

/// At most `width` characters. What stands behind the last `/` is a replica's number, and the last to go.
pub(crate) fn cut(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let tail = text.rfind('/').map_or("", |at| &text[at..]);
    let kept = tail.chars().count();
    if kept + 2 > width {
        return text.chars().take(width.saturating_sub(1)).chain(['…']).take(width).collect();
    }
    text.chars().take(width - kept - 1).chain(['…']).chain(tail.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Table {
        Table::new([
            Column::left("NAME", [Cell::new("a-long-name/1"), Cell::new("b/2")]),
            Column::right("NONE", [Cell::new(""), Cell::new("")]),
            Column::right("SIZE", [Cell::new("12 MiB").short("12M"), Cell::new("1 GiB").short("1G")]),
            Column::left("X", [Cell::new("x"), Cell::new("")]),
        ])
    }

    const ORDER: [GiveWay; 4] = [GiveWay::Short("SIZE"), GiveWay::Closer, GiveWay::Drop("X"), GiveWay::Cut("NAME", 6)];

    #[test]
    fn columns_give_way_in_order() {
        let shown = |room| table().fit(room, &ORDER).text(false);
        assert_eq!(shown(80), "NAME             SIZE  X\na-long-name/1  12 MiB  x\nb/2             1 GiB\n");
        assert_eq!(shown(22), "NAME           SIZE  X\na-long-name/1   12M  x\nb/2              1G\n");
        assert_eq!(shown(20), "NAME          SIZE X\na-long-name/1  12M x\nb/2             1G\n");
        assert_eq!(shown(15), "NAME       SIZE\na-long-…/1  12M\nb/2          1G\n");
        assert_eq!(shown(1), "NAME   SIZE\na-l…/1  12M\nb/2      1G\n");
    }

    #[test]
    fn colour_is_asked_for() {
        let one = Table::new([Column::left("N", [Cell::new("x").tone(Tone::Bad)])]);
        assert_eq!(one.text(false), "N\nx\n");
        assert_eq!(one.text(true), "\x1b[2mN\x1b[0m\n\x1b[1;31mx\x1b[0m\n");
    }

    proptest! {
        #[test]
        fn a_cut_fits(text in "[a-z/é]{0,20}", width in 0usize..25) {
            prop_assert!(cut(&text, width).chars().count() <= width.max(text.chars().count().min(width)));
        }
    }
}
