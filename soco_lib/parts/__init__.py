"""What Detectron2 lacks for this book's detectors; detector.py imports it all.

coordinates  boxes in float32, whatever the type of the feature maps
counted      a batch's boxes, and the pairs of views that share them
heads        FCOS from a config, the C4 head's last norm
lazy         models of Python (lazy) configs, whole or by parts
pyramids     FPN and a ViT's pyramid for views of any side
regions      the loss that pretrains an RPN
rois         boxes counted and sorted on the CPU
zoo          config files: of Detectron2's zoo, of its projects, by path, of a finished run
"""
