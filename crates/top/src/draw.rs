//! How it is drawn: five parts that fit into 80 columns and 24 lines, and use what there is beyond.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Row, Table},
};

use crate::{
    picture::{Agent, Picture, Share},
    view::View,
};

/// Below this nothing can be read.
const WIDTH_MIN: u16 = 40;
const HEIGHT_MIN: u16 = 10;

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    fn of(self, color: Color) -> Style {
        if self.0 { Style::new().fg(color) } else { Style::new() }
    }

    /// As tables of `ctl` have it.
    fn state(self, word: &str) -> Style {
        match word {
            "connected" | "succeeded" => self.of(Color::Green),
            "lost" | "failed" => self.of(Color::Red),
            "stopped" | "skipped" => self.of(Color::DarkGray),
            _ => self.of(Color::Yellow),
        }
    }

    /// Full is worth a look.
    fn bar(self, part: f64) -> Style {
        self.of(if part >= 0.9 {
            Color::Red
        } else if part >= 0.6 {
            Color::Yellow
        } else {
            Color::Green
        })
    }
}

/// Lines of the screen that say something else: head and keys.
const FRAME: u16 = 4;
/// A title and the heads of a table.
const TITLES: u16 = 2;

/// How many of `count` agents are seen on a screen of this height.
pub(crate) fn agents_page(area: Rect, count: usize) -> usize {
    let [_, agents, ..] = parts(area, count);
    usize::from(agents.height.saturating_sub(TITLES))
}

/// Head, agents, tasks, queues and ends, keys. What few agents leave of their share is for tasks.
fn parts(area: Rect, agents: usize) -> [Rect; 5] {
    let share = area.height.saturating_sub(FRAME) * 5 / 12;
    let needed = u16::try_from(agents).unwrap_or(u16::MAX).max(1).saturating_add(TITLES);
    Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(share.min(needed)),
        Constraint::Fill(4),
        Constraint::Fill(3),
        Constraint::Length(1),
    ])
    .areas(area)
}

/// The whole screen.
pub(crate) fn draw(frame: &mut Frame<'_>, picture: &Picture, view: &View, paint: Paint) {
    let area = frame.area();
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        let text = format!("too small: {WIDTH_MIN}x{HEIGHT_MIN} at least");
        return frame.render_widget(Paragraph::new(text), area);
    }
    let [top, middle, tasks_at, below, bottom] = parts(area, view.agents(picture).len());
    head(frame, top, picture, view, paint);
    agents(frame, middle, picture, view, paint);
    tasks(frame, tasks_at, picture, view);
    let halves = Layout::horizontal([Constraint::Percentage(45), Constraint::Fill(1)]).spacing(2);
    let [left, right] = halves.areas(below);
    queues(frame, left, picture);
    ends(frame, right, picture, view, paint);
    keys(frame, bottom, view);
}

fn head(frame: &mut Frame<'_>, area: Rect, picture: &Picture, view: &View, paint: Paint) {
    let totals = &picture.totals;
    let [first, second, third] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    let state = if view.paused { format!("PAUSED  {}", picture.clock) } else { picture.clock.clone() };
    frame.render_widget(Paragraph::new(state).alignment(Alignment::Right), first);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let about = match &picture.problem {
        Some(problem) => Line::styled(problem.clone(), paint.of(Color::Red)),
        None => Line::from(vec![Span::styled("muster ", bold), Span::raw(picture.about.clone())]),
    };
    let room = first.width.saturating_sub(18);
    frame.render_widget(Paragraph::new(about), Rect { width: room, ..first });
    let mut words = vec![format!("agents {}", totals.connected)];
    let more = [(totals.cordoned, "cordoned"), (totals.silent, "silent"), (totals.lost, "lost")];
    words.extend(more.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")));
    words.push(format!("tasks {} running, {} waiting", totals.running, totals.queued));
    frame.render_widget(Paragraph::new(words.join("   ")), second);
    let mut line = vec![Span::raw("cpus ")];
    line.extend(gauge(totals.cpus, 12, paint));
    line.push(Span::raw(format!(" {}   memory ", of(totals.cpus, number))));
    line.extend(gauge(totals.memory, 12, paint));
    line.push(Span::raw(format!(" {}", of(totals.memory, bytes))));
    if totals.gpus.all > 0.0 {
        line.push(Span::raw(format!("   gpus {}", of(totals.gpus, number))));
    }
    frame.render_widget(Paragraph::new(Line::from(line)), third);
}

fn panel(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title)
}

