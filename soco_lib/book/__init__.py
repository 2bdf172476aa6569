"""Notebooks: executing, watching, showing.

__main__      the command
asked         what make was given, checked and put into words before anything is built
execute       a notebook run strictly through papermill, and its page
executions    which notebooks have been executed, when, and what executes the others
explore       controls beside a figure that follows them in JupyterLab
gallery       what the README shows, copied from finished runs
imports       whether what was set up can be imported, and what to do if not
parameters    what a notebook's parameters cell declares, and what may override it
site          `make book`: all of it as one site that opens without a network
sphinx_parts  how Sphinx makes the site: settings, formulas, links that lead out of it
study         a study's table and notebook after its runs
worth         `make worth`: what pretraining is worth on one's own data, from a look at them to a page
watch         a run as it goes: a figure that grows in JupyterLab, sparse plain lines under papermill
"""
