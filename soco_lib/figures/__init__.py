"""Everything that is drawn.

    claims_plots     Figures of notebook 10
    detection_plots  Bars of a detector's evaluation: classes and error kinds
    drawing          A transfer's predictions beside the ground truth
    plots            Figures of the book. Everything that is drawn comes from images, boxes and run records
    study_plots      What notebook 8 shows of a study beside its table and figure
    study_figure      A study's figure
"""
