//! A picture of a model: (model, look, area) → cells. Pure, and at home in any area.
//!
//! ```text
//! ⊖ plimsoll  9 of 9 run                         load 1.2 · 14 GiB available
//! budget ━━━━━━━━━━╍╍╍╍──────  61 %  1.2 GiB of 2 GiB  alert  met in 3m12s
//! alert: memory > 80%                                         (when there is one)
//!   SERVICE  STATE    MEMORY                   CPU%  …
//! ▸ api/1    running  ━━━━━╸╍╍──  312M/512M      3   …
//! ── memory of api/1 ───────  ── memory of all ───────  ── processes ──────────
//! ── events ────────────────────────────────────────────────────────────────
//!  ↑↓ select  ⏎ tree  r restart …
//! ```

mod chart;

use plimsoll_core::stack::snapshot::{ServiceRow, State};
use plimsoll_model::size::Human;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Widget};

use super::super::status;
use super::super::view::{self, brief, brief_time, percent};
use super::keys::KEYS;
use super::model::{Focus, Model, who_of};
use crate::columns::{Cell, Column, GiveWay, Table};
use crate::render::safe;
use crate::tone::Tone;

/// Less room than this shows nothing that helps.
pub(super) const LEAST: (u16, u16) = (60, 14);

/// How things look on this terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) is_coloured: bool,
}

impl Look {
    fn style(self, tone: Tone) -> Style {
        let plain = Style::new();
        if !self.is_coloured {
            return match tone {
                Tone::Plain | Tone::Good => plain,
                Tone::Strong | Tone::Notice | Tone::Warning => plain.add_modifier(Modifier::BOLD),
                Tone::Faint => plain.add_modifier(Modifier::DIM),
                Tone::Bad => plain.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            };
        }
        match tone {
            Tone::Plain => plain,
            Tone::Strong => plain.add_modifier(Modifier::BOLD),
            Tone::Faint => plain.fg(Color::Indexed(244)),
            Tone::Good => plain.fg(Color::Green),
            Tone::Notice => plain.fg(Color::Yellow),
            Tone::Warning => plain.fg(Color::Indexed(208)),
            Tone::Bad => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    /// Behind what is selected.
    fn selected(self) -> Style {
        if self.is_coloured {
            Style::new().bg(Color::Indexed(237)).add_modifier(Modifier::BOLD)
        } else {
            Style::new().add_modifier(Modifier::REVERSED)
        }
    }

    /// The part of a bar that nobody holds.
    fn empty(self) -> Style {
        if self.is_coloured { Style::new().fg(Color::Indexed(239)) } else { Style::new().add_modifier(Modifier::DIM) }
    }

    /// The frame of the pane in which the arrows move, and of the others.
    fn rule(self, is_focused: bool) -> Style {
        match (is_focused, self.is_coloured) {
            (true, true) => Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD),
            (true, false) => Style::new().add_modifier(Modifier::BOLD),
            (false, _) => self.style(Tone::Faint),
        }
    }

    fn span(self, text: impl Into<String>, tone: Tone) -> Span<'static> {
        Span::styled(text.into(), self.style(tone))
    }
}

/// Draws all of it.
pub(super) fn draw(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (width, height) = LEAST;
        let words = format!("top needs {width} x {height} characters, here are {} x {}", area.width, area.height);
        return Paragraph::new(words).wrap(ratatui::widgets::Wrap { trim: true }).render(area, buffer);
    }
    let mut rest = area;
    title(model, look, take_top(&mut rest, 1), buffer);
    budget(model, look, take_top(&mut rest, 1), buffer);
    if let Some(line) = most_urgent(model, look) {
        line.render(take_top(&mut rest, 1), buffer);
    }
    footer(model, look, take_bottom(&mut rest, 1), buffer);
    let share = Share::of(rest.height, model.rows().len());
    services(model, look, take_top(&mut rest, share.services), buffer);
    if share.middle > 0 {
        middle(model, look, take_top(&mut rest, share.middle), buffer);
    }
    events(model, look, rest, buffer);
    if model.is_help_shown {
        help(look, area, buffer);
    } else if let Some(dialog) = &model.dialog {
        let lines = vec![
            Line::from(look.span(dialog.question.clone(), Tone::Strong)),
            Line::from(look.span(dialog.explained, Tone::Faint)),
            Line::default(),
            Line::from(vec![
                look.span("y", Tone::Strong),
                Span::raw(" yes    "),
                look.span("any other key", Tone::Strong),
                Span::raw(" no"),
            ]),
        ];
        popup("sure?", lines, look, area, buffer);
    }
}

