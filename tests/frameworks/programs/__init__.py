"""Servers that the tests of this folder start, each as its user would write it."""
