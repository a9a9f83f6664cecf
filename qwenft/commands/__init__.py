"""One file a command: its options and the one call into the stages; thin."""