/// Lines of each part, below the head.
struct Share {
    services: u16,
    middle: u16,
}

impl Share {
    /// Each part gets what it needs at least; then the table what it can use, and the rest is divided.
    fn of(height: u16, rows: usize) -> Self {
        const TABLE: u16 = 4;
        const MIDDLE: u16 = 6;
        const EVENTS: u16 = 4;
        let wanted = u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(1).max(2);
        let has_events = height >= TABLE.min(wanted) + MIDDLE + EVENTS;
        let others = MIDDLE + if has_events { EVENTS } else { 0 };
        let services = wanted.min(height.saturating_sub(others));
        let left = height - services;
        let middle = if has_events { MIDDLE + (left - others) * 3 / 5 } else { left };
        Self { services, middle }
    }
}

fn take_top(rest: &mut Rect, height: u16) -> Rect {
    let height = height.min(rest.height);
    let taken = Rect { height, ..*rest };
    (rest.y, rest.height) = (rest.y + height, rest.height - height);
    taken
}

fn take_bottom(rest: &mut Rect, height: u16) -> Rect {
    let height = height.min(rest.height);
    rest.height -= height;
    Rect { y: rest.y + rest.height, height, ..*rest }
}

fn take_right(rest: &mut Rect, width: u16) -> Rect {
    let width = width.min(rest.width);
    rest.width -= width;
    Rect { x: rest.x + rest.width, width, ..*rest }
}

/// One line with something on its left and, as far as there is room, on its right.
fn both_ends(left: Line<'_>, right: Line<'_>, area: Rect, buffer: &mut Buffer) {
    let right_width = u16::try_from(right.width()).unwrap_or(u16::MAX);
    let left_width = u16::try_from(left.width()).unwrap_or(u16::MAX);
    let mut rest = area;
    if left_width.saturating_add(right_width) < area.width {
        right.render(take_right(&mut rest, right_width), buffer);
    }
    left.render(rest, buffer);
}

fn title(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    let rows = model.rows();
    let running = rows.iter().filter(|row| row.pid.is_some()).count();
    let mut left = vec![look.span(" ⊖ plimsoll  ", Tone::Strong)];
    match &model.gone {
        Some(_) => left.push(look.span("gone, waiting", Tone::Bad)),
        None => left.push(Span::raw(format!("{running} of {} run", rows.len()))),
    }
    let host = model.view.as_ref().map(|view| view.stack.host).unwrap_or_default();
    let mut facts = Vec::new();
    facts.extend(host.load_1m.map(|load| format!("load {load:.1}")));
    facts.extend(host.io_wait_percent.map(|share| format!("io wait {share:.0} %")));
    facts.extend(host.swap_used_bytes.map(|bytes| format!("swap {}", Human(bytes))));
    facts.extend(host.available_bytes.map(|bytes| format!("available {}", Human(bytes))));
    let right = Line::from(look.span(facts.join(" · ") + " ", Tone::Faint));
    both_ends(Line::from(left), right, area, buffer);
}

/// Shortest gauge of the budget.
const LEAST_GAUGE: usize = 16;

