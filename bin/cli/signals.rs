//! SIGINT, SIGTERM and SIGHUP.

use crate::Exit;

/// The exit code that a signal asks for, if there was one.
pub(crate) fn heard() -> Option<Exit> {
    imp::heard()
}

/// Begins to listen: a signal interrupts the work, which unwinds and removes its temporaries. If it has not come back after two
/// seconds, or at a second signal, the temporaries are removed at once and the process ends.
pub(crate) fn listen() {
    imp::listen();
}

/// Ends the process after an interruption. Nothing else of it runs: libraries may still have threads at work, which their
/// destructors do not expect.
pub(crate) fn end(exit: Exit) -> ! {
    v2l_runtime::interrupt::abandon();
    imp::end(exit)
}

/// Ends the process, and nothing else.
pub(crate) fn end_at_once(exit: Exit) -> ! {
    imp::end(exit)
}

#[cfg(unix)]
mod imp {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, OnceLock};
    use std::time::{Duration, Instant};

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use v2l_runtime::interrupt;

    use crate::Exit;

    /// How long interrupted work may take to come back.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// The last signal; 0 without one.
    static HEARD: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

    pub(super) fn heard() -> Option<Exit> {
        match HEARD.get()?.load(Ordering::Relaxed) as i32 {
            0 => None,
            SIGTERM => Some(Exit::Terminated),
            SIGHUP => Some(Exit::HungUp),
            _ => Some(Exit::Interrupted),
        }
    }

    pub(super) fn listen() {
        let mut signals = vec![SIGINT, SIGTERM];
        // What `nohup` starts is to live on.
        if !is_ignored(SIGHUP) {
            signals.push(SIGHUP);
        }
        let heard = HEARD.get_or_init(Arc::default);
        for &signal in &signals {
            // Without a handler a signal ends the program all the same, but may leave a temporary behind.
            let _ = signal_hook::flag::register_usize(signal, Arc::clone(heard), signal as usize);
        }
        let Ok(mut signals) = Signals::new(signals) else { return };
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                interrupt::request();
                let deadline = Instant::now() + PATIENCE;
                while signals.pending().next().is_none() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
                super::end(heard_or_interrupted());
            }
        });
    }

    fn heard_or_interrupted() -> Exit {
        heard().unwrap_or(Exit::Interrupted)
    }

    pub(super) fn end(exit: Exit) -> ! {
        signal_hook::low_level::exit(exit as i32)
    }

    /// True if the process was started with the signal ignored.
    fn is_ignored(signal: i32) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
    }
}

#[cfg(not(unix))]
mod imp {
    use crate::Exit;

    pub(super) fn heard() -> Option<Exit> {
        None
    }

    pub(super) fn listen() {}

    pub(super) fn end(exit: Exit) -> ! {
        std::process::exit(exit as i32)
    }
}