fn agents(frame: &mut Frame<'_>, area: Rect, picture: &Picture, view: &View, paint: Paint) {
    let all = view.agents(picture);
    let page = usize::from(area.height.saturating_sub(TITLES));
    let first = view.first.min(all.len().saturating_sub(page));
    let shown: Vec<_> = all.iter().skip(first).take(page).collect();
    let filtered = if view.filter.is_empty() { String::new() } else { format!(", with `{}`", view.filter) };
    let place = if shown.len() < all.len() {
        format!(" {} to {} of {}", first + 1, first + shown.len(), all.len())
    } else {
        format!(" {}", all.len())
    };
    let block = panel(format!(" agents{place}{filtered}, by {} ", view.sort.name()));
    let columns = columns(area.width);
    let fixed: u16 = columns.iter().map(|column| column.width().map_or(1, |width| width + 1)).sum();
    let name = usize::from(area.width.saturating_sub(fixed));
    let rows = shown.iter().map(|agent| Row::new(columns.iter().map(|column| column.cell(agent, name, paint))));
    let heads = columns.iter().map(|column| column.head());
    let widths = columns.iter().map(|column| column.width().map_or(Constraint::Fill(1), Constraint::Length));
    frame.render_widget(table(rows, widths, heads).block(block), area);
}

/// What is said of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Name,
    State,
    Cpus,
    CpusBar,
    Memory,
    MemoryBar,
    Running,
    Load,
    MemoryFree,
    DiskFree,
}

/// A narrow screen has no bars, and a very narrow one not how the machines are: a name must be told from the next.
fn columns(width: u16) -> &'static [Column] {
    use Column::{Cpus, CpusBar, DiskFree, Load, Memory, MemoryBar, MemoryFree, Name, Running, State};
    match width {
        0..60 => &[Name, State, Cpus, Running],
        60..76 => &[Name, State, Cpus, Memory, Running, Load],
        76..104 => &[Name, State, Cpus, Memory, Running, Load, MemoryFree, DiskFree],
        _ => &[Name, State, CpusBar, MemoryBar, Running, Load, MemoryFree, DiskFree],
    }
}

impl Column {
    fn head(self) -> Line<'static> {
        match self {
            Self::Name => left("NAME"),
            Self::State => left("STATE"),
            Self::CpusBar => left("CPUS"),
            Self::MemoryBar => left("MEMORY"),
            Self::Cpus => right("CPUS"),
            Self::Memory => right("MEMORY"),
            Self::Running => right("RUN"),
            Self::Load => right("LOAD"),
            Self::MemoryFree => right("MEM FREE"),
            Self::DiskFree => right("DISK FREE"),
        }
    }

    /// None: what the others leave.
    fn width(self) -> Option<u16> {
        match self {
            Self::Name => None,
            Self::State | Self::Cpus | Self::DiskFree => Some(9),
            Self::CpusBar => Some(18),
            Self::Memory => Some(11),
            Self::MemoryBar => Some(20),
            Self::Running => Some(5),
            Self::Load => Some(6),
            Self::MemoryFree => Some(8),
        }
    }

    /// A name that is longer than its column is marked, so that nobody takes it for another.
    fn cell(self, agent: &Agent, name: usize, paint: Paint) -> Line<'static> {
        let bar = |share: Share, text: String| {
            let mut spans = gauge(share, 6, paint);
            spans.push(Span::raw(format!(" {text}")));
            Line::from(spans)
        };
        match self {
            Self::Name => left(cut(&agent.name, name)),
            Self::State => Line::styled(agent.state.clone(), paint.state(&agent.state)),
            Self::CpusBar => bar(agent.cpus, of(agent.cpus, number)),
            Self::MemoryBar => bar(agent.memory, of(agent.memory, bytes)),
            Self::Cpus => right(of(agent.cpus, number)),
            Self::Memory => right(of(agent.memory, bytes)),
            Self::Running => right(agent.running.to_string()),
            Self::Load => right(agent.load.map_or_else(|| "-".to_owned(), |load| format!("{load:.2}"))),
            Self::MemoryFree => right(agent.memory_free.map_or_else(|| "-".to_owned(), bytes)),
            Self::DiskFree => right(agent.disk_free.map_or_else(|| "-".to_owned(), bytes)),
        }
    }
}

