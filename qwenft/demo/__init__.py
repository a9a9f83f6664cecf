"""The whole line on the embedded tiny model."""
