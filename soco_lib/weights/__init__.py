"""Checkpoints in, of this book and of others, and out; every key accounted for.

__main__    the command
export      Pretrained weights out again
foreign     Weights of other methods under the detector's names: one table of layouts, recognised by their keys
formats     Files of tensors in any format, read without running code from them
key_report  What becomes of every key of a detector and of a file
load        Pretrained weights into a detector, ours and other methods', with every key accounted for
"""
