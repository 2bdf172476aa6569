"""The drawn data set.

__main__  the command
light     How a part of an object in a generated scene is covered, textured and lit
objects   The objects of generated scenes
picture   One generated scene
textures  What generated scenes are made of
write     Generated photographic scenes for a machine without data
"""
