"""From a picture and a text to boxes."""
