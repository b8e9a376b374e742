//! What the four command-line tools share: exit codes, progress, JSON events.
