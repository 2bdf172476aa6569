"""Notebooks: executing, watching, showing.

__main__  the command
execute   Executing the book's notebooks, strictly, through papermill
gallery   What the README shows comes from finished runs
watch     Watching a run: a figure that grows in JupyterLab, sparse plain lines under papermill
"""