fn tasks(frame: &mut Frame<'_>, area: Rect, picture: &Picture, view: &View) {
    let all: Vec<_> = picture.tasks.iter().filter(|task| view.holds(&[&task.name, &task.job, &task.agent])).collect();
    let rows = all.iter().map(|task| {
        Row::new([left(task.name.clone()), left(task.job.clone()), left(task.agent.clone()), right(task.runs.clone())])
    });
    let widths = [Constraint::Fill(3), Constraint::Fill(3), Constraint::Fill(2), Constraint::Length(7)];
    let heads = [left("TASK"), left("JOB"), left("AGENT"), right("RUNS")];
    let title = panel(format!(" running tasks, newest jobs {} ", all.len()));
    frame.render_widget(table(rows, widths, heads).block(title), area);
}

fn queues(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let rows = picture.queues.iter().map(|queue| {
        Row::new([left(queue.name.clone()), right(queue.running.to_string()), right(queue.queued.to_string())])
    });
    let widths = [Constraint::Fill(1), Constraint::Length(7), Constraint::Length(7)];
    let heads = [left("QUEUE"), right("RUNNING"), right("WAITING")];
    frame.render_widget(table(rows, widths, heads).block(panel(" queues ".to_owned())), area);
}

fn ends(frame: &mut Frame<'_>, area: Rect, picture: &Picture, view: &View, paint: Paint) {
    let shown = picture.ends.iter().filter(|end| view.holds(&[&end.job, &end.state]));
    let rows = shown.map(|end| {
        let state = Line::styled(end.state.clone(), paint.state(&end.state));
        Row::new([left(end.job.clone()), state, right(end.ago.clone())])
    });
    let widths = [Constraint::Fill(1), Constraint::Length(9), Constraint::Length(5)];
    let heads = [left("JOB"), left("ENDED"), right("AGO")];
    frame.render_widget(table(rows, widths, heads).block(panel(" ended lately ".to_owned())), area);
}

fn keys(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let text = if view.typing {
        format!("filter: {}_   Enter keeps it, Esc takes it back", view.filter)
    } else {
        let pause = if view.paused { "p go on" } else { "p pause" };
        format!("q quit   arrows, PgUp, PgDn scroll   s sort   / filter   {pause}")
    };
    frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::DIM)), area);
}

fn table<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    widths: impl IntoIterator<Item = Constraint>,
    heads: impl IntoIterator<Item = Line<'a>>,
) -> Table<'a> {
    let heads = Row::new(heads).style(Style::new().add_modifier(Modifier::BOLD));
    Table::new(rows.collect::<Vec<_>>(), widths).header(heads).column_spacing(1)
}

fn left<'a>(text: impl Into<std::borrow::Cow<'a, str>>) -> Line<'a> {
    Line::raw(text)
}

fn right<'a>(text: impl Into<std::borrow::Cow<'a, str>>) -> Line<'a> {
    Line::raw(text).alignment(Alignment::Right)
}

fn cut(text: &str, width: usize) -> String {
    if Line::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        if Line::raw(format!("{kept}{c}…")).width() > width {
            break;
        }
        kept.push(c);
    }
    kept + "…"
}

/// `[###   ]`
fn gauge(share: Share, width: u8, paint: Paint) -> Vec<Span<'static>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a width")]
    let full = (share.part() * f64::from(width)).round() as usize;
    let rest = usize::from(width).saturating_sub(full);
    vec![
        Span::raw("["),
        Span::styled("#".repeat(full), paint.bar(share.part())),
        Span::raw(format!("{}]", " ".repeat(rest))),
    ]
}

/// `1.5/8`
fn of(share: Share, text: fn(f64) -> String) -> String {
    format!("{}/{}", text(share.used), text(share.all))
}

fn number(n: f64) -> String {
    if n >= 100.0 || n.fract() == 0.0 { format!("{n:.0}") } else { format!("{n:.1}") }
}

