"""Files that are whole or not there: atomic replacement, and the journal of long work."""
