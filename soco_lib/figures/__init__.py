"""Everything that is drawn.

claims      Figures of notebook 10
detections  A detector's predictions beside the ground truth; bars of its classes and of its kinds of error
odd_data    Everything that is odd about one's own data (a command)
speed       Benchmarks' records: where the time goes, what is gained, what growth costs
studies     A study's figure, and what notebook 8 shows beside it
plots       Images with boxes, curves of a run's log, histograms
worth       What a start saves in labels: notebook 12
"""