/// Short: `3.2G`.
fn bytes(n: f64) -> String {
    let mut amount = n;
    for unit in ["B", "K", "M", "G", "T"] {
        if amount < 999.5 {
            return if unit == "B" || amount >= 10.0 || amount.fract() == 0.0 {
                format!("{amount:.0}{unit}")
            } else {
                format!("{amount:.1}{unit}")
            };
        }
        amount /= 1024.0;
    }
    format!("{amount:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(picture: &Picture, size: (u16, u16)) -> String {
        crate::frame(picture, &View::default(), size).expect("it is drawn")
    }

    fn pictured(agents: usize) -> Picture {
        let agent = |n: usize| Agent {
            name: format!("machine-{n:04}.with.a.long.name.example.org"),
            state: "connected".into(),
            cpus: Share { used: 4.0, all: 8.0 },
            memory: Share { used: 1e9, all: 8e9 },
            load: Some(12.5),
            memory_free: Some(3e9),
            disk_free: None,
            ..Agent::default()
        };
        let task = |n| crate::Task { name: format!("7.scan[{n}]"), ..crate::Task::default() };
        let queues = vec![crate::Queue { name: "night".into(), running: 1, queued: 2 }];
        let ends = vec![crate::End { job: "6 census".into(), state: "failed".into(), ago: "3s".into() }];
        let (agents, tasks) = ((0..agents).map(agent).collect(), (0..60).map(task).collect());
        Picture { about: "http://c:7717".into(), agents, tasks, queues, ends, ..Picture::default() }
    }

    #[test]
    fn everything_has_its_place_on_the_screens_that_people_have() {
        for size in [(60, 16), (80, 24), (104, 30), (200, 50)] {
            let text = screen(&pictured(100), size);
            for part in [
                "http://c:7717",
                "machine-00",
                "connected",
                "4/8",
                "7.scan[0]",
                "night",
                "6 census",
                "failed",
                "q quit",
            ] {
                assert!(text.contains(part), "no `{part}` at {size:?} in\n{text}");
            }
            assert!(text.lines().all(|line| Line::raw(line).width() <= usize::from(size.0)), "{text}");
        }
        assert!(screen(&pictured(1), (80, 24)).contains("machine-0000.w…"), "what is cut is marked");
        assert!(!screen(&pictured(1), (80, 24)).contains("[###"), "no room for bars");
        assert!(screen(&pictured(1), (120, 24)).contains("[###   ] 4/8"));
        assert!(screen(&pictured(1), (39, 24)).contains("too small"));
        assert!(screen(&pictured(1), (1, 1)).len() <= 2);
    }

    #[test]
    fn what_few_agents_leave_is_for_tasks() {
        let shown = |agents| screen(&pictured(agents), (80, 24)).matches("7.scan[").count();
        assert!(shown(1) > shown(100), "{} and {}", shown(1), shown(100));
        let area = Rect::new(0, 0, 80, 24);
        assert_eq!((agents_page(area, 1), agents_page(area, 1000)), (1, 6));
    }

    #[test]
    fn a_problem_stands_where_it_is_seen_and_the_rest_stays() {
        let picture = Picture { problem: Some("the controller is gone".into()), ..pictured(2) };
        let text = screen(&picture, (80, 24));
        assert!(text.starts_with("the controller is gone") && text.contains("machine-0001"), "{text}");
    }

    #[test]
    fn who_had_scrolled_to_the_end_still_sees_a_full_page_when_agents_go() {
        let view = View { first: 94, sort: crate::Sort::Name, ..View::default() };
        let shown = |agents| crate::frame(&pictured(agents), &view, (80, 24)).expect("it is drawn");
        for (agents, place, last) in [(100, "95 to 100 of 100", 99), (30, "25 to 30 of 30", 29), (3, "agents 3,", 2)] {
            let text = shown(agents);
            assert!(text.contains(place) && text.contains(&format!("machine-{last:04}")), "{agents} agents:\n{text}");
            assert_eq!(text.matches("machine-").count(), agents.min(6), "{agents} agents:\n{text}");
        }
    }

    #[test]
    fn amounts_are_short() {
        for (n, text) in [(0.0, "0B"), (1023.0, "1.0K"), (4.0 * 1024.0 * 1024.0 * 1024.0, "4G"), (1.5e9, "1.4G")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!((number(1.5), number(8.0), number(1234.5)), ("1.5".into(), "8".into(), "1234".into()));
    }
}
