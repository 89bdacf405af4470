//! A line over time: an area of eighths of characters from nothing to the line, coloured by the stage it was in.

use std::collections::VecDeque;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::super::model::{KEPT_LOOKS, Look as Seen};
use super::Look;
use crate::tone::Tone;

const EIGHTHS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// Looks, a second each, in one column: as few as show all that is known, of steps that do not move the picture at every
/// look.
pub(super) fn seconds_per_column(looks: usize, columns: usize) -> u64 {
    const STEPS: [u64; 8] = [1, 2, 3, 5, 10, 15, 30, 60];
    let fits = |step: &u64| columns as u64 * step >= looks as u64;
    STEPS.into_iter().find(fits).unwrap_or(KEPT_LOOKS as u64)
}

/// Draws it, now at the right.
pub(super) fn draw(past: &VecDeque<Seen>, look: Look, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    let step = seconds_per_column(past.len(), area.width.into()) as usize;
    for column in 0..area.width {
        let x = area.x + area.width - 1 - column;
        // The highest of the looks in this column: a peak that is not shown has not been seen.
        let newest = usize::from(column) * step;
        let looks = past.iter().rev().skip(newest).take(step);
        let Some(seen) = looks.max_by_key(|seen| filled(seen, area.height)) else { continue };
        let full = filled(seen, area.height);
        let style = look.style(Tone::of_stage(seen.stage));
        for row in 0..area.height {
            let here = full.saturating_sub(u64::from(row) * 8).min(8) as usize;
            if here > 0 {
                buffer.set_string(x, area.y + area.height - 1 - row, EIGHTHS[here], style);
            }
        }
    }
}

/// Eighths of a character, from below.
fn filled(seen: &Seen, height: u16) -> u64 {
    let all = u128::from(height) * 8;
    let full = u128::from(seen.used) * all / u128::from(seen.line.max(1));
    // What is held is seen, however little it is.
    let least = u128::from(seen.used > 0);
    full.clamp(least, all.max(least)) as u64
}
