"""Notebooks: executing, watching, showing.

__main__    the command
execute     a notebook run strictly through papermill, and its page
gallery     what the README shows, copied from finished runs
parameters  what a notebook's parameters cell declares, and what may override it
watch       a run as it goes: a figure that grows in JupyterLab, sparse plain lines under papermill
"""
