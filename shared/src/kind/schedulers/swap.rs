//! From one scheduler to another.
//!
//! The kernel has room for one, and runs its own between the two. So all that can fail comes
//! first: the new scheduler is loaded, and so is the old one once more, to be put back at once
//! when the new one is refused, or ejected within its probation. The journal keeps how to load
//! the old one, for whoever finishes or reverts a swap that was killed on its way.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::attach::{self, Loaded};
use crate::crash;
use crate::error::{Error, Result};
use crate::kind::{Condition, Options};
use crate::live::{self, Live};
use crate::recipe::Recipe;
use crate::runq::Tracer;
use crate::swap::{Report, Swap, is_kernel};

/// Seconds for which the old scheduler is kept ready.
const PROBATION: u64 = 10;
/// How long waits are watched before the old scheduler goes and after the new one has come: only
/// of a task that became ready after the tracer started is known how long it waits.
const MARGIN: Duration = Duration::from_millis(100);

/// What the journal keeps for us.
#[derive(Debug, Deserialize, Serialize)]
struct Progress {
    /// The id of the old scheduler's record; a swap may be between two of one name.
    old: u32,
    /// How to bring the old one back; none when the kernel's own gives way.
    recipe: Option<Recipe>,
    /// The longest that a task waited, once that is known.
    #[serde(default)]
    gap_us: Option<u64>,
}

impl Progress {
    /// As the journal says, or as things stand when the swap begins.
    fn of(swap: &mut Swap<'_>) -> Result<Self> {
        if let Ok(progress) = serde_json::from_value(swap.journal.record.extra.clone()) {
            return Ok(progress);
        }
        let record = &swap.journal.record;
        let progress = if is_kernel(&record.from) {
            Self { old: 0, recipe: None, gap_us: None }
        } else {
            let old = swap.old()?;
            if let Condition::Ejected(why) = old.kind()?.condition(&old) {
                return Err(Error::failed(format!(
                    "the kernel has ejected {}: {why}",
                    record.from
                ))
                .hint("detach it, and attach the other")
                .into());
            }
            Self { old: old.id, recipe: Some(Recipe::of(&old)), gap_us: None }
        };
        progress.save(swap)?;
        Ok(progress)
    }

    fn save(&self, swap: &mut Swap<'_>) -> Result<()> {
        swap.journal.record.extra = serde_json::to_value(self)?;
        swap.journal.save()
    }

    /// The two sides, as far as they are there.
    fn sides(&self, swap: &Swap<'_>) -> Result<(Option<Live>, Option<Live>)> {
        let record = &swap.journal.record;
        let (mut old, mut new) = (None, None);
        for live in live::all()? {
            let is_same = record.from == record.to;
            if live.meta.policy == record.from && (!is_same || live.id == self.old) {
                old = Some(live);
            } else if live.meta.policy == record.to {
                new = Some(live);
            }
        }
        Ok((old, new))
    }

    /// Loads the old scheduler once more.
    fn twin(&self, swap: &Swap<'_>) -> Result<Option<Loaded>> {
        let Some(recipe) = &self.recipe else { return Ok(None) };
        let twin = recipe.load(&Options::default()).map_err(|e| {
            e.context(format!("{} could not be brought back", swap.journal.record.from))
        })?;
        Ok(Some(twin))
    }

    /// Makes things as they were before the swap, by a twin that is loaded already, or else now.
    fn restore(&mut self, swap: &mut Swap<'_>, twin: Option<Loaded>) -> Result<()> {
        let (old, new) = self.sides(swap)?;
        let stands = match &old {
            Some(old) => old.kind()?.condition(old) == Condition::Attached,
            None => false,
        };
        let twin = match twin {
            None if !stands => self.twin(swap)?,
            twin => twin,
        };
        if let Some(new) = new.filter(|_| swap.journal.record.fresh) {
            attach::take_off(&new, swap.tree)?;
        }
        if stands {
            return Ok(());
        }
        if let Some(old) = &old {
            attach::take_off(old, swap.tree)?;
        }
        let Some(twin) = twin else { return Ok(()) };
        let attached = attach::attach_in(swap.tree, twin, &Options::default(), true)?;
        self.old = attached.live.id;
        attached.keep();
        self.save(swap)
    }
}

/// Does or finishes a swap.
///
/// # Errors
/// The new scheduler can't be had, or was ejected: the old one is attached again then.
pub fn go(swap: &mut Swap<'_>) -> Result<Report> {
    let mut progress = Progress::of(swap)?;
    let (old, new) = progress.sides(swap)?;
    let to = swap.journal.record.to.clone();
    if new.is_some() && !swap.journal.record.fresh {
        return Err(Error::failed(format!("{to} is attached already"))
            .hint(format!("`polity detach {to}` first"))
            .into());
    }
    let twin = progress.twin(swap)?;
    let mut report = Report { retired: true, ..Report::default() };
    let mut said = format!("swapped {} for {to}", swap.journal.record.from);
    let result = match new {
        // The one before us was killed within the probation, or just before it could note the gap.
        Some(_) => Ok(()),
        None => exchange(swap, old).and_then(|gap_us| {
            progress.gap_us = Some(gap_us);
            progress.save(swap)
        }),
    };
    report.gap_us = progress.gap_us;
    if let Some(gap_us) = progress.gap_us {
        said.push_str(&format!("; no task waited longer than {gap_us} us"));
    }
    if let Err(e) = result.and_then(|()| probation(swap, &progress)) {
        progress.restore(swap, twin)?;
        return Err(e);
    }
    swap.forget();
    report.said = Some(said);
    Ok(report)
}

/// Takes the old scheduler off and attaches the new one; returns the longest time in microseconds
/// that any task waited for a CPU meanwhile.
fn exchange(swap: &mut Swap<'_>, old: Option<Live>) -> Result<u64> {
    let tracer = Tracer::start(u64::MAX)?;
    std::thread::sleep(MARGIN);
    tracer.clear()?;
    if let Some(old) = &old {
        attach::take_off(old, swap.tree)?;
    }
    swap.attach_new(&Options::default())?;
    std::thread::sleep(MARGIN);
    tracer.longest_us()
}

/// Watches the new scheduler for as long as it is on probation.
fn probation(swap: &Swap<'_>, progress: &Progress) -> Result<()> {
    let record = &swap.journal.record;
    if is_kernel(&record.to) {
        return Ok(());
    }
    let lost = || Error::failed(format!("{} has gone within its probation", record.to));
    let (_, Some(new)) = progress.sides(swap)? else { return Err(lost().into()) };
    let kind = new.kind()?;
    let seconds = Duration::from_secs(record.options.probation.unwrap_or(PROBATION));
    let start = Instant::now();
    loop {
        match kind.condition(&new) {
            Condition::Attached => {}
            Condition::Ejected(why) => {
                let report = crash::keep(&new, &why);
                return Err(Error::ejected(format!("the kernel ejected {}: {why}", record.to))
                    .hint(crash::pointer(report))
                    .into());
            }
            Condition::Detached(_) => return Err(lost().into()),
        }
        if start.elapsed() >= seconds {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Takes back what a swap has done so far.
///
/// # Errors
/// What the kernel says.
pub fn back(swap: &mut Swap<'_>) -> Result<Report> {
    let record = swap.journal.record.clone();
    let report = Report {
        retired: true,
        said: Some(format!("brought back {}", record.from)),
        ..Report::default()
    };
    // Without it nothing was changed.
    let Ok(mut progress) = serde_json::from_value::<Progress>(record.extra) else {
        return Ok(report);
    };
    progress.restore(swap, None)?;
    Ok(report)
}
