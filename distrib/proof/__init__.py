"""Real jobs on the user's model and data, compared: ``distrib verify`` and ``distrib compare``."""
