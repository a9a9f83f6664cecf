"""A page in a browser, for this machine alone: a picture and a text in, boxes out."""
