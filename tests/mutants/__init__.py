"""Mistakes put into the code on purpose, and the tests that have to notice them."""
