//! usage: report FILE... > report.html
//!
//! One self-contained page of what the benches printed (ci/bench keeps it in target/bench): every
//! table with a plot of each of its columns, and the text as it was. A table is two or more
//! lines of a paragraph that end in equally many numbers, but for remarks between them; the line above
//! the first names the columns. A file that ends in `.svg` is a picture of the bench before it.

use std::fmt::Write as _;
use std::path::Path;

/// A number as printed, with its worth.
#[derive(Debug, Clone, PartialEq)]
struct Cell {
    text: String,
    /// None for a word such as `ok` or a dash.
    value: Option<f64>,
}

#[derive(Debug, PartialEq)]
struct Table {
    /// May be empty.
    title: String,
    /// Names, each over so many columns. One that is empty names nothing.
    columns: Vec<(String, usize)>,
    rows: Vec<Row>,
}

/// A label and the cells after it.
type Row = (String, Vec<Cell>);

fn main() {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let mut body = String::new();
    for file in &files {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) => {
                eprintln!("report: can't read {file}: {e}");
                std::process::exit(1);
            }
        };
        let name = Path::new(file).file_stem().map_or(file.clone(), |s| s.to_string_lossy().into());
        if file.ends_with(".svg") {
            body.push_str(&text);
        } else {
            section(&mut body, &name, &text);
        }
    }
    println!("{HEAD}<main><h1>Polity: benches</h1>\n<p>{NOTE}</p>\n{body}</main></html>");
}

const NOTE: &str = "Measured in guests whose clock counts instructions (1 instruction = 1 ns): \
    the figures repeat whatever else the machine does, and know nothing of cache misses. Where a \
    text says that its guest ran otherwise, that holds.";

const HEAD: &str = r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Polity: benches</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #6a737d; --bar: #3b6fb6; --line: #d8dee4; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #8b949e; --bar: #6ea8fe; --line: #30363d; --paper: #0d1117 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 }
main { max-width: 70rem; margin: 0 auto; padding: 1rem }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .15rem .8rem .15rem 0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th[colspan] { text-align: center }
caption { text-align: left; color: var(--dim) }
.scroll { overflow-x: auto } .plots { display: flex; flex-wrap: wrap; gap: 1.5rem }
svg { max-width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: var(--ink) }
svg .bar { fill: var(--bar) } svg .title { font-weight: 600 } pre { overflow-x: auto; color: var(--dim) }
</style>
"#;

fn section(page: &mut String, name: &str, text: &str) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(name));
    let kernel = kernel(text).map_or("an unknown kernel".to_owned(), |k| format!("Linux {k}"));
    let tables = tables(text);
    for table in &tables {
        if !table.title.is_empty() {
            let _ = writeln!(page, "<h3>{}</h3>", escape(&table.title));
        }
        html(page, table, &kernel);
        let _ = writeln!(page, "<div class=plots>");
        plots(page, table);
        let _ = writeln!(page, "</div>");
    }
    // All that there is, where it has no table.
    let open = if tables.is_empty() { " open" } else { "" };
    let _ = writeln!(
        page,
        "<details{open}><summary>as printed</summary><pre>{}</pre></details>",
        escape(text)
    );
}

/// The release that a bench names at the beginning of a line.
fn kernel(text: &str) -> Option<&str> {
    let release = text.lines().find_map(|l| l.strip_prefix("Linux "))?.split_whitespace().next()?;
    Some(release.trim_end_matches([':', ',']))
}

/// The tables of a text.
fn tables(text: &str) -> Vec<Table> {
    // Not what ci/bench says before the bench.
    let chatter = |l: &&str| ["setup: ", "bench: ", "vm: "].iter().any(|c| l.starts_with(c));
    let lines: Vec<&str> = text.lines().filter(|l| !chatter(l)).collect();
    lines.split(|l| l.trim().is_empty()).flat_map(paragraph).collect()
}

/// The tables of lines without an empty one among them: all below the same head.
fn paragraph(lines: &[&str]) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut heads: &[&str] = &[];
    let rows: Vec<Row> = lines.iter().map(|line| row(line)).collect();
    let mut at = 0;
    while at < rows.len() {
        let count = rows[at].1.len();
        let same = |row: &&Row| row.1.len() == count && !row.0.is_empty();
        let end = at + rows[at..].iter().take_while(same).count();
        if count == 0 || end < at + 2 {
            at += 1;
            continue;
        }
        if tables.is_empty() {
            heads = &lines[..at];
        }
        let block = rows[at..end].to_vec();
        match tables.last_mut().filter(|t| t.rows[0].1.len() == count) {
            // There was but a remark in between.
            Some(table) => table.rows.extend(block),
            None => tables.push(Table {
                title: if tables.is_empty() { title(heads) } else { String::new() },
                columns: columns(heads.last().unwrap_or(&""), &block),
                rows: block,
            }),
        }
        at = end;
    }
    tables
}

