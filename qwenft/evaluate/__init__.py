"""From answers to honest numbers."""
