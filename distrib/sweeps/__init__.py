"""Many runs as one search: which trials there are, how they run, and what they add up to."""
