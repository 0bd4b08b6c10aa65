"""Where work runs: in this process, in a process pool, or on Ray. All write the same bytes."""
