"""This process in a segment."""
