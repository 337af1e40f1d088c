"""report.html of a run, and compare.html of several: one file each, without requests to anybody."""
