"""The report of a sweep: its runs and what differs between them, statistics over seeds, plots, and the page itself."""
