"""What a run looks like: one HTML page that needs nothing else, no network among it."""
