"""What records say: the paper's tables, ours, claims.

claims        the paper's claims beside what small runs say (claims.yaml)
pages         tables as Markdown and LaTeX
paper_tables  Tables 1 to 10 with our runs in them
report        a few transfers beside the paper's rows
starts        what a transfer started from
study_rows    a study's rows, from its runs' small records
study_table   a study's table, cost, and what its seeds support
trials        every setting that was tried before one was frozen
"""
