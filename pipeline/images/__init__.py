"""Open and decode images with Pillow.

What enters: an opened file. What leaves: its size and notes, then upright RGB pixels.
Read ``read_image``; ``orientation`` finds how a picture is turned, of videos too, and
``camera_raw`` the preview in a camera's raw file.
"""
