//! How `polity top` looks. Draws what the model has and reads nothing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table};

use super::keys::HELP;
use super::model::{Model, Order, Page};
use super::series::Series;
use crate::manifest::StatType;
use crate::supervise::guard::short;

/// From nothing to the most.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

/// Draws a picture.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(header(model)), head);
    match model.page {
        Page::Main => main(frame, body, model),
        Page::Cpus => cpus(frame, body, model),
        Page::Events => events(frame, body, model),
        Page::Help => help(frame, body),
    }
    frame.render_widget(Paragraph::new(footer(model)), foot);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// Colour where it may be used; never the only sign of anything.
fn tint(model: &Model, colour: Color) -> Style {
    if model.colour { Style::new().fg(colour) } else { Style::new() }
}

fn header(model: &Model) -> Line<'static> {
    let count = model.rows.len();
    let mut text = format!(" {count} attached, {} events", model.came);
    if let Some(waits) = model.waits {
        text.push_str(&format!(
            "  run queue: {} waits/s, p50 {} us, p99 {} us, longest {} us",
            short(waits.rate),
            short(waits.p50),
            short(waits.p99),
            waits.max
        ));
    }
    let paused = if model.paused { "  PAUSED" } else { "" };
    Line::from(vec![
        Span::styled("polity top", bold()),
        Span::raw(text),
        Span::styled(paused, bold()),
    ])
}

fn footer(model: &Model) -> Line<'static> {
    if model.typing {
        return Line::from(format!("filter: {}_", model.filter));
    }
    if let Some(trouble) = &model.trouble {
        return Line::from(trouble.lines().next().unwrap_or_default().to_owned());
    }
    let keys =
        "q quit  j/k choose  Enter CPUs  e events  f filter  s sort  r run queue  p pause  ? help";
    Line::from(Span::styled(keys, Style::new().add_modifier(Modifier::DIM)))
}

fn main(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let policies = (model.rows.len() as u16 + 1).clamp(2, (1 + area.height / 4).max(2));
    let below = if area.height >= 40 { 12 } else { 6 };
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(policies),
        Constraint::Min(3),
        Constraint::Length(below.min(area.height / 3)),
    ])
    .areas(area);
    list(frame, top, model);
    statistics(frame, middle, model);
    events(frame, bottom, model);
}

