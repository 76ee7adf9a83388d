"""What run folders say together: groups over seeds, intervals, paired comparisons, in tables and on one page."""
