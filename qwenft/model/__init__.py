"""From samples to tensors and from files to a model; torch begins here."""
