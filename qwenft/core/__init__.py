"""What every stage shares: light, no torch, no numpy."""
