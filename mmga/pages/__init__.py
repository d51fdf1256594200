"""Self-contained HTML pages: the report of an evaluation in a browser.

A page loads nothing: scripts, styles, data and pictures are in the file, and its content security
policy refuses every request. Identities and paths are strangers' text: templates escape them, and
scripts write them as text alone.
"""
