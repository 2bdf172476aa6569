"""What frozen features know.

neighbours   What pretrained features see
probe        Do the features know objects? Class of labelled boxes from frozen RoI features, each class counting alike
probe_table  Probes of several pretrainings as one table
"""
