"""Scenes drawn by a program, and the training of Pixelgate's starter weights on them."""
