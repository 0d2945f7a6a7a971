"""Data: loaders, and how they are read in stretches."""
