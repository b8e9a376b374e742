//! The one process that the library works in. A fork's child has none of its threads, and would wait for them for ever.

use std::sync::atomic::{AtomicU32, Ordering};

/// The process that made the first handle; 0: none did.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Takes the library for this process, as handles are about to be made.
pub(crate) fn claim() {
    let _ = OWNER.compare_exchange(0, std::process::id(), Ordering::Relaxed, Ordering::Relaxed);
}

/// Why this process cannot use the library, if it is a fork of the one that does.
pub(crate) fn fork() -> Option<String> {
    fork_of(OWNER.load(Ordering::Relaxed), std::process::id())
}

fn fork_of(owner: u32, here: u32) -> Option<String> {
    (owner != 0 && owner != here).then(|| {
        format!(
            "process {here} is a fork of process {owner}, which made handles; its threads are not here. Fork before the first handle is \
             made, or start a program anew (exec, posix_spawn)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_forked_from_the_owner_is_told_so_and_all_others_work() {
        assert_eq!(fork_of(0, 7), None);
        assert_eq!(fork_of(7, 7), None);
        let told = fork_of(7, 8).unwrap();
        assert!(told.starts_with("process 8 is a fork of process 7"), "{told}");
    }
}
