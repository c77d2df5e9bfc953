//! Opens and closes a file many times and prints the nanoseconds of one turn, the least of ten
//! rounds. In the VM whose clock counts instructions that is the number of instructions.
//!
//! usage: open-loop TURNS FILE...

use std::fs::File;
use std::time::Instant;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let turns: u32 = args.next().and_then(|n| n.parse().ok()).unwrap_or(1000);
    for file in args {
        let mut least = u128::MAX;
        for _ in 0..10 {
            let start = Instant::now();
            for _ in 0..turns {
                drop(File::open(&file)?);
            }
            least = least.min(start.elapsed().as_nanos() / u128::from(turns));
        }
        println!("{least}");
    }
    Ok(())
}
