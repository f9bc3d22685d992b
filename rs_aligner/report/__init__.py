"""A run for people to look at: its page, runs compared, a selection replayed, its rollouts as data."""
