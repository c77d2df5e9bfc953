//! `polity events`.

use crate::cli::Events;
use crate::error::{Error, Result};
use crate::events::{Decoder, follow};
use crate::{live, out};

/// Prints events as JSON, one object a line: those waiting, or with `-f` all that come.
///
/// # Errors
/// No attached policy has events.
pub fn run(args: &Events) -> Result<()> {
    let all = match &args.policy {
        Some(name) => vec![live::find(name)?],
        None => live::all()?,
    };
    let readers: Vec<_> =
        all.iter().filter_map(|l| Some((l.map("events")?, Decoder::new(l, &l.shape())?))).collect();
    if readers.is_empty() {
        return Err(Error::failed("no attached policy has events").into());
    }
    let followed = args.follow;
    std::thread::scope(|scope| {
        let threads: Vec<_> = readers
            .iter()
            .map(|(map, decoder)| {
                scope.spawn(move || {
                    follow(map, decoder, |event| match event {
                        Some(event) => {
                            out::println(&event.to_string());
                            true
                        }
                        None => followed,
                    })
                })
            })
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}
