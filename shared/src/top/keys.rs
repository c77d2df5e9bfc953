//! Which key does what: as in bpftop, with a few more.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Model, Order, Page};

/// What the help page says.
pub const HELP: [(&str, &str); 10] = [
    ("q, Ctrl-C", "quit"),
    ("j k, arrows", "choose a policy"),
    ("Enter", "its statistics on each CPU, and back"),
    ("e", "events alone, and back"),
    ("f", "show only statistics whose names contain ...; Enter ends it, Esc drops it"),
    ("s", "order: the policy's own, by rate, by name"),
    ("r", "trace how long tasks wait for a CPU (costs a little at every switch)"),
    ("p, space", "pause"),
    ("Esc", "back"),
    ("?", "this page"),
];

/// Takes a key; false ends the program.
pub fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return !matches!(key.code, KeyCode::Char('c'));
    }
    if model.typing {
        type_filter(model, key.code);
        return true;
    }
    let turn = |page: Page, now: Page| if now == page { Page::Main } else { page };
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('j') | KeyCode::Down => {
            model.chosen = (model.chosen + 1).min(model.rows.len().saturating_sub(1));
        }
        KeyCode::Char('k') | KeyCode::Up => model.chosen = model.chosen.saturating_sub(1),
        KeyCode::Enter => model.page = turn(Page::Cpus, model.page),
        KeyCode::Char('e') => model.page = turn(Page::Events, model.page),
        KeyCode::Char('?' | 'h') => model.page = turn(Page::Help, model.page),
        KeyCode::Esc => model.page = Page::Main,
        KeyCode::Char('f' | '/') => {
            model.typing = true;
            model.filter.clear();
        }
        KeyCode::Char('s') => {
            model.order = match model.order {
                Order::Own => Order::Rate,
                Order::Rate => Order::Name,
                Order::Name => Order::Own,
            };
        }
        KeyCode::Char('r') => model.trace(),
        KeyCode::Char('p' | ' ') => model.paused = !model.paused,
        _ => {}
    }
    true
}

fn type_filter(model: &mut Model, code: KeyCode) {
    match code {
        KeyCode::Enter => model.typing = false,
        KeyCode::Esc => {
            model.typing = false;
            model.filter.clear();
        }
        KeyCode::Backspace => drop(model.filter.pop()),
        KeyCode::Char(c) => model.filter.push(c),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let mut model = Model::new(false);
        let mut press = |code: KeyCode| {
            (super::press(&mut model, code.into()), model.page, model.filter.clone())
        };
        let plain = |c: char| KeyCode::Char(c);
        assert_eq!(press(KeyCode::Enter).1, Page::Cpus);
        assert_eq!(press(plain('?')).1, Page::Help);
        assert_eq!(press(KeyCode::Esc).1, Page::Main);
        assert_eq!(press(plain('e')).1, Page::Events);
        assert_eq!(press(plain('e')).1, Page::Main);
        press(plain('f'));
        press(plain('q'));
        press(plain('a'));
        assert_eq!(press(plain('k')), (true, Page::Main, "qak".to_owned()), "typed, not obeyed");
        assert_eq!(press(KeyCode::Backspace).2, "qa");
        press(KeyCode::Enter);
        assert!(press(plain('j')).0 && press(plain('k')).0, "no policy to choose");
        assert!(!press(plain('q')).0);
        let interrupt = KeyEvent::new(plain('c'), KeyModifiers::CONTROL);
        assert!(!super::press(&mut model, interrupt));
    }
}
