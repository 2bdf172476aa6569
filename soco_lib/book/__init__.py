"""Notebooks: executing, watching, showing.

__main__      the command
execute       a notebook run strictly through papermill, and its page
executions    which notebooks have been executed, when, and what executes the others
gallery       what the README shows, copied from finished runs
parameters    what a notebook's parameters cell declares, and what may override it
settings      whether a pretraining may be set so, before its proposals are made
site          `make book`: all of it as one site that opens without a network
sphinx_parts  how Sphinx makes the site: settings, formulas, links that lead out of it
watch         a run as it goes: a figure that grows in JupyterLab, sparse plain lines under papermill
"""
