"""A site of the time of Channels 1, to be served by a real daphne and real workers.

Nothing in it knows that it is tested, except that the prefix of its channel layer comes from the
environment. It runs on Python 3.9 with Django 1.11, never in the process of the tests.
"""
