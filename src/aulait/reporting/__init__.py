"""The report: reads run folders and writes one page that needs nothing from outside.

``report`` makes the pages: `write_report` of one run, `write_comparison` of several. Everything is
read from files (see the run folder's description); nothing of the training code is imported.
"""
