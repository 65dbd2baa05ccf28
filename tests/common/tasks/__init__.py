"""Tests of what runs do."""
