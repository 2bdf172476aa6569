"""What records say: the paper's tables, ours, claims.

__main__      the command: every table again
claims        the paper's claims beside what small runs say (notebooks/claims.yaml)
pages         tables as Markdown
paper_tables  Tables 1 to 10 with our runs in them; a few runs beside the paper's rows
show          one run, as text
stats         paired difference, its two intervals, the verdict
growth        a study's scores over images seen, where its variants are arms at several lengths
study_rows    a study's rows, from its runs' records
study_table   a study's table, cost, and what its seeds support
trials        every setting that was tried before one was frozen
worth         what a start saves in labels, against random weights
"""