fn budget(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    let Some(view) = &model.view else { return };
    let row = &view.stack.budget;
    let share = percent(row.used_bytes, row.limit_bytes);
    let tone = Tone::of_stage(row.stage);
    let mut facts = vec![
        Line::from(vec![look.span(format!(" {share:>3} %  "), Tone::Strong), look.span(row.stage.as_str(), tone)]),
        Line::from(format!("  {} of {}", Human(row.used_bytes), Human(row.limit_bytes))),
    ];
    if let Some(ms) = row.forecast_ms.filter(|&ms| ms < 86_400_000) {
        let time = look.span(brief_time(ms), view::forecast(Some(ms)).tone);
        facts.push(Line::from(vec![Span::raw("  met in "), time]));
    }
    if row.queued > 0 {
        facts.push(Line::from(look.span(format!("  {} waiting", row.queued), Tone::Notice)));
    }
    let mut rest = area;
    Line::from(look.span(" budget ", Tone::Strong)).render(take_left(&mut rest, 8), buffer);
    // The bar is seen before any figure is read.
    let width = |facts: &[Line]| facts.iter().map(Line::width).sum::<usize>() + 1;
    while width(&facts) + LEAST_GAUGE > rest.width.into() && facts.len() > 1 {
        facts.pop();
    }
    let mut place = take_right(&mut rest, u16::try_from(width(&facts)).unwrap_or(u16::MAX));
    for fact in &facts {
        fact.render(take_left(&mut place, u16::try_from(fact.width()).unwrap_or(u16::MAX)), buffer);
    }
    bar(row.used_bytes, row.admitted_bytes, row.limit_bytes, rest.width.into(), tone, look).render(rest, buffer);
}

fn take_left(rest: &mut Rect, width: u16) -> Rect {
    let width = width.min(rest.width);
    let taken = Rect { width, ..*rest };
    (rest.x, rest.width) = (rest.x + width, rest.width - width);
    taken
}

/// Held, promised beyond that, and free, of a line.
fn bar(used: u64, promised: u64, line: u64, width: usize, tone: Tone, look: Look) -> Line<'static> {
    let halves = |bytes: u64| {
        let all = width as u128 * 2;
        usize::try_from((u128::from(bytes) * all / u128::from(line.max(1))).min(all)).unwrap_or(0)
    };
    // Rules and not blocks: those of two rows do not touch.
    let held = halves(used);
    let full = "━".repeat(held / 2) + if held % 2 > 0 { "╸" } else { "" };
    let taken = held.div_ceil(2);
    let promised = (halves(promised) / 2).saturating_sub(taken);
    Line::from(vec![
        Span::styled(full, look.style(tone)),
        Span::styled("╍".repeat(promised), look.empty()),
        Span::styled("─".repeat(width - taken - promised), look.empty()),
    ])
}

/// What somebody should know before all else, in one line.
fn most_urgent(model: &Model, look: Look) -> Option<Line<'static>> {
    if let Some(why) = &model.gone {
        return Some(Line::from(look.span(format!(" {}", safe(why)), Tone::Bad)));
    }
    let view = model.view.as_ref()?;
    let mut notes = status::notes(view).into_iter().filter(|(tone, _)| *tone != Tone::Plain);
    let (tone, note) = notes.next()?;
    let mut spans = vec![look.span(format!(" {}", safe(&note)), tone)];
    match notes.count() {
        0 => {}
        more => spans.push(look.span(format!("  (+{more})"), Tone::Faint)),
    }
    Some(Line::from(spans))
}

/// Where the table's bar stands, and the line over time.
const BAR: &str = "MEMORY";
const TREND: &str = "TREND";

/// Shortest line over time in the table.
const TREND_WIDTH: usize = 8;