fn list(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    if model.rows.is_empty() {
        let text = "nothing is attached: `polity attach` or `polity apply` does";
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    // The chosen one is always seen.
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let skip = (model.chosen + 1).saturating_sub(room);
    let rows = model.rows.iter().enumerate().skip(skip).map(|(index, row)| {
        let mark = if index == model.chosen { ">" } else { " " };
        let colour = if row.state == "attached" { Color::Green } else { Color::Red };
        let cells = Cells::new([
            Cell::from(format!("{mark} {}", row.policy)),
            Cell::from(row.state).style(tint(model, colour)),
            Cell::from(row.how),
            Cell::from(row.detail.clone()),
        ]);
        if index == model.chosen { cells.style(bold()) } else { cells }
    });
    let widths =
        [Constraint::Length(24), Constraint::Length(9), Constraint::Length(7), Constraint::Min(10)];
    let head = Cells::new(["  POLICY", "STATE", "HOW", "DETAIL"]).style(bold());
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn statistics(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let name = model.chosen().map_or("", |row| &row.policy);
    let order = match model.order {
        Order::Own => "",
        Order::Rate => " by rate",
        Order::Name => " by name",
    };
    let filter = match model.filter.as_str() {
        "" => String::new(),
        filter => format!(" with `{filter}`"),
    };
    let [line, area] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let title = format!("statistics of {name}{order}{filter}");
    frame.render_widget(Paragraph::new(rule(&title, line.width)), line);
    let spark = usize::from(area.width.saturating_sub(24 + 14 + 12 + 3)).min(60);
    let rows = model.series().into_iter().map(|series| {
        let rate = match (series.ty, series.rate, series.quantiles) {
            (StatType::Histogram, _, Some((p50, p99))) => {
                format!("p50 {} p99 {}", short(p50), short(p99))
            }
            (_, Some(rate), _) => format!("{}/s", short(rate)),
            _ => String::new(),
        };
        Cells::new([
            Cell::from(series.name.clone()),
            Cell::from(format!("{:>14}", series.value)),
            Cell::from(format!("{rate:>12}")),
            Cell::from(graph(series, spark)).style(tint(model, Color::Cyan)),
        ])
    });
    let widths = [
        Constraint::Length(24),
        Constraint::Length(14),
        Constraint::Length(12),
        Constraint::Min(0),
    ];
    let head = Cells::new([
        "STATISTIC".to_owned(),
        format!("{:>14}", "TOTAL"),
        format!("{:>12}", "RATE"),
        "LAST SECONDS".to_owned(),
    ]);
    frame.render_widget(Table::new(rows, widths).header(head.style(bold())), area);
}

fn cpus(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let series: Vec<_> = model.series().into_iter().filter(|s| !s.per_cpu.is_empty()).collect();
    let name = model.chosen().map_or("", |row| &row.policy);
    let [line, area] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let title = format!("{name} on each CPU: per second, a gauge as it is");
    frame.render_widget(Paragraph::new(rule(&title, line.width)), line);
    let count = series.iter().map(|s| s.per_cpu.len()).max().unwrap_or(0);
    let room = usize::from(area.width.saturating_sub(24)) / 10;
    let shown = count.min(room.max(1));
    let mut head = vec!["STATISTIC".to_owned()];
    head.extend((0..shown).map(|cpu| format!("{:>9}", format!("CPU {cpu}"))));
    let rows = series.iter().map(|s| {
        let number = |cpu: usize| match s.ty {
            StatType::Gauge => s.per_cpu.get(cpu).map_or_else(String::new, u64::to_string),
            _ => s.per_cpu_rate.get(cpu).map_or_else(String::new, |rate| short(*rate)),
        };
        let mut cells = vec![s.name.clone()];
        cells.extend((0..shown).map(|cpu| format!("{:>9}", number(cpu))));
        Cells::new(cells)
    });
    let mut widths = vec![Constraint::Length(24)];
    widths.extend(vec![Constraint::Length(9); shown]);
    frame.render_widget(Table::new(rows, widths).header(Cells::new(head).style(bold())), area);
    if shown < count {
        let left = format!("{} more CPUs: a wider terminal shows them", count - shown);
        let bottom = Rect { y: area.bottom().saturating_sub(1), height: 1, ..area };
        frame.render_widget(Paragraph::new(left), bottom);
    }
}

fn events(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    if area.height == 0 {
        return;
    }
    let room = usize::from(area.height) - 1;
    let skip = model.events.len().saturating_sub(room);
    let mut lines = vec![rule("events", area.width)];
    lines.extend(model.events.iter().skip(skip).map(|line| Line::from(line.as_str())));
    frame.render_widget(Paragraph::new(lines), area);
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let line = |(key, what): &(&'static str, &'static str)| {
        Line::from(vec![Span::styled(format!("{key:>14}  "), bold()), Span::raw(*what)])
    };
    let mut lines = vec![rule("keys", area.width), Line::default()];
    lines.extend(HELP.iter().map(line));
    frame.render_widget(Paragraph::new(lines), area);
}

/// A title with a line through the rest of the width.
fn rule(title: &str, width: u16) -> Line<'static> {
    let rest = usize::from(width).saturating_sub(title.chars().count() + 4);
    Line::from(Span::styled(format!("-- {title} {}", "-".repeat(rest)), bold()))
}

/// The last `width` samples, the newest at the right.
fn graph(series: &Series, width: usize) -> String {
    let steps = if unicode() { BLOCKS } else { ASCII };
    let skip = series.past.len().saturating_sub(width);
    let shown: Vec<u64> = series.past.iter().skip(skip).copied().collect();
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    let step = |v: &u64| {
        let top = (steps.len() - 1) as u128;
        steps[(u128::from(*v) * top).div_ceil(u128::from(most)) as usize]
    };
    shown.iter().map(step).collect()
}

/// Whether the terminal says that it takes more than ASCII.
fn unicode() -> bool {
    let first = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(std::env::var_os);
    let locale = first.map(|v| v.to_string_lossy().to_lowercase()).find(|v| !v.is_empty());
    locale.is_some_and(|l| l.contains("utf-8") || l.contains("utf8"))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(line).collect()
    }

    #[test]
    fn every_page_fits_any_terminal() {
        let mut model = Model::new(false);
        for n in 0..30 {
            model.event(&json!({"time": "2026-11-22T07:00:00.000000Z", "policy": "lsm/x",
                "event": "denied", "path": format!("/etc/{n}"), "comm": "a\u{1b}[2Jb"}));
        }
        for page in [Page::Main, Page::Cpus, Page::Events, Page::Help] {
            model.page = page;
            for (width, height) in [(80, 24), (200, 60), (1, 1), (20, 3), (500, 5)] {
                let lines = screen(&model, width, height);
                assert!(lines.iter().all(|l| !l.contains('\u{1b}')));
                if (width, height) == (80, 24) {
                    assert!(lines[0].starts_with("polity top 0 attached, 30 events"), "{lines:?}");
                    assert!(lines[23].starts_with("q quit  j/k choose"), "{lines:?}");
                }
            }
        }
        model.page = Page::Main;
        let lines = screen(&model, 80, 24).join("\n");
        assert!(lines.contains("07:00:00 lsm/x denied path=/etc/29 comm=a?[2Jb"), "{lines}");
        assert!(!lines.contains("path=/etc/9 "), "only the newest fit");
    }

    #[test]
    fn nothing_is_coloured_without_colour() {
        let mut model = Model::new(false);
        model.page = Page::Help;
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &model)).unwrap();
        let buffer = terminal.backend().buffer();
        assert!(buffer.content().iter().all(|c| c.fg == Color::Reset && c.bg == Color::Reset));
    }
}
