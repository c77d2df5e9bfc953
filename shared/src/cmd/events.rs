//! `polity events`.

use crossbeam::channel::{select, tick};

use crate::cli::Events;
use crate::error::{Error, Result};
use crate::feed::{self, Feed};
use crate::live::{self, Live};
use crate::out;
use crate::supervise::watch;

/// Prints events as JSON, one object a line: those waiting, or with `-f` all that come, those of
/// policies attached later too.
///
/// # Errors
/// No attached policy has events; without `-f`, another process takes them.
pub fn run(args: &Events) -> Result<()> {
    let chosen = || -> Result<Vec<Live>> {
        match &args.policy {
            Some(name) => Ok(vec![live::find(name)?]),
            None => live::all(),
        }
    };
    let live = chosen()?;
    if !live.iter().any(|l| l.meta.maps.contains_key("events")) {
        let who = args.policy.as_ref().map_or("no attached policy has events".to_owned(), |name| {
            format!("{name} has no events")
        });
        return Err(Error::failed(who).into());
    }
    if args.follow {
        return follow(&live, chosen);
    }
    let taken = feed::waiting(&live, |event| out::println(&event.to_string()))?;
    if let Some((policy, pid)) = taken.first() {
        let who = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
        return Err(Error::failed(format!("another polity{who} takes the events of {policy}"))
            .hint("`polity events -f` reads along")
            .into());
    }
    Ok(())
}

fn follow(live: &[Live], chosen: impl Fn() -> Result<Vec<Live>>) -> Result<()> {
    let mut feed = Feed::default();
    feed.update(live);
    let look = tick(watch::INTERVAL);
    loop {
        select! {
            recv(feed.receiver()) -> event => if let Ok(event) = event {
                out::println(&event.to_string());
            },
            // One that is named may be taken off and come back.
            recv(look) -> _ => if let Ok(live) = chosen() {
                feed.update(&live);
            },
        }
    }
}
