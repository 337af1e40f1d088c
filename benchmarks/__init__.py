"""Measurements of i3lm beside what people use today; see README.md here."""
