"""From run folders to a published weight, and the checks of it; for maintainers."""
