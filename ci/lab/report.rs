//! usage: report FILE... > report.html
//!
//! One self-contained page of what the benches printed (ci/bench keeps it in target/bench): every
//! table with a plot of each of its columns, and the text as it was. A table is two or more
//! lines in a row that end in equally many numbers; the line above names the columns. A file that
//! ends in `.svg` is a picture of the bench before it.

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
    title: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Cell>)>,
}

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
th:first-child, td:first-child { text-align: left }
.scroll { overflow-x: auto } .plots { display: flex; flex-wrap: wrap; gap: 1.5rem }
svg { max-width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: var(--ink) }
svg .bar { fill: var(--bar) } svg .title { font-weight: 600 } pre { overflow-x: auto; color: var(--dim) }
</style>
"#;

fn section(page: &mut String, name: &str, text: &str) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(name));
    for table in tables(text) {
        let _ = writeln!(page, "<h3>{}</h3>", escape(&table.title));
        html(page, &table);
        let _ = writeln!(page, "<div class=plots>");
        for column in 0..table.columns.len() {
            plot(page, &table, column);
        }
        let _ = writeln!(page, "</div>");
    }
    let _ = writeln!(
        page,
        "<details><summary>as printed</summary><pre>{}</pre></details>",
        escape(text)
    );
}

/// The tables of a text.
fn tables(text: &str) -> Vec<Table> {
    let lines: Vec<&str> = text.lines().collect();
    let rows: Vec<_> = lines.iter().map(|line| row(line)).collect();
    let mut all = Vec::new();
    let mut at = 0;
    while at < rows.len() {
        let count = rows[at].1.len();
        let mut end = at;
        while end < rows.len() && rows[end].1.len() == count && !rows[end].0.is_empty() {
            end += 1;
        }
        if count == 0 || end < at + 2 {
            at += 1;
            continue;
        }
        let head = if at > 0 { lines[at - 1] } else { "" };
        all.push(Table {
            title: title(&lines, at),
            columns: columns(head, count),
            rows: rows[at..end].to_vec(),
        });
        at = end;
    }
    all
}

/// What stands above a table: the last line before its head that is neither a row nor empty.
fn title(lines: &[&str], at: usize) -> String {
    let above = lines[..at].iter().rev().map(|l| l.trim());
    let mut words = above.filter(|l| !l.is_empty() && row(l).1.is_empty());
    let head = words.next().unwrap_or_default();
    words.next().filter(|l| l.len() > head.len() / 3).unwrap_or(head).to_owned()
}

/// Names for `count` columns, from the line above them.
fn columns(head: &str, count: usize) -> Vec<String> {
    // Two blanks part the names of a head; single ones do where that gives too few.
    let wide: Vec<&str> = head.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect();
    let words: Vec<&str> = head.split_whitespace().filter(|w| *w != "/").collect();
    // A sentence that ends in numbers: each stands for one column or for several.
    let numbers = words.iter().rev().take_while(|w| w.parse::<f64>().is_ok()).count();
    if numbers >= 2 && count.is_multiple_of(numbers) {
        let each = count / numbers;
        let names = words[words.len() - numbers..].iter();
        return names.flat_map(|w| std::iter::repeat_n((*w).to_owned(), each)).collect();
    }
    let names = match wide.len() {
        n if n >= count => wide,
        // No head but a sentence.
        1 if words.len() > count + 2 => Vec::new(),
        _ => words,
    };
    match names.len().checked_sub(count) {
        Some(skip) => names[skip..].iter().map(|w| (*w).to_owned()).collect(),
        None => (1..=count).map(|n| format!("column {n}")).collect(),
    }
}

/// The label and the cells that a line ends in.
fn row(line: &str) -> (String, Vec<Cell>) {
    let mut line = line.trim().to_owned();
    while line.contains("( ") {
        line = line.replace("( ", "(");
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut cells = Vec::new();
    let mut rest = words.len();
    for word in words.iter().rev() {
        match (cell(word), *word) {
            (Some(cell), _) => cells.push(cell),
            // The sign of the number before it, or what parts two numbers.
            (None, "%" | "/") => {}
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
    if ["ok", "FAIL", "-", "n/a"].contains(&word) {
        return Some(Cell { text, value: None });
    }
    let bare = word.trim_matches(|c| "()%,;".contains(c));
    let number = bare.strip_prefix('+').unwrap_or(bare).replace(',', "");
    let value = number.parse::<f64>().ok().filter(|v| v.is_finite())?;
    Some(Cell { text, value: Some(value) })
}

fn html(page: &mut String, table: &Table) {
    let head: String = table.columns.iter().map(|c| format!("<th>{}", escape(c))).collect();
    let _ = writeln!(page, "<div class=scroll><table><tr><th>{head}");
    for (label, cells) in &table.rows {
        let cells: String = cells.iter().map(|c| format!("<td>{}", escape(&c.text))).collect();
        let _ = writeln!(page, "<tr><td>{}{cells}", escape(label));
    }
    let _ = writeln!(page, "</table></div>");
}

/// Bars of one column; nothing where it has no number above zero, or comments on the one before.
fn plot(page: &mut String, table: &Table, column: usize) {
    let values: Vec<(&str, &Cell)> =
        table.rows.iter().map(|(label, cells)| (label.as_str(), &cells[column])).collect();
    let most = values.iter().filter_map(|(_, c)| c.value).fold(0.0, f64::max);
    if most <= 0.0 || values.iter().all(|(_, c)| c.text.starts_with('(')) {
        return;
    }
    let (left, width, line) = (190.0, 200.0, 18.0);
    let height = line * (values.len() as f64 + 1.5);
    let name = escape(&table.columns[column]);
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

    const TEXT: &str = "Linux 7.3.4: instructions for open+close\n\n\
        policy              attached us   own %\n\
        tcp-cc/dctcp              12345     1.5\n\
        lsm/fs-deny               54321   (   +2)\n\n\
        no numbers here\nrun: 7\n";

    #[test]
    fn tables_are_found() {
        let all = tables(TEXT);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].columns, ["attached us", "own %"]);
        assert_eq!(all[0].rows[1].0, "lsm/fs-deny");
        assert_eq!(all[0].rows[1].1[1].value, Some(2.0));
        assert_eq!(all[0].title, "Linux 7.3.4: instructions for open+close");
    }

    #[test]
    fn columns_are_named_by_the_line_above() {
        assert_eq!(columns("open+close at depth 2 8", 4), ["2", "2", "8", "8"]);
        assert_eq!(columns("policy  p50 us  p99 us", 2), ["p50 us", "p99 us"]);
        assert_eq!(columns("a sentence and no head of a table", 2), ["column 1", "column 2"]);
        assert_eq!(columns("  ours kernel's ratio", 3), ["ours", "kernel's", "ratio"]);
    }

    #[test]
    fn the_page_is_whole_and_tame() {
        let mut page = String::new();
        section(&mut page, "x", "name <script>\na&b 1\nc 2\n");
        assert!(page.contains("<svg") && page.contains("a&amp;b") && !page.contains("<script>"));
    }
}
