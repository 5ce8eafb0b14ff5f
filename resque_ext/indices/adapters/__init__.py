"""Each index of the package as `score` uses it, one class a file, named as in `score`."""