fn services(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    let rows = model.rows();
    let room = usize::from(area.width).saturating_sub(3);
    let mut table = table(rows, model.place()).fit(room, &ORDER);
    // What is left makes bars longer, and then shows their past.
    let left = room.saturating_sub(table.width());
    let longer = if left < TREND_WIDTH + 6 { left.min(12) } else { 4 + (left - TREND_WIDTH - 6) / 2 };
    let bar_at = table.widen(BAR, longer);
    let trend = left.saturating_sub(longer + 2);
    let height = usize::from(area.height).saturating_sub(1);
    let first = first_shown(model.place(), rows.len(), height);
    for (index, mut parts) in table.lines().into_iter().enumerate() {
        let at = if index == 0 {
            0
        } else if index > first && index <= first + height {
            index - first
        } else {
            continue;
        };
        let line = Rect { x: area.x + 1, y: area.y + at as u16, width: area.width.saturating_sub(1), height: 1 };
        let Some(row) = index.checked_sub(1).and_then(|index| rows.get(index)) else {
            let mut spans: Vec<Span> = parts.drain(..).map(|(text, tone)| look.span(text, tone)).collect();
            if trend >= TREND_WIDTH {
                spans.push(look.span(format!("  {TREND}"), Tone::Faint));
            }
            Line::from(spans).render(line, buffer);
            continue;
        };
        let spans: Vec<Span> = parts.drain(..).map(|(text, tone)| look.span(text, tone)).collect();
        Line::from(spans).render(line, buffer);
        let tone = Tone::of_stage(row.stage);
        if let Some(bar_at) = bar_at {
            let width = BAR_WIDTH + longer;
            let mut place = line;
            let _ = take_left(&mut place, bar_at as u16);
            place.width = place.width.min(width as u16);
            let filled = bar(row.memory_bytes, row.admitted_bytes, row.limit_bytes, width, tone, look);
            if row.pid.is_some() {
                filled.render(place, buffer);
            }
        }
        if trend >= TREND_WIDTH
            && let Some(past) = model.memory.get(&who_of(row))
        {
            let mut place = line;
            let _ = take_left(&mut place, (table.width() + 2) as u16);
            place.width = place.width.min(trend as u16);
            chart::draw(past, look, place, buffer);
        }
        if index - 1 == model.place() {
            buffer.set_style(Rect { x: area.x, width: area.width, ..line }, look.selected());
        } else if matches!(row.state, State::Stopped) || model.gone.is_some() {
            buffer.set_style(line, look.style(Tone::Faint));
        }
    }
}

/// The first row that is shown, so that the selected one is.
fn first_shown(place: usize, rows: usize, height: usize) -> usize {
    place.saturating_sub(height / 2).min(rows.saturating_sub(height))
}

/// Shortest bar.
const BAR_WIDTH: usize = 8;

const ORDER: [GiveWay; 9] = [
    GiveWay::Cut("SERVICE", 18),
    GiveWay::Closer,
    GiveWay::Short("STATE"),
    GiveWay::Drop("HEALTH"),
    GiveWay::Cut("SERVICE", 14),
    GiveWay::Drop("THR%"),
    GiveWay::Cut("SERVICE", 9),
    GiveWay::Drop("RESTARTS"),
    GiveWay::Drop("LINE IN"),
];

fn table(rows: &[ServiceRow], place: usize) -> Table {
    let each = |cell: &dyn Fn(usize, &ServiceRow) -> Cell| {
        rows.iter().enumerate().map(|(index, row)| cell(index, row)).collect::<Vec<Cell>>()
    };
    let running = |row: &ServiceRow, text: String| if row.pid.is_some() { Cell::new(text) } else { Cell::default() };
    let throttled = |row: &ServiceRow| {
        let tone = if row.throttled_percent < 10.0 { Tone::Plain } else { Tone::Warning };
        running(row, format!("{:.0}", row.throttled_percent)).tone(tone)
    };
    let restarts = |row: &ServiceRow| {
        let attempt = view::attempt(row);
        match attempt.text.as_str() {
            "" => Cell::new(row.restarts.to_string()),
            text => Cell::new(format!("{} ({text})", row.restarts)).tone(attempt.tone),
        }
    };
    let held = |row: &ServiceRow| {
        let held = if row.pid.is_some() { brief(row.memory_bytes) } else { "-".to_owned() };
        Cell::new(format!("{held}/{}", brief(row.limit_bytes)))
    };
    let name = |index: usize, row: &ServiceRow| {
        let mark = if index == place { '▸' } else { ' ' };
        Cell::new(format!("{mark} {}/{}", row.name, row.replica))
    };
    Table::new([
        Column::left("SERVICE", each(&name)).least(9),
        Column::left("STATE", each(&|_, row| view::state(row))).least(11),
        Column::left(BAR, each(&|_, _| Cell::default())).least(BAR_WIDTH),
        Column::right("", each(&|_, row| held(row))).least(9),
        Column::right("CPU%", each(&|_, row| running(row, format!("{:.0}", row.cpu_percent)))).least(4),
        Column::right("THR%", each(&|_, row| throttled(row))).least(4),
        Column::right("RESTARTS", each(&|_, row| restarts(row))).least(8),
        Column::left("HEALTH", each(&|_, row| status::health(row))).least(9),
        Column::right("LINE IN", each(&|_, row| view::forecast(row.forecast_ms))).least(7),
    ])
}

