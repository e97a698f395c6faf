"""Every setting once: its range, step, unit, help and label; checks, command line, form and API follow from it."""
