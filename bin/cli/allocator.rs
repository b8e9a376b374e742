//! Memory that the system refuses ends a tool with its own exit code, not with an abort.
//!
//! What a request takes is estimated before it begins. This is for what no estimate covers.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use v2l_runtime::interrupt;

use crate::{Exit, signals};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// How long the thread that ends the process may take, where others fail meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// True if failures are printed as JSON events, too.
static JSON: AtomicBool = AtomicBool::new(false);
/// True once some thread ends the process.
static ENDING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// True if it is this thread.
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// Says that failures are to be printed as JSON events, too.
pub(crate) fn print_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// The system's, but that it never gives null.
struct Allocator;

#[allow(unsafe_code, reason = "an allocator")]
// SAFETY: every call is the system allocator's, with the same arguments; what it gives is handed on, and null is not.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the system allocator.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; `memory` came from the system allocator, as everything does.
        given(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        end(size);
    }
    memory
}

/// Removes temporaries and ends the process. There is little memory to do so with: nothing here allocates much, and nothing waits
/// for another thread for long.
#[cold]
fn end(size: usize) -> ! {
    if HERE.get() {
        signals::end_at_once(Exit::Memory);
    }
    HERE.set(true);
    if ENDING.swap(true, Ordering::Relaxed) {
        // Another thread is at it, but may want a lock that this one holds.
        std::thread::sleep(PATIENCE);
        signals::end_at_once(Exit::Memory);
    }
    let mut text = [0; 160];
    let message = words(&mut text, size);
    let _ = writeln!(std::io::stderr(), "error: {message}");
    if JSON.load(Ordering::Relaxed) {
        let (class, code) = (Exit::Memory.name(), Exit::Memory as u8);
        let event = format_args!(r#"{{"event":"error","class":"{class}","code":{code},"message":"{message}"}}"#);
        let _ = writeln!(std::io::stdout(), "{event}");
    }
    interrupt::abandon_what_is_free();
    signals::end_at_once(Exit::Memory)
}

/// What went wrong, in `text`.
fn words(text: &mut [u8], size: usize) -> &str {
    let room = text.len();
    let mut rest = &mut *text;
    let _ = write!(rest, "not enough memory: the system refused {size} bytes; free memory, or ask for less at once");
    let written = room - rest.len();
    std::str::from_utf8(&text[..written]).unwrap_or("not enough memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fit_for_the_largest_size() {
        let words = words(&mut [0; 160], usize::MAX).to_owned();
        assert!(words.contains(&usize::MAX.to_string()) && words.ends_with("at once"), "{words}");
    }
}
