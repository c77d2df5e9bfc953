//! `polity top`.

use std::io::IsTerminal;

use crossbeam::channel::{Receiver, bounded, select, tick};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::live::need_root;
use crate::supervise::signals;
use crate::supervise::watch;
use crate::top::keys;
use crate::top::model::Model;
use crate::top::view;

/// Shows what is attached, its numbers and its events, until `q`.
///
/// # Errors
/// Not root, no terminal.
pub fn run() -> Result<()> {
    need_root("see what is attached")?;
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Error::failed("polity top needs a terminal")
            .hint("`polity stats --watch` prints the same numbers line by line")
            .into());
    }
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let stop = signals::catch()?;
    let mut model = Model::new(colour);
    // What fails at once is better said on a screen that stays.
    let first = model.look()?;
    let mut terminal =
        ratatui::try_init().map_err(|e| Error::failed(format!("can't use this terminal: {e}")))?;
    let mut feed = Feed::default();
    feed.update(&first);
    let result = show(&mut terminal, &mut model, &mut feed, &stop);
    ratatui::restore();
    result
}

fn show(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    feed: &mut Feed,
    stop: &Receiver<signals::Signal>,
) -> Result<()> {
    let (send, pressed) = bounded(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if send.send(event).is_err() {
                return;
            }
        }
    });
    let look = tick(watch::INTERVAL);
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        let events = feed.receiver().clone();
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(pressed) -> key => {
                // The terminal went away.
                let Ok(key) = key else { return Ok(()) };
                for event in std::iter::once(key).chain(pressed.try_iter()) {
                    if let Event::Key(key) = event && !keys::press(model, key) {
                        return Ok(());
                    }
                }
            },
            recv(events) -> event => {
                // All that came, for a picture costs more than an event.
                for event in event.into_iter().chain(events.try_iter()) {
                    model.event(&event);
                }
            },
            recv(look) -> _ => if !model.paused {
                match model.look() {
                    Ok(live) => feed.update(&live),
                    Err(e) => model.trouble = Some(format!("{e:#}")),
                }
            },
        }
    }
}
