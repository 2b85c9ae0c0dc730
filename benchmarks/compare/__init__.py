"""Comparisons: arms, measured block by block in turn, and what follows from the blocks."""
