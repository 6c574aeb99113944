"""Data sets of the project. Empty on purpose: its modules need OpenCV, the package does not."""
