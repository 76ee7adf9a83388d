"""Report on many run folders: groups over seeds, intervals, paired comparisons, in tables and on one page."""
