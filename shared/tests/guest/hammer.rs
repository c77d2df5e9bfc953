//! Somebody who tries what is forbidden, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use crate::load::is_guarded;
use crate::trial::eventually;

/// Threads that write where rules deny it, below [`GUARDED`](crate::load::GUARDED).
pub struct Hammer {
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    allowed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Hammer {
    /// Starts so many threads of it; returns when they have begun.
    pub fn start(threads: usize) -> Self {
        let mut hammer = Self {
            stop: Arc::default(),
            tries: Arc::default(),
            allowed: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..threads {
            let (stop, tries, allowed) =
                (hammer.stop.clone(), hammer.tries.clone(), hammer.allowed.clone());
            hammer.threads.push(spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    allowed.fetch_add(u64::from(!is_guarded()), Ordering::Relaxed);
                    tries.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
            }));
        }
        let started = hammer.tries.clone();
        eventually("tries are made", || started.load(Ordering::Relaxed) > 10);
        hammer
    }

    /// Ends it: not one try may have been allowed.
    #[track_caller]
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        let (tries, allowed) =
            (self.tries.load(Ordering::Relaxed), self.allowed.load(Ordering::Relaxed));
        assert_eq!(allowed, 0, "allowed, of {tries} tries");
        eprintln!("{tries} forbidden tries, none allowed");
    }
}