/// A rule with a title on it; what is below it is the pane.
fn pane(title: &str, note: &str, is_focused: bool, look: Look, area: Rect, buffer: &mut Buffer) -> Rect {
    let mut rest = area;
    let top = take_top(&mut rest, 1);
    let style = look.rule(is_focused);
    let note = if note.is_empty() { String::new() } else { format!(" {note} ─") };
    let room = usize::from(top.width);
    let mut words = format!("─ {title} ");
    let used = Span::raw(&words).width() + Span::raw(&note).width();
    if used <= room {
        words.push_str(&"─".repeat(room - used));
        words.push_str(&note);
    }
    buffer.set_stringn(top.x, top.y, &words, room, style);
    rest
}

fn middle(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    let mut rest = area;
    let tree = take_right(&mut rest, (area.width * 2 / 5).clamp(24, 60));
    let _ = take_right(&mut rest, 1);
    if rest.width >= 44 {
        let width = rest.width * 2 / 5;
        let budget = take_right(&mut rest, width);
        let _ = take_right(&mut rest, 1);
        let line = model.view.as_ref().map_or(0, |view| view.stack.budget.limit_bytes);
        line_over_time("budget", &model.budget, line, look, budget, buffer);
    }
    if let Some(row) = model.row()
        && let Some(past) = model.memory.get(&who_of(row))
    {
        line_over_time(&format!("memory {}/{}", row.name, row.replica), past, row.limit_bytes, look, rest, buffer);
    } else {
        pane("memory", "", false, look, rest, buffer);
    }
    processes(model, look, tree, buffer);
}

fn line_over_time(
    who: &str,
    past: &std::collections::VecDeque<super::model::Look>,
    line: u64,
    look: Look,
    area: Rect,
    buffer: &mut Buffer,
) {
    const SCALE: u16 = 6;
    let width = area.width.saturating_sub(SCALE);
    let span = chart::seconds_per_column(past.len(), width.into()) * u64::from(width);
    let mut rest = pane(who, &brief_time(span * 1000), false, look, area, buffer);
    let scale = take_left(&mut rest, SCALE);
    let faint = look.style(Tone::Faint);
    let mut mark = |row: u16, text: String| {
        buffer.set_stringn(scale.x, scale.y + row, format!("{text:>5}"), SCALE.into(), faint);
    };
    if scale.height > 0 {
        mark(0, brief(line));
    }
    if scale.height > 2 {
        mark(scale.height - 1, "0".to_owned());
    }
    if scale.height > 4 {
        mark(scale.height / 2, brief(line / 2));
    }
    chart::draw(past, look, rest, buffer);
}