/// What stands above a table, without the kernel: the first line, where it is more than names.
fn title(heads: &[&str]) -> String {
    let Some(first) = heads.first().map(|l| l.trim()) else { return String::new() };
    if heads.len() == 1 && names(first).len() > 1 {
        return String::new();
    }
    let rest = first.strip_prefix("Linux ").map(|l| l.split_once(' ').map_or("", |(_, rest)| rest));
    rest.unwrap_or(first).to_owned()
}

/// The names in a line: two blanks part them.
fn names(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect()
}

/// Names for the columns of `rows`, from the line above them.
fn columns(head: &str, rows: &[Row]) -> Vec<(String, usize)> {
    let all = rows[0].1.len();
    // Words and pictures at the end of a row have no name.
    let is_number = |c: &usize| rows.iter().any(|(_, cells)| cells[*c].value.is_some());
    let count = (0..all).rev().find(is_number).map_or(0, |c| c + 1);
    let words: Vec<&str> = head.split_whitespace().collect();
    let numbers = words.iter().rev().take_while(|w| w.parse::<f64>().is_ok()).count();
    let names = match names(head) {
        // A sentence, which may end in the names.
        one if one.len() == 1 && numbers >= 2 => words[words.len() - numbers..].to_vec(),
        one if one.len() == 1 && words.len() > count + 2 => Vec::new(),
        one if one.len() < count && words.len() == count => words,
        more => more,
    };
    let named: Vec<(String, usize)> = match names.len() {
        n if n >= count => names[n - count..].iter().map(|w| ((*w).to_owned(), 1)).collect(),
        n if n > 0 && count.is_multiple_of(n) => {
            names.iter().map(|w| ((*w).to_owned(), count / n)).collect()
        }
        _ => vec![(String::new(), 1); count],
    };
    named.into_iter().chain(std::iter::repeat_n((String::new(), 1), all - count)).collect()
}

