"""Everything that is drawn.

claims           Figures of notebook 10
detection_plots  Bars of a detector's evaluation: classes and error kinds
detections       A transfer's predictions beside the ground truth
speed            Benchmarks' records: where the time goes, what is gained, what growth costs
studies          A study's figure, and what notebook 8 shows beside it
plots            Figures of the book. Everything that is drawn comes from images, boxes and run records
"""