fn processes(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    let branches = model.branches();
    let is_focused = model.focus == Focus::Tree;
    let title = match branches.len() {
        0 => "no process".to_owned(),
        1 => "1 process".to_owned(),
        many => format!("{many} processes"),
    };
    let rest = pane(&title, if is_focused { "K kills" } else { "" }, is_focused, look, area, buffer);
    let place = model.process_place();
    let first = first_shown(place, branches.len(), rest.height.into());
    for (index, (branch, process)) in branches.iter().enumerate().skip(first).take(rest.height.into()) {
        let line = Rect { y: rest.y + (index - first) as u16, height: 1, ..rest };
        let mark = if is_focused && index == place { "▸" } else { " " };
        let left = Line::from(vec![
            Span::raw(mark),
            look.span(branch.clone(), Tone::Faint),
            Span::raw(safe(&process.name)),
            look.span(format!(" {}", process.pid), Tone::Faint),
        ]);
        both_ends(left, Line::from(format!("{} ", brief(process.memory_bytes))), line, buffer);
        if is_focused && index == place {
            buffer.set_style(line, look.selected());
        }
    }
}

fn events(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    if area.height < 2 {
        return;
    }
    let rest = pane("events", "UTC", false, look, area, buffer);
    let shown = model.events.len().min(rest.height.into());
    for (at, row) in model.events.iter().skip(model.events.len() - shown).enumerate() {
        let line = Rect { y: rest.y + at as u16, height: 1, ..rest };
        let spans = vec![
            look.span(format!(" {} ", row.at.strftime("%H:%M:%S")), Tone::Faint),
            look.span(safe(&row.event.to_string()), super::super::events::tone_of(row)),
        ];
        Line::from(spans).render(line, buffer);
    }
}

fn footer(model: &Model, look: Look, area: Rect, buffer: &mut Buffer) {
    if let Some((tone, said)) = &model.said {
        return Line::from(look.span(format!(" {}", safe(said.lines().next().unwrap_or(""))), *tone))
            .render(area, buffer);
    }
    let keys = [
        ("↑↓", "select"),
        ("Tab", if model.focus == Focus::Tree { "table" } else { "tree" }),
        ("r", "restart"),
        ("s", "stop"),
        ("S", "start"),
        ("K", "kill"),
        ("?", "help"),
        ("q", "quit"),
    ];
    let mut spans = Vec::new();
    for (key, what) in keys {
        spans.push(look.span(format!(" {key}"), Tone::Strong));
        spans.push(look.span(format!(" {what} "), Tone::Faint));
    }
    Line::from(spans).render(area, buffer);
}

fn help(look: Look, area: Rect, buffer: &mut Buffer) {
    let mut lines: Vec<Line> = KEYS
        .iter()
        .map(|(key, what)| Line::from(vec![look.span(format!("{key:<15}"), Tone::Strong), Span::raw(*what)]))
        .collect();
    lines.push(Line::default());
    let stages = [
        ("normal", Tone::Good),
        ("alert 80 %", Tone::Notice),
        ("degrade 90 %", Tone::Warning),
        ("shed 95 %", Tone::Bad),
    ];
    let mut ladder = vec![Span::raw("of a line: ")];
    ladder.extend(stages.map(|(name, tone)| look.span(format!("{name}  "), tone)));
    lines.push(Line::from(ladder));
    popup("keys", lines, look, area, buffer);
}

fn popup(title: &str, lines: Vec<Line<'_>>, look: Look, area: Rect, buffer: &mut Buffer) {
    let widest = lines.iter().map(Line::width).max().unwrap_or(0).max(title.len() + 2);
    let width = u16::try_from(widest).unwrap_or(u16::MAX).saturating_add(4).min(area.width);
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    // A little air, so that no half of a word touches it.
    let around = Rect { x: place.x.saturating_sub(1), width: place.width + 2, ..place };
    Clear.render(around.intersection(area), buffer);
    let block = ratatui::widgets::Block::bordered()
        .border_type(ratatui::widgets::BorderType::Rounded)
        .border_style(look.rule(true))
        .padding(ratatui::widgets::Padding::horizontal(1))
        .title(format!(" {title} "));
    Paragraph::new(lines).block(block).render(place, buffer);
}