/// The label and the cells that a line ends in.
fn row(line: &str) -> (String, Vec<Cell>) {
    let mut line = line.trim().to_owned();
    while line.contains("( ") {
        line = line.replace("( ", "(");
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut cells: Vec<Cell> = Vec::new();
    let (mut rest, mut sign) = (words.len(), "");
    for word in words.iter().rev() {
        match (cell(word), *word) {
            (Some(cell), _) => {
                cells.push(Cell { text: cell.text + std::mem::take(&mut sign), ..cell });
            }
            (None, "%") => sign = " %",
            // What parts two numbers.
            (None, "/") => {}
            _ => break,
        }
        rest -= 1;
    }
    cells.reverse();
    if cells.iter().all(|c| c.value.is_none()) {
        cells.clear();
    }
    (words[..rest].join(" "), cells)
}

fn cell(word: &str) -> Option<Cell> {
    let text = word.to_owned();
    // A word, or a picture made of blocks.
    let is_picture = word.chars().all(|c| ('\u{2581}'..='\u{2588}').contains(&c));
    if ["ok", "FAIL", "-", "n/a"].contains(&word) || is_picture {
        return Some(Cell { text, value: None });
    }
    let bare = word.trim_matches(|c| "()%,;".contains(c));
    let number = bare.strip_prefix('+').unwrap_or(bare).replace(',', "");
    let value = number.parse::<f64>().ok().filter(|v| v.is_finite())?;
    Some(Cell { text, value: Some(value) })
}

fn html(page: &mut String, table: &Table, kernel: &str) {
    let span = |n: &usize| if *n > 1 { format!(" colspan={n}") } else { String::new() };
    let head = table.columns.iter().map(|(name, n)| format!("<th{}>{}", span(n), escape(name)));
    let head: String = head.collect();
    let _ = writeln!(
        page,
        "<div class=scroll><table><caption>{}</caption><tr><th>{head}",
        escape(kernel)
    );
    for (label, cells) in &table.rows {
        let cells: String = cells.iter().map(|c| format!("<td>{}", escape(&c.text))).collect();
        let _ = writeln!(page, "<tr><td>{}{cells}", escape(label));
    }
    let _ = writeln!(page, "</table></div>");
}

/// A plot of each column that has a name, unless that stands for a whole series.
fn plots(page: &mut String, table: &Table) {
    let mut column = 0;
    for (name, span) in &table.columns {
        let comments =
            |c: &usize| table.rows.iter().all(|(_, cells)| cells[*c].text.starts_with('('));
        let group: Vec<usize> = (column..column + span).filter(|c| !comments(c)).collect();
        for (nth, column) in
            group.iter().enumerate().filter(|_| !name.is_empty() && group.len() < 5)
        {
            match group.len() {
                1 => plot(page, table, name, *column),
                _ => plot(page, table, &format!("{name}, number {}", nth + 1), *column),
            }
        }
        column += span;
    }
}

/// Bars of one column; nothing where it has no number above zero, or such that no bar could show.
fn plot(page: &mut String, table: &Table, name: &str, column: usize) {
    let values: Vec<(&str, &Cell)> =
        table.rows.iter().map(|(label, cells)| (label.as_str(), &cells[column])).collect();
    let most = values.iter().filter_map(|(_, c)| c.value).fold(0.0, f64::max);
    let least =
        values.iter().filter_map(|(_, c)| c.value).filter(|v| *v > 0.0).fold(most, f64::min);
    if most <= 0.0 || most > 1000.0 * least {
        return;
    }
    let (left, width, line) = (190.0, 200.0, 18.0);
    let height = line * (values.len() as f64 + 1.5);
    let name = escape(name);
    let _ = writeln!(
        page,
        "<svg role=img aria-label=\"{name}\" width=460 height={height} viewBox=\"0 0 460 {height}\">\
         <text class=title x=0 y=12>{name}</text>"
    );
    for (index, (label, cell)) in values.iter().enumerate() {
        let y = line * (index as f64 + 1.2);
        let long = cell.value.unwrap_or(0.0).max(0.0) / most * width;
        let _ = writeln!(
            page,
            "<text x={:.0} y={:.0} text-anchor=end>{}</text>\
             <rect class=bar x={left} y={y:.0} width={long:.1} height=13 />\
             <text x={:.0} y={:.0}>{}</text>",
            left - 6.0,
            y + 11.0,
            escape(&short(label)),
            left + long + 4.0,
            y + 11.0,
            escape(&cell.text)
        );
    }
    let _ = writeln!(page, "</svg>");
}

fn short(label: &str) -> String {
    match label.char_indices().nth(30) {
        Some((end, _)) => format!("{}…", &label[..end]),
        None => label.to_owned(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "setup: all is there\nLinux 7.3.4: instructions for open+close at depth 2 8\n\
        policy   5085 (   +0)   6419 (   +0)\n\
        no rules   5072 (  -13)   6406 (  -13)\n  to attach these   6230 ms of guest time\n\
        1 rule   5565 ( +480)   6899 ( +480)\n10 rules   5565 ( +480)   6899 ( +480)\n\n\
        policy              attached us   own %\n\
        tcp-cc/dctcp              12345   1.5 %\n\
        lsm/fs-deny               54321   2.0 %\n\n\
        no numbers here\nrun: 7\n";

    fn named(head: &str, line: &str) -> Vec<(String, usize)> {
        columns(head, &[row(line), row(line)])
    }

    fn each(names: &[(&str, usize)]) -> Vec<(String, usize)> {
        names.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    }

    #[test]
    fn tables_are_found() {
        let all = tables(TEXT);
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(all[0].title, "instructions for open+close at depth 2 8");
        assert_eq!(all[0].columns, each(&[("2", 2), ("8", 2)]));
        assert_eq!(all[0].rows.len(), 4, "a remark does not end it");
        assert_eq!(all[1].columns, each(&[("attached us", 1), ("own %", 1)]));
        assert_eq!(all[1].rows[1].0, "lsm/fs-deny");
        assert_eq!(all[1].rows[1].1[1], Cell { text: "2.0 %".into(), value: Some(2.0) });
        assert_eq!(all[1].title, "");
        assert_eq!(kernel(TEXT), Some("7.3.4"));
    }

    #[test]
    fn columns_are_named_by_the_line_above() {
        let of = |head, line| named(head, line);
        assert_eq!(of("at depth  2  8", "x 1 2"), each(&[("2", 1), ("8", 1)]));
        assert_eq!(of("policy  p50 us  p99 us", "x 1 2"), each(&[("p50 us", 1), ("p99 us", 1)]));
        assert_eq!(of("a sentence and no head of a table", "x 1 2"), each(&[("", 1), ("", 1)]));
        assert_eq!(
            of("  ours   kernel's   ratio", "x 1 2 1.5 ok"),
            each(&[("ours", 1), ("kernel's", 1), ("ratio", 1), ("", 1)])
        );
        assert_eq!(of("  floor   fair", "x 1 / 2 3 / 4"), each(&[("floor", 2), ("fair", 2)]));
        let queue = of("K   mean   max", "5 dctcp 4.6 9 \u{2582}\u{2583}");
        assert_eq!(queue, each(&[("mean", 1), ("max", 1), ("", 1)]));
    }

    #[test]
    fn tables_of_a_paragraph_share_its_head() {
        let all = tables(
            "Linux 7.3.4, 8 CPUs\n  floor  fair\na 1 / 2 3 / 4\nb 1 / 2 3 / 4\nc 1 2\nd - 2\n",
        );
        assert_eq!(all[0].title, "8 CPUs");
        assert_eq!(all[0].columns, each(&[("floor", 2), ("fair", 2)]));
        assert_eq!(all[1].columns, each(&[("floor", 1), ("fair", 1)]));
    }

    #[test]
    fn the_page_is_whole_and_tame() {
        let mut page = String::new();
        section(&mut page, "x", "Linux 7.3<i>\n\nname <script>   value\na&b 1\nc 2\n");
        assert!(page.contains("<svg") && page.contains("a&amp;b") && !page.contains("<script>"));
        assert!(page.contains("<caption>Linux 7.3&lt;i&gt;</caption>") && !page.contains("open>"));
        section(&mut page, "y", "nothing to see");
        assert!(page.contains("<details open>"));
    }
}
